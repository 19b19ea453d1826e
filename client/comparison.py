"""Comparing the replicas of a chain, chunk by chunk, without holding their lists in memory.

Writes may be under way meanwhile: a chunk that differs is looked at again until it is equal or the
patience is used up.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fs3.core.types import Chain, ChunkId, TargetId, chunk_owner, chunk_slot
from fs3.errors import Fs3Error
from fs3.routing import Routing

from .administration import Administration, ChunkState

PROBLEMS_MAX = 20  # of one chain are told one by one
_LOOK_AGAIN_S = 0.2


@dataclass(slots=True)
class Comparison:
    """What was found on one chain. ``problems`` empty: every replica holds the same.

    ``incomplete``: a replica does not serve or could not be asked, so that nothing is known of it.
    """

    compared: list[int] = field(default_factory=list)
    chunks: int = 0
    data_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    incomplete: bool = False
    differences: int = 0

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if not self.problems:
            return "all equal"
        return "NOT EQUAL" if self.differences else "NOT ALL COMPARED"


def side_by_side(scans: Mapping[int, Iterable[ChunkState]]) -> Iterator[dict[int, ChunkState]]:
    """For each chunk in order: who has it, and how. Each scan is in order of chunk ids."""

    def labelled(target: int, scan: Iterable[ChunkState]) -> Iterator[tuple[int, ChunkState]]:
        return ((target, chunk) for chunk in scan)

    streams = [labelled(target, scan) for target, scan in scans.items()]
    merged = heapq.merge(*streams, key=lambda pair: pair[1].chunk)
    for _, group in itertools.groupby(merged, key=lambda pair: pair[1].chunk):
        yield dict(group)


def _difference(found: Mapping[int, ChunkState], targets: Iterable[int]) -> str:
    """What is wrong with one chunk; empty if all hold the same and nothing is pending."""
    missing = [str(target) for target in targets if target not in found]
    if missing:
        return f"missing on target {', '.join(missing)}"
    states = {(c.version, c.length_bytes, c.checksum) for c in found.values()}
    if len(states) > 1:
        each = (
            f"target {t}: version {c.version}, {c.length_bytes} bytes, crc {c.checksum:08x}"
            for t, c in found.items()
        )
        return "; ".join(each)
    pending = [str(target) for target, chunk in found.items() if chunk.pending_version]
    return f"an update is pending on target {', '.join(pending)}" if pending else ""


def compare_chain(
    calls: Administration, routing: Routing, chain: Chain, patience_s: float
) -> Comparison:
    """Compare all serving replicas of ``chain``; one that does not serve is a problem by itself."""
    result = Comparison(compared=[int(r.target) for r in chain.serving])
    for replica in chain.replicas:
        if replica not in chain.serving:
            result.incomplete = True
            result.problems.append(f"target {replica.target} is {replica.state.name}: not compared")
    deadline_s = time.monotonic() + patience_s
    scans = {target: calls.scan(routing, TargetId(target)) for target in result.compared}
    try:
        for found in side_by_side(scans):
            first = next(iter(found.values()))
            difference = _difference(found, result.compared)
            if difference:
                difference = _look_again(calls, routing, result.compared, first.chunk, deadline_s)
            result.chunks += 1
            result.data_bytes += first.length_bytes
            result.differences += bool(difference)
            if difference and len(result.problems) < PROBLEMS_MAX:
                name = f"inode {chunk_owner(first.chunk)} chunk {chunk_slot(first.chunk)}"
                result.problems.append(f"{name}: {difference}")
    except Fs3Error as error:
        result.incomplete = True
        result.problems.append(f"a replica cannot be asked: {error.detail}")
    return result


def _look_again(
    calls: Administration,
    routing: Routing,
    targets: list[int],
    chunk: ChunkId,
    deadline_s: float,
) -> str:
    """The difference that remains when the patience is used up; empty if there is none any more."""
    while True:
        found = {}
        for target in targets:
            state = calls.chunk(routing, TargetId(target), chunk)
            if state is not None:
                found[target] = state
        difference = _difference(found, targets) if found else ""  # removed everywhere: equal
        if not difference or time.monotonic() > deadline_s:
            return difference
        time.sleep(_LOOK_AGAIN_S)
