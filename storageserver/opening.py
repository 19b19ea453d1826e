"""Opening the stores of a storageserver's targets: one that cannot be opened keeps nobody else."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

from .chunkstore.datafiles import ChunkStoreSettings
from .chunkstore.files import Files
from .chunkstore.interface import ChunkStore
from .chunkstore.lock import DirectoryLock
from .chunkstore.lost import LostStore
from .chunkstore.store import DiskChunkStore
from .settings import TargetSettings

_log = get_logger(__name__)


class Opened(NamedTuple):
    """A target's store, and the lock that goes with it; None if it could not be had."""

    store: ChunkStore
    lock: DirectoryLock | None

    def close(self) -> None:
        """Let go of the directory; the store is its target's to close."""
        if self.lock is not None:
            self.lock.close()


def open_target(said: TargetSettings) -> Opened:
    """The store of one target, made if its directory is empty; a LostStore if it is no use.

    Raises Fs3Error BUSY, and nothing else, if another process has it.
    """
    with ExitStack() as undo:
        lock = None
        try:
            said.path.mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(said.path)
            undo.callback(lock.close)
            settings = ChunkStoreSettings(capacity_bytes=said.capacity_bytes)
            store: ChunkStore = DiskChunkStore(Files(), said.path, settings)
        except OSError as error:
            if isinstance(error, Fs3Error) and error.code is Code.BUSY:
                raise
            reason = error.detail if isinstance(error, Fs3Error) else str(error)
            _log.error("target_lost", target=said.id, path=str(said.path), reason=reason)
            store = LostStore(f"its store does not open: {reason}")
        undo.pop_all()
        return Opened(store, lock)
