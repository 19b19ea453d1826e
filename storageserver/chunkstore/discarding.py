"""Many chunks removed at once, without a version: how values of the KV cache make room.

One atomic batch of records, then memory, in the order of every mutation (see store.py). Nothing is
done chunk by chunk that can be done for all: what a discard costs is mostly that of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fs3.core.types import ChunkId

from .allocator import Readers
from .epochs import Epochs
from .files import Operation
from .index import Index
from .records import CHUNK_PREFIX


def discard_chunks(
    chunks: Sequence[ChunkId],
    index: Index,
    epochs: Epochs,
    readers: Readers,
    write: Callable[[list[Operation]], bool],
) -> list[ChunkId]:
    """See ``ChunkStore.discard``; under the store's lock."""
    known, pendings = index.row_of, index.pendings
    gone = [chunk for chunk in dict.fromkeys(chunks) if chunk in known]
    if pendings:
        gone = [chunk for chunk in gone if chunk not in pendings]
    if not gone or not write([(CHUNK_PREFIX + chunk, None) for chunk in gone]):
        return []
    rows, versions = index.remove_all(gone)
    # Rows and blocks are let go when the index shows the chunks no more: see publishing.py.
    readers.retire(lambda _, rows: index.release_rows(rows), 0, rows.tolist())
    epochs.discarded(gone, versions)
    return gone
