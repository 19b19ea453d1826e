"""Chunks that are there whole at once: staged and committed in one, where nobody else is asked.

What a put of the KV cache is on a chain of one replica. As with every mutation the data comes
first, then one atomic batch of records, then memory; a power cut leaves such a chunk whole or not
there, since its record is newer than the durable mark (see store.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fs3.core.chunks import ChannelRecord
from fs3.core.types import ChunkId
from fs3.errors import Code

from .allocator import Allocator
from .files import Operation
from .index import Index
from .interface import StageRequest, StageResult
from .records import Pending, chunk_key, encode_chunk
from .scanning import channel_record

Stage: TypeAlias = Callable[[StageRequest], tuple[StageResult, Pending | None, list[Operation]]]
KeepChannel: TypeAlias = Callable[[tuple[int, int], ChannelRecord, list[Operation]], None]
_THERE = StageResult(Code.EXISTS)


def create_chunks(
    updates: Sequence[StageRequest],
    index: Index,
    allocator: Allocator,
    *,
    stage: Stage,
    keep_channel: KeepChannel,
    write: Callable[[list[Operation]], bool],
) -> list[StageResult]:
    """See ``ChunkStore.create``; under the store's lock."""
    results: list[StageResult] = []
    made: dict[ChunkId, Pending] = {}
    operations: list[Operation] = []
    for update in updates:
        if update.chunk in index.row_of or update.chunk in made:
            results.append(_THERE)
            continue
        result, pending, records = stage(update)
        results.append(result)
        if pending is not None:
            made[update.chunk] = pending
            operations += records
    for chunk, pending in made.items():
        operations.append((chunk_key(chunk), encode_chunk(pending.version, None)))
        if pending.tag:
            record = channel_record(chunk, pending, pending=False)
            keep_channel(pending.tag[:2], record, operations)
    if not write(operations):
        for pending in made.values():
            allocator.release(pending.version.size_class, pending.version.block)
        return results
    for chunk, pending in made.items():
        index.put(chunk, pending.version, None)
    return results
