"""What a chunk is to the protocol: versions, updates and exactly-once records. Data, no behaviour.

A chunk has a committed version (what readers see) and at most one pending version (what the next
commit makes of it). The replica core decides on these records; the chunk store keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from fs3.core.types import ChainVersion, ChunkId, ChunkVersion


class UpdateKind(IntEnum):
    """What an update does to a chunk's content. The numbers are stored and sent."""

    WRITE = 1  # put data at an offset; a gap behind the old end becomes zeros
    TRUNCATE = 2  # set the length exactly: cut, or add zeros
    EXTEND = 3  # grow to at least the length with zeros; never cut
    REMOVE = 4  # no chunk afterwards
    REPLACE = 5  # the whole content at a given version, towards a syncing replica
    CREATE = 6  # the whole content of a chunk that is not there; of one that is: no change


class ChunkMeta(NamedTuple):
    """One chunk on one replica. Lengths are bytes; checksums CRC32C of the whole content."""

    version: ChunkVersion = ChunkVersion(0)  # committed; 0: never committed
    chain_version: ChainVersion = ChainVersion(0)  # of the chain when it was committed
    length: int = 0
    checksum: int = 0
    pending_version: ChunkVersion = ChunkVersion(0)  # staged, not committed; 0: none
    pending_length: int = 0
    pending_checksum: int = 0
    pending_removed: bool = False  # the pending version is a removal

    @property
    def committed(self) -> ChunkMeta:
        """Without what is pending."""
        return ChunkMeta(*self[:4])


class Tag(NamedTuple):
    """Which update this is, for ever: a retry carries the same tag and is applied once."""

    client: int  # 64 bits
    channel: int  # 32 bits; a client has one update at a time on a channel
    sequence: int  # 64 bits, grows on a channel


class ChannelRecord(NamedTuple):
    """The newest update on a channel, and its result.

    A dropped pending gives way to the record before it. A chunk's versions begin again at 1 after
    its removal, so ``pending`` is to be asked, not whether ``version`` is the chunk's pending one.
    """

    sequence: int
    chunk: ChunkId
    version: ChunkVersion
    length: int  # of the chunk after the update
    checksum: int  # of the chunk after the update
    pending: bool = False  # staged, but not committed yet


class ChunkTable(Protocol):
    """What a replica core may ask of its store without leaving its step."""

    def meta(self, chunk: ChunkId) -> ChunkMeta | None:
        """The chunk's versions, or None if it has neither a committed nor a pending one."""

    def channel(self, client: int, channel: int) -> ChannelRecord | None:
        """The newest update staged or committed on the channel, or None if none is known."""

    def count(self) -> int:
        """How many chunks it knows."""

    def scan(
        self, after: ChunkId | None, limit: int, *, owner: int | None = None
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """Up to ``limit`` chunks behind ``after`` in chunk order, of one owner if given."""

    def scan_channels(
        self, after: tuple[int, int] | None, limit: int
    ) -> Sequence[tuple[int, int, ChannelRecord]]:
        """Up to ``limit`` channels (client, channel, record) behind ``after``, in that order."""
