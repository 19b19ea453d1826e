"""Locks of fcntl(2) and flock(2) within one mount.

They are per mount: two mounts do not see each other's locks. POSIX locks are byte ranges of an
owner, split and merged as fcntl(2) says; flock locks cover the whole file. The two kinds do not see
each other. A lock that must wait is granted as soon as nobody is in its way, in no particular
order.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

from fs3.core.types import InodeId

from .filesystem_interface import Cancellation, FileLock, LockKind

_Held: TypeAlias = list[tuple[int, FileLock]]  # owner and lock; one owner's ranges do not overlap


class FileLocks:
    """Any thread may call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards both tables
        self._ranges: dict[InodeId, _Held] = {}
        self._flocks: dict[InodeId, _Held] = {}

    def blocker(self, inode: InodeId, owner: int, lock: FileLock) -> FileLock | None:
        """A POSIX lock of another owner that is in the way."""
        with self._changed:
            return _blocker(self._ranges.get(inode, []), owner, lock)

    def set(
        self, inode: InodeId, owner: int, lock: FileLock, *, flock: bool, wait: Cancellation | None
    ) -> bool:
        """See ``FileSystem.setlk``."""
        table = self._flocks if flock else self._ranges
        if wait is not None:
            wait.on_cancel(self._wake)
        with self._changed:
            while _blocker(table.get(inode, []), owner, lock) is not None:
                if wait is None or wait.cancelled:
                    return False
                self._changed.wait()
            self._put(table, inode, owner, lock)
            return True

    def drop_ranges(self, inode: InodeId, owner: int) -> None:
        """All POSIX locks of ``owner`` go: it closed a descriptor of the file."""
        self._drop(self._ranges, inode, owner)

    def drop_flock(self, inode: InodeId, owner: int) -> None:
        """The flock of ``owner`` goes: its last descriptor is closed."""
        self._drop(self._flocks, inode, owner)

    def _drop(self, table: dict[InodeId, _Held], inode: InodeId, owner: int) -> None:
        if inode not in table:
            return  # the usual case takes no lock
        with self._changed:
            whole = FileLock(LockKind.UNLOCK, 0, (1 << 64) - 1, 0)
            self._put(table, inode, owner, whole)

    def _put(self, table: dict[InodeId, _Held], inode: InodeId, owner: int, lock: FileLock) -> None:
        kept: _Held = []
        for holder, held in table.get(inode, []):
            if holder == owner:
                kept += [(holder, rest) for rest in _without(held, lock)]
            else:
                kept.append((holder, held))
        if lock.kind is not LockKind.UNLOCK:
            kept.append((owner, lock))
        if kept:
            table[inode] = kept
        else:
            table.pop(inode, None)
        self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _blocker(held: _Held, owner: int, lock: FileLock) -> FileLock | None:
    if lock.kind is LockKind.UNLOCK:
        return None
    for holder, other in held:
        apart = other.end < lock.start or lock.end < other.start
        shared = other.kind is LockKind.READ and lock.kind is LockKind.READ
        if holder != owner and not apart and not shared:
            return other
    return None


def _without(held: FileLock, lock: FileLock) -> list[FileLock]:
    """What is left of a lock when the range of another is taken out of it."""
    if held.end < lock.start or lock.end < held.start:
        return [held]
    left = []
    if held.start < lock.start:
        left.append(held._replace(end=lock.start - 1))
    if held.end > lock.end:
        left.append(held._replace(start=lock.end + 1))
    return left
