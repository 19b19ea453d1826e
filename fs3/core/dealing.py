"""How the items of one batch are dealt out: which belong together, and who gets how many."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.core.types import NodeId

Indices: TypeAlias = NDArray[np.int64]
FIRST: Indices = np.zeros(1, np.int64)


def groups(keys: NDArray[Any]) -> list[tuple[int, Indices]]:
    """Positions of each distinct key, in order, keys ascending."""
    first = int(keys[0])
    if len(keys) == 1:
        return [(first, FIRST)]
    if bool((keys == first).all()):
        return [(first, np.arange(len(keys)))]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered)) + 1
    parts = np.split(order, starts)
    return [(int(keys[part[0]]), part) for part in parts]


def spread(usable: list[NodeId], ends: Indices, planned: dict[NodeId, int]) -> Indices:
    """Who reads which item of a run, such that the nodes' loads come out as even as possible.

    ``ends``: where each item ends in the bytes of the run. Each node gets neighbouring items.
    """
    total = int(ends[-1])
    loads = sorted((planned.get(n, 0), place) for place, n in enumerate(usable))
    level, filled = 0, 0
    for filled in range(
        len(loads), 0, -1
    ):  # the highest load that all of the first nodes can reach
        level = (total + sum(load for load, _ in loads[:filled])) // filled
        if level >= loads[filled - 1][0]:
            break
    chosen = np.empty(len(ends), np.int64)
    start, given = 0, 0
    for rank, (load, place) in enumerate(loads[:filled]):
        node = usable[place]
        given += max(level - load, 0)
        last = rank == filled - 1
        stop = len(ends) if last else int(np.searchsorted(ends, given, "right"))
        stop = max(stop, start)
        chosen[start:stop] = node
        taken = int(ends[stop - 1]) - (int(ends[start - 1]) if start else 0) if stop > start else 0
        planned[node] = planned.get(node, 0) + taken
        start = stop
    return chosen
