"""File layout: which chunk, on which chain, holds which bytes of a file.

A file is cut into chunks of ``chunk_bytes``; chunk i lies on chain ``chains[i % len(chains)]``.
The chains of a file are fixed when it is created. They are picked from a chain table by
:func:`pick_chains`: a Fisher-Yates shuffle driven by splitmix64, specified here and never to
change, because old files are found by it (upstream used the standard library's shuffle, which
differs between compiler releases, and had to freeze one of them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fs3.core.types import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    ChainId,
    ChunkId,
    InodeId,
    chunk_id,
)

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is spread. ``chains`` is empty for a directory: its files pick their own."""

    chunk_bytes: int
    stripe: int  # how many chains a new file takes (bounded by the table's size)
    chain_table: int = 1
    chains: tuple[ChainId, ...] = ()


class Piece(NamedTuple):
    """A range of a file that lies within one chunk."""

    chunk: ChunkId
    chain: ChainId
    offset: int  # in the chunk, bytes
    length: int  # bytes
    position: int  # of the piece's first byte in the caller's range, bytes


def check_chunk_bytes(chunk_bytes: int) -> str | None:
    """What is wrong with a chunk size, or None if it is allowed."""
    allowed = CHUNK_BYTES_MIN <= chunk_bytes <= CHUNK_BYTES_MAX
    if allowed and chunk_bytes & (chunk_bytes - 1) == 0:
        return None
    return (
        f"chunk size {chunk_bytes} bytes is not allowed: a power of two"
        f" from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} is"
    )


def pieces(layout: Layout, inode: InodeId, offset: int, length: int) -> Iterator[Piece]:
    """Cut ``[offset, offset + length)`` of a file at its chunk borders, in order."""
    position = 0
    while position < length:
        index, within = divmod(offset + position, layout.chunk_bytes)
        take = min(layout.chunk_bytes - within, length - position)
        chain = layout.chains[index % len(layout.chains)]
        yield Piece(chunk_id(inode, index), chain, within, take, position)
        position += take


def _splitmix64(state: int) -> tuple[int, int]:
    """One step of Steele, Lea and Flood's splitmix64 (OOPSLA 2014): (new state, output)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return state, mixed ^ (mixed >> 31)


def pick_chains(table: Sequence[ChainId], stripe: int, seed: int) -> tuple[ChainId, ...]:
    """``stripe`` different chains of ``table``, shuffled by ``seed`` (any unsigned 64-bit number).

    For i = 0, 1, ...: swap element i with element i + (next splitmix64 output mod (n - i)).
    """
    chains = list(table)
    state = seed & _MASK
    count = min(stripe, len(chains))
    for i in range(count):
        state, drawn = _splitmix64(state)
        j = i + drawn % (len(chains) - i)
        chains[i], chains[j] = chains[j], chains[i]
    return tuple(chains[:count])
