"""The whole store checked against itself: records, memory, blocks and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fs3.core.types import ChunkId

from .allocator import Allocator
from .datafiles import DataFiles
from .files import Records
from .index import Index
from .interface import BlockId
from .reading import Reader
from .records import (
    CHANNEL_PREFIX,
    CHUNK_PREFIX,
    NO_CLASS,
    ChunkRecord,
    decode_channel,
    decode_channel_key,
    decode_chunk,
)

_VERIFY_BYTES = 1 << 20


def check_store(
    records: Records,
    data: DataFiles,
    index: Index,
    allocator: Allocator,
    reader: Reader,
    held: Iterable[BlockId],
) -> list[str]:
    """Every inconsistency found. Nothing may be pinned, read or changed meanwhile."""
    problems: list[str] = []
    stored: dict[ChunkId, ChunkRecord] = {}
    channels = {}
    for key, value in records.items(b""):
        if key.startswith(CHUNK_PREFIX):
            stored[ChunkId(key[1:])] = decode_chunk(ChunkId(key[1:]), value)
        elif key.startswith(CHANNEL_PREFIX):
            channels[decode_channel_key(key)] = decode_channel(value)
    if channels != index.channels:
        problems.append("the stored channels differ from those in memory")
    problems += _check_index(stored, index)
    problems += _check_blocks(stored, data, allocator, held)
    scratch = memoryview(bytearray(_VERIFY_BYTES))
    for chunk, (committed, pending, _) in stored.items():
        for version in (committed, pending.version) if pending else (committed,):
            wrong = reader.verify_version(version, scratch)
            if wrong is not None:
                problems.append(f"chunk {chunk.hex()} version {version.version}: {wrong}")
    return problems


def _check_index(stored: dict[ChunkId, ChunkRecord], index: Index) -> list[str]:
    problems = [
        f"chunk {chunk.hex()} is in memory but has no record"
        for chunk in index.row_of
        if chunk not in stored
    ]
    for chunk, record in stored.items():
        memory = (index.version(chunk), index.pendings.get(chunk))
        if memory != record[:2]:
            problems.append(f"chunk {chunk.hex()}: stored {record[:2]}, in memory {memory}")
    return problems


def _check_blocks(
    stored: dict[ChunkId, ChunkRecord],
    data: DataFiles,
    allocator: Allocator,
    held: Iterable[BlockId],
) -> list[str]:
    problems: list[str] = []
    owners: dict[tuple[int, int], ChunkId] = {}
    counts = Counter(tuple(block) for block in held)
    for chunk, (committed, pending, _) in stored.items():
        for version in (committed, pending.version) if pending else (committed,):
            if version.size_class == NO_CLASS:
                continue
            place = (version.size_class, version.block)
            counts[place] += 1
            if owners.setdefault(place, chunk) != chunk:
                problems.append(f"block {place}: {owners[place].hex()} and {chunk.hex()} lie in it")
    for size_class, blocks in enumerate(data.blocks):
        free = Counter(allocator.free_blocks(size_class))
        for block in range(blocks):
            place = (size_class, block)
            if allocator.holders(*place) != counts[place]:
                problems.append(
                    f"block {place} has {allocator.holders(*place)} holders, not {counts[place]}"
                )
            if free[block] != (counts[place] == 0):
                problems.append(f"block {place} is {free[block]} times on the free list")
    return problems
