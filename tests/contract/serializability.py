"""Finds cycles in the dependencies between recorded transactions.

Every key holds the list of the transactions that wrote it, in order, and every write appends to the
list that it read. So a read tells exactly which writes it followed, and from that come three kinds
of edges: a reader after the writers it saw (wr), a writer after the one before it (ww), and a
reader before the first writer it did not see (rw). The history is serializable if there is no
cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Access(NamedTuple):
    """One read of a list, and the number appended to it, if any."""

    key: bytes
    seen: tuple[int, ...]
    appended: int | None


def find_cycle(history: Sequence[Sequence[Access]]) -> list[int] | None:
    """The numbers of committed transactions that depend on one another in a circle, or None.

    A transaction's number is its index; one that was not committed has no accesses. Two lists of
    one key that do not extend each other are a circle by themselves.
    """
    orders: dict[bytes, tuple[int, ...]] = {}
    for number, accesses in enumerate(history):
        for access in accesses:
            known = orders.get(access.key, ())
            longest = max(known, _after(access), key=len)
            for shorter in (known, _after(access)):
                if longest[: len(shorter)] != shorter:
                    return sorted({number, *known} - set(access.seen))
            orders[access.key] = longest
    edges: dict[int, set[int]] = {number: set() for number in range(len(history))}
    for number, accesses in enumerate(history):
        for access in accesses:
            order = orders[access.key]
            seen = [n for n in access.seen if n != number]
            for earlier in seen[-1:]:
                edges[earlier].add(number)
            following = [n for n in order[len(access.seen) :] if n != number]
            for later in following[:1]:
                edges[number].add(later)
    return _cycle(edges)


def _after(access: Access) -> tuple[int, ...]:
    return access.seen if access.appended is None else (*access.seen, access.appended)


def _cycle(edges: dict[int, set[int]]) -> list[int] | None:
    """Take away what nothing unfinished leads to, again and again; what stays is in circles."""
    left = {number: set(after) for number, after in edges.items()}
    while left:
        reached = set().union(*left.values())
        free = [number for number in left if number not in reached]
        if not free:
            break
        for number in free:
            del left[number]
    while left:  # and what leads nowhere
        ends = [number for number, after in left.items() if not after & left.keys()]
        if not ends:
            return sorted(left)
        for number in ends:
            del left[number]
    return None
