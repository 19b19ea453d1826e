"""POSIX and flock locks of one file, in memory: the model that the memory file system uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from fs3.client.filesystem_interface import FileLock, LockKind


@dataclass
class LockTable:
    """Locks by owner; an owner's locks never overlap each other."""

    held: dict[int, list[FileLock]] = field(default_factory=dict)

    def conflict(self, owner: int, wanted: FileLock) -> FileLock | None:
        """A lock of another owner that is in the way."""
        for other, locks in self.held.items():
            if other == owner:
                continue
            for lock in locks:
                overlap = lock.start <= wanted.end and wanted.start <= lock.end
                if overlap and LockKind.WRITE in (lock.kind, wanted.kind):
                    return lock
        return None

    def set(self, owner: int, wanted: FileLock) -> None:
        """Replace the owner's locks in the range by ``wanted``, or by nothing for UNLOCK."""
        kept = []
        for lock in self.held.get(owner, []):
            if lock.end < wanted.start or lock.start > wanted.end:
                kept.append(lock)
                continue
            if lock.start < wanted.start:
                kept.append(lock._replace(end=wanted.start - 1))
            if lock.end > wanted.end:
                kept.append(lock._replace(start=wanted.end + 1))
        if wanted.kind is not LockKind.UNLOCK:
            kept.append(wanted)
        if kept:
            self.held[owner] = kept
        else:
            self.held.pop(owner, None)
