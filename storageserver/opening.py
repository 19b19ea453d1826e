"""Opening the stores of a storageserver's targets: one that cannot be opened keeps nobody else."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from fs3 import durable
from fs3.core.types import TargetId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

from .chunkstore.datafiles import ChunkStoreSettings
from .chunkstore.files import BOOT_ID_FILE, Files
from .chunkstore.interface import ChunkStore
from .chunkstore.lock import DirectoryLock
from .chunkstore.lost import LostStore
from .chunkstore.store import DiskChunkStore
from .identity import Identity
from .settings import TargetSettings

_log = get_logger(__name__)
_NOT_LOST = (Code.BUSY, Code.WRONG_CLUSTER, Code.INVALID)  # there, but not ours


class Opened(NamedTuple):
    """A target's store; its lock and identity, None if they could not be had."""

    store: ChunkStore
    lock: DirectoryLock | None
    identity: Identity | None

    def close(self) -> None:
        """Let go of the directory; the store is its target's to close."""
        if self.lock is not None:
            self.lock.close()


def open_target(said: TargetSettings, cluster_id: str, boot_id_file: Path = BOOT_ID_FILE) -> Opened:
    """The store of one target, made if its directory is empty; a LostStore if it is no use.

    Raises Fs3Error BUSY if another process has it, WRONG_CLUSTER or INVALID if it is another
    target's.
    """
    with ExitStack() as undo:
        lock = identity = None
        try:
            durable.make_directory(said.path)
            lock = DirectoryLock(said.path)
            undo.callback(lock.close)
            identity = Identity(said.path, cluster_id, TargetId(said.id))
            settings = ChunkStoreSettings(capacity_bytes=said.capacity_bytes)
            store: ChunkStore = DiskChunkStore(Files(boot_id_file), said.path, settings)
        except OSError as error:
            if isinstance(error, Fs3Error) and error.code in _NOT_LOST:
                raise
            reason = error.detail if isinstance(error, Fs3Error) else str(error)
            _log.error("target_lost", target=said.id, path=str(said.path), reason=reason)
            store = LostStore(f"its store does not open: {reason}")
        undo.pop_all()
        return Opened(store, lock, identity)
