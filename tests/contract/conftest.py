"""What contract tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    """Each kind of chunk store, empty."""
    from chunk_updates import SETTINGS

    from fs3.storageserver.chunkstore.files import Files
    from fs3.storageserver.chunkstore.memory import MemoryChunkStore
    from fs3.storageserver.chunkstore.store import DiskChunkStore

    if request.param == "disk":
        made = DiskChunkStore(Files(), tmp_path, SETTINGS)
    else:
        made = MemoryChunkStore()
    yield made
    made.close()
