"""Makes the metadata engines that the conformance suite runs on."""

from __future__ import annotations

from pathlib import Path

from fs3.metaserver.kv.interface import Engine
from fs3.metaserver.kv.memory import MemoryEngine
from fs3.metaserver.kv.rocksdb import RocksEngine

KV_ENGINES = ("memory", "rocksdb")


def no_pause(attempt: int) -> None:
    """Repeat at once: tests do not sleep."""


def open_kv_engine(kind: str, folder: Path) -> Engine:
    """An empty engine of one of the ``KV_ENGINES``."""
    if kind == "memory":
        return MemoryEngine(pause=no_pause)
    return RocksEngine(folder / "kv", pause=no_pause)
