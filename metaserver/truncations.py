"""Carrying out trims: what a shrink left to do at the storageservers (:mod:`.garbage`).

Trims of one file are done one at a time, and only when the row is gone, with no call under way any
more, may bytes past the cut be written and counted: a cut that came late would take them too.
Whoever needs that calls :meth:`Truncations.finish`. What a crash left is found by :meth:`resume`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

from .chunk_control import ChunkControl, TrimItem
from .garbage import Trim, find_trim, trim_done, trims_next
from .inodes import find_record
from .kv.interface import Engine, Transaction

_PAGE = 100
_log = get_logger(__name__)


class Truncations:
    """Any thread may call. At most ``at_once`` trims wait for storageservers at a time."""

    def __init__(
        self, engine: Engine, control: ChunkControl, chunks_max: int, wait_s: float, at_once: int
    ) -> None:
        self._engine = engine
        self._control = control
        self._chunks_max = chunks_max
        self._wait_s = wait_s
        self._at_once = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()  # guards _turns
        self._turns: dict[InodeId, tuple[threading.Lock, list[None]]] = {}

    def finish(self, inode: InodeId, wait_s: float | None = None) -> None:
        """Return when nothing is left to trim of ``inode``.

        MAYBE_APPLIED if the storageservers did not answer in time: the length is cut already, and
        the same request, repeated, goes on here.
        """
        if self._pending(inode) is None:
            return
        if not self._at_once.acquire(blocking=False):
            raise Fs3Error(
                Code.MAYBE_APPLIED,
                f"inode {inode} is not trimmed yet: too many truncations wait for storageservers",
            )
        try:
            with self._turn(inode):
                while (trim := self._pending(inode)) is not None:
                    self._carry_out(trim, self._wait_s if wait_s is None else wait_s)
                    self._engine.run(trim_done, trim)
        finally:
            self._at_once.release()

    def resume(self) -> None:
        """Try each trim there is, once. Most are somebody's who waits in :meth:`finish`."""
        after = InodeId(0)
        failed: Fs3Error | None = None
        while trims := self._engine.run(trims_next, _PAGE, after):
            for trim in trims:
                try:
                    self.finish(trim.inode.inode, wait_s=0)
                except Fs3Error as error:
                    failed = error
            after = trims[-1].inode.inode
        if failed is not None:
            raise failed

    def _pending(self, inode: InodeId) -> Trim | None:
        return self._engine.run(_find, inode)

    def _carry_out(self, trim: Trim, wait_s: float) -> None:
        inode = trim.inode
        chains = inode.layout.chains
        for chain in dict.fromkeys(chains):
            cut = None
            if trim.last_chunk_bytes and chains[(trim.first_dropped - 1) % len(chains)] == chain:
                cut = (trim.first_dropped - 1, trim.last_chunk_bytes)
            item = TrimItem(inode.inode, trim.first_dropped, cut)
            try:
                self._control.trim(chain, [item], self._chunks_max, wait_s)
            except Fs3Error as error:
                raise Fs3Error(
                    Code.MAYBE_APPLIED,
                    f"inode {inode.inode} has its new length, chain {chain} did not trim: {error}",
                ) from error

    @contextmanager
    def _turn(self, inode: InodeId) -> Iterator[None]:
        """One thread at a time for each inode; a lock lives while somebody wants it."""
        with self._lock:
            lock, users = self._turns.setdefault(inode, (threading.Lock(), []))
            users.append(None)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users.pop()
                if not users:
                    del self._turns[inode]


def _find(txn: Transaction, inode: InodeId) -> Trim | None:
    record = find_record(txn, inode)
    return None if record is None else find_trim(txn, record)
