"""Ids and the cluster's shape: what every core, daemon and client agrees on. Standard library only.

Ids are ints with a name. ``ChunkId`` is 24 bytes: owner (8, big-endian: an inode or a KV
namespace) then slot (16, big-endian: the chunk's index in its file, or a key's digest), so that one
owner's chunks are neighbours and in order in any ordered store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

NodeId = NewType("NodeId", int)
TargetId = NewType("TargetId", int)
ChainId = NewType("ChainId", int)
ChainVersion = NewType("ChainVersion", int)
ChunkVersion = NewType("ChunkVersion", int)
InodeId = NewType("InodeId", int)
ChunkId = NewType("ChunkId", bytes)

CHUNK_ID_BYTES = 24
CHUNK_BYTES_MIN = 64 << 10
CHUNK_BYTES_MAX = 64 << 20
CHUNK_ROOM_BYTES = 16 << 10  # more than that in a chunk of the KV cache: for the value's header
CHUNK_CONTENT_BYTES_MAX = CHUNK_BYTES_MAX + CHUNK_ROOM_BYTES
CHUNK_BYTES_DEFAULT = 1 << 20


def chunk_id(owner: int, slot: int) -> ChunkId:
    """The 24 bytes that name chunk ``slot`` of ``owner`` (both unsigned)."""
    return ChunkId(owner.to_bytes(8, "big") + slot.to_bytes(16, "big"))


def chunk_owner(chunk: ChunkId) -> int:
    """The inode or namespace that ``chunk`` belongs to."""
    return int.from_bytes(chunk[:8], "big")


def chunk_slot(chunk: ChunkId) -> int:
    """The chunk's index in its file, or its key's digest."""
    return int.from_bytes(chunk[8:], "big")


class PublicState(IntEnum):
    """A target's state in its chain, decided by the manager. A chain is ordered by it."""

    SERVING = 1  # reads and writes
    LASTSRV = 2  # was the last to serve; holds the newest data; nothing until it is back
    SYNCING = 3  # writes, and resync from its predecessor; no reads
    WAITING = 4  # back, waits for its turn to sync
    OFFLINE = 5  # away


class LocalState(IntEnum):
    """What a storageserver says of its own target."""

    UPTODATE = 1  # open, and complete as of the chain version reported with it
    ONLINE = 2  # open, but may have missed writes
    OFFLINE = 3  # closed, failed, or its node is not heard of


@dataclass(frozen=True, slots=True)
class Replica:
    """One place in a chain."""

    target: TargetId
    node: NodeId
    state: PublicState


@dataclass(frozen=True, slots=True)
class Chain:
    """Replicas in the order writes travel, head first; ``version`` grows at every change."""

    chain: ChainId
    version: ChainVersion
    replicas: tuple[Replica, ...]
    preferred: tuple[TargetId, ...] = ()  # the order the operator wants; empty: no preference

    @property
    def serving(self) -> tuple[Replica, ...]:
        """The replicas that answer reads, head first."""
        return tuple(r for r in self.replicas if r.state is PublicState.SERVING)

    @property
    def writable(self) -> tuple[Replica, ...]:
        """The replicas that a write passes, head first: the serving ones, then a syncing one."""
        return tuple(
            r for r in self.replicas if r.state in (PublicState.SERVING, PublicState.SYNCING)
        )

    def replica(self, target: TargetId) -> Replica | None:
        """The place of ``target``, or None if it is not in this chain."""
        return next((r for r in self.replicas if r.target == target), None)
