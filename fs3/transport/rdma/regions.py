"""Registered memory of one device: what the NIC may read and write, found again by its owner.

Registering costs a system call and pins every page, so memory that lives on is registered once:
whole, with the first transfer, as long as its owner (an mmap, a numpy array) lives. That an owner
has gone is seen by a weak reference, so nothing is kept alive, and no address is ever mistaken for
that of memory which was there before. What cannot be referred to weakly (bytes, bytearray) is
registered for the one transfer.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.messages import Segment
from fs3.transport.rdma.verbs import Device, Region

KEPT_BYTES_MAX = 4 << 30  # registered and kept; beyond it the longest unused ones go, those that
# are in use when their transfers have ended
WHOLE_BYTES_MAX = 256 << 20  # an owner larger than this is registered in parts, as they are used
_SEGMENT_BYTES_MAX = 1 << 30  # what one work request moves at most, by the verbs' rules


class _Shared:
    """A registration, closed when neither the table nor a transfer has it any more."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.address, self.length = region.address, region.length
        self.local_key, self.remote_key = region.local_key, region.remote_key

    def __del__(self) -> None:
        self._region.close()

    def close(self) -> None:
        """Not before the others that have it."""


class _Kept(NamedTuple):
    owner: weakref.ref[Any]
    region: Region


class Run(NamedTuple):
    """Views of one owner that lie behind one another."""

    views: list[memoryview]
    address: int
    length: int

    def joined(self) -> memoryview | None:
        """As one view; None if its owner does not give that."""
        first = self.views[0]
        if len(self.views) == 1:
            return first
        try:
            whole = memoryview(first.obj).cast("B")
            start = self.address - address_of(whole)
        except (TypeError, ValueError, BufferError):
            return None
        if start < 0 or start + self.length > len(whole):
            return None
        return whole[start : start + self.length]


class Lent(NamedTuple):
    """Memory that may be used until :meth:`close`: runs of it, and what to undo afterwards."""

    segments: list[Segment]  # with the keys for the peer
    local: list[Segment]  # the same with the keys for work requests here
    temporary: list[Region]
    kept: list[Region]

    def close(self) -> None:
        """The transfer is over. Idempotent."""
        self.kept.clear()
        for region in self.temporary:
            region.close()
        self.temporary.clear()


def address_of(view: memoryview) -> int:
    """Where the memory lies."""
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address


def runs_of(views: Sequence[memoryview]) -> list[Run]:
    """Neighbours joined, empty ones left out. Fs3Error TOO_LARGE for more than 1 GiB in one."""
    runs: list[Run] = []
    for view in views:
        length = len(view)
        if length > _SEGMENT_BYTES_MAX:
            raise Fs3Error(Code.TOO_LARGE, f"{length} bytes in one piece of memory")
        if not length:
            continue
        address = address_of(view)
        if runs:
            last = runs[-1]
            joined = last.length + length
            if (
                last.address + last.length == address
                and last.views[-1].obj is view.obj
                and joined <= _SEGMENT_BYTES_MAX
            ):
                last.views.append(view)
                runs[-1] = last._replace(length=joined)
                continue
        runs.append(Run([view], address, length))
    return runs


class Regions:
    """Any thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # by the owner's id
        self._kept_bytes = 0
        # Ids of owners that have gone: a weak reference's callback may come at any time, with the
        # lock held, so it only notes them down.
        self._gone: deque[int] = deque()

    @property
    def kept_bytes(self) -> int:
        """Registered and kept."""
        return self._kept_bytes

    def lend(self, views: Sequence[memoryview], *, remote: bool) -> Lent:
        """Memory for one transfer, neighbours joined; ``remote``: the peer gets the keys.

        Fs3Error NO_SPACE if some of it cannot be registered.
        """
        return self.lend_runs(*self.find(views), remote=remote)

    def find(self, views: Sequence[memoryview]) -> tuple[list[Run], list[Region | None]]:
        """Memory by runs, with the registration of each; None: it cannot stay registered."""
        runs = runs_of(views)
        return runs, [self._keep(run.views[0], run.address, run.length) for run in runs]

    def lend_runs(
        self, runs: Sequence[Run], regions: Sequence[Region | None], *, remote: bool
    ) -> Lent:
        """What :meth:`find` found; the rest is registered until it is closed.

        Fs3Error NO_SPACE if some of it cannot be registered.
        """
        lent = Lent([], [], [], [])
        try:
            for run, region in zip(runs, regions, strict=True):
                if region is not None:
                    lent.kept.append(region)
                    _add(lent, run.address, run.length, region)
                    continue
                joined = run.joined()
                for view in run.views if joined is None else [joined]:
                    region = self._device.register(view, remote=remote)
                    lent.temporary.append(region)
                    _add(lent, address_of(view), len(view), region)
        except Fs3Error:
            lent.close()
            raise
        return lent

    def _keep(self, view: memoryview, address: int, length: int) -> Region | None:
        """The registration of the memory's owner; None if there is none and can be none."""
        owner = _owner(view)
        if owner is None:
            return None
        key = id(owner)
        # Mostly it is known, and then nothing need be locked.
        kept = self._kept.get(key)
        if kept is not None and not self._gone and kept.owner() is owner:
            region = kept.region
            if region.address <= address and address + length <= region.address + region.length:
                with contextlib.suppress(KeyError):  # closed by another thread meanwhile
                    self._kept.move_to_end(key)
                    if self._kept.get(key) is kept:  # and not one that was made in between
                        return region
        with self._lock:
            self._drop_gone()
            kept = self._kept.get(key)
            if kept is not None and kept.owner() is owner:
                region = kept.region
                inside = region.address <= address
                if inside and address + length <= region.address + region.length:
                    self._kept.move_to_end(key)
                    return region
                return None
            return self._register_whole(owner, key, address, length)

    def _register_whole(self, owner: Any, key: int, address: int, length: int) -> Region | None:  # noqa: ANN401
        whole = memoryview(owner)
        if (
            whole.readonly
            or not whole.c_contiguous
            or not length <= whole.nbytes <= WHOLE_BYTES_MAX
        ):
            return None
        try:
            whole = whole.cast("B")
        except (TypeError, ValueError):
            return None  # of records
        start = address_of(whole)
        if not start <= address or address + length > start + len(whole):
            return None
        region = _Shared(self._device.register(whole, remote=True))
        reference = weakref.ref(owner, lambda _: self._gone.append(key))
        self._kept[key] = _Kept(reference, region)
        self._kept_bytes += region.length
        while self._kept_bytes > KEPT_BYTES_MAX and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            if oldest == key:
                break
            self._close(oldest)
        return region

    def _drop_gone(self) -> None:
        while self._gone:
            key = self._gone.popleft()
            kept = self._kept.get(key)
            if kept is not None and kept.owner() is None:
                self._close(key)

    def _close(self, key: int) -> None:
        kept = self._kept.pop(key)
        self._kept_bytes -= kept.region.length


def _add(lent: Lent, address: int, length: int, region: Region) -> None:
    segments, local = lent.segments, lent.local
    if segments:
        last = segments[-1]
        joined = last.length + length
        if (
            last.address + last.length == address
            and last.key == region.remote_key
            and joined <= _SEGMENT_BYTES_MAX
        ):
            segments[-1] = last._replace(length=joined)
            local[-1] = local[-1]._replace(length=joined)
            return
    segments.append(Segment(address, length, region.remote_key))
    local.append(Segment(address, length, region.local_key))


def _owner(view: memoryview) -> Any:  # noqa: ANN401 - whatever exports a buffer
    """Whose memory it is: what lives as long as the memory does; None if that cannot be seen."""
    owner: Any = view
    while True:
        if isinstance(owner, memoryview):
            owner = owner.obj
        elif isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        else:
            break
    try:
        weakref.ref(owner)
        memoryview(owner)
    except TypeError:
        return None
    return owner
