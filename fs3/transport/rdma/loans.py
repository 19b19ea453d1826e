"""What a request lends to the server: the caller's own memory, or registered memory in its place.

Registering costs a system call and pins every page. Memory that stays registered is lent itself.
Of what does not live on, large pieces are registered for the one request, if they are few; a copy
stands in for the others, which is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence

from fs3.buffers import BufferPool, PooledBuffer
from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.messages import Segment
from fs3.transport.rdma.regions import Lent, Regions, Run, address_of
from fs3.transport.rdma.verbs import Region

STAND_INS_BYTES = 64 << 20  # of all threads together; beyond it requests go over TCP
TEMPORARY_MAX = 16  # registrations for one request: more cost more than a copy does
COPIED_BYTES_MAX = 256 << 10  # registering memory for one request costs as much as copying this


class Loan:
    """Memory that the server may use until :meth:`close`."""

    __slots__ = ("_lent", "_stand_in", "_starts")

    def __init__(
        self,
        lent: Lent,
        stand_in: PooledBuffer | None = None,
        starts: dict[int, int] | None = None,
    ) -> None:
        """``starts``: of the callers' memory, by address, where it begins in the stand-in."""
        self._lent = lent
        self._stand_in = stand_in
        self._starts = starts or {}

    @property
    def segments(self) -> list[Segment]:
        """With the keys for the server."""
        return self._lent.segments

    def bring(self, places: Sequence[memoryview]) -> None:
        """The server has written here: what came in a stand-in goes to where it belongs."""
        if self._stand_in is None:
            return
        view, starts = self._stand_in.view, self._starts
        for place in places:
            start = starts.get(address_of(place)) if len(place) else None
            if start is not None:
                place[:] = view[start : start + len(place)]

    def close(self) -> None:
        """The server does not use it any more. Idempotent."""
        self._lent.close()
        stand_in, self._stand_in = self._stand_in, None
        if stand_in is not None:
            stand_in.release()


class Lender:
    """Of one port. Any thread. Its methods raise Fs3Error NO_SPACE, BUSY or TOO_LARGE if there is
    no registered memory for a request."""

    def __init__(self, regions: Regions, stand_ins_bytes: int = STAND_INS_BYTES) -> None:
        self._regions = regions
        self._pool = BufferPool(stand_ins_bytes)

    def body(self, parts: Sequence[memoryview]) -> Loan:
        """The server reads these."""
        return self._lend(parts, fill=True)

    def room(self, places: Sequence[memoryview]) -> Loan:
        """The server writes here."""
        return self._lend(places, fill=False)

    def _lend(self, views: Sequence[memoryview], *, fill: bool) -> Loan:
        runs, regions = self._regions.find(views)
        copied = _to_copy(runs, regions)
        if not copied:
            return Loan(self._regions.lend_runs(runs, regions, remote=True))
        buffer = self._pool.take(sum(runs[index].length for index in copied))
        try:
            lent, starts = self._replace(runs, regions, copied, buffer.view)
        except Fs3Error:
            buffer.release()
            raise
        end = 0
        for view in [view for index in copied for view in runs[index].views] if fill else ():
            start, end = end, end + len(view)
            buffer.view[start:end] = view
        return Loan(lent, buffer, starts)

    def _replace(
        self,
        runs: Sequence[Run],
        regions: Sequence[Region | None],
        copied: Sequence[int],
        stand_in: memoryview,
    ) -> tuple[Lent, dict[int, int]]:
        """Lend ``stand_in`` instead of some of the runs; where each of their views begins in it."""
        (whole,), (region,) = self._regions.find([stand_in])
        if region is None:
            raise Fs3Error(Code.NO_SPACE, "no memory can stay registered")
        used, known = list(runs), list(regions)
        starts: dict[int, int] = {}
        end = 0
        for index in copied:
            run = runs[index]
            address, length = whole.address + end, run.length
            used[index] = Run([stand_in[end : end + length]], address, length)
            known[index] = region
            for view in run.views:
                starts[address_of(view)] = end
                end += len(view)
        return self._regions.lend_runs(used, known, remote=True), starts


def _to_copy(runs: Sequence[Run], regions: Sequence[Region | None]) -> list[int]:
    """Which of the runs that cannot stay registered are not worth a registration either."""
    copied, registered = [], 0
    for index, (run, region) in enumerate(zip(runs, regions, strict=True)):
        if region is not None:
            continue
        if run.length > COPIED_BYTES_MAX and run.joined() is not None:
            registered += 1
            if registered <= TEMPORARY_MAX:
                continue
        copied.append(index)
    return copied
