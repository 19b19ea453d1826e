"""What goes in and out of a replica core: events, messages between replicas, effects. Data only.

``data`` is opaque to the core: bytes-like in the simulator, a pooled buffer in the daemon. The
core passes on what an event brought, in one Stage and at most one Forward, and keeps no reference
after that: what must be sent again comes from the store. Order matters: effects are performed in
the order given, a ServeRead before any effect behind it, and the stores of one chunk land in the
order asked.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag, UpdateKind
from fs3.core.codes import Code
from fs3.core.types import Chain, ChainId, ChainVersion, ChunkId, ChunkVersion, LocalState, TargetId

# --- messages between neighbours of a chain ------------------------------------------------------


class Route(NamedTuple):
    """Where a message comes from and goes to, and in which version of their chain it was sent."""

    source: TargetId
    destination: TargetId
    chain: ChainId
    chain_version: ChainVersion


class Forward(NamedTuple):
    """An update on its way down. ``data`` None with REPLACE: the shell fills in the content.

    Version and checksum stay as they are given: if the store has another content by now, the
    update is settled, and the receiver knows it.
    """

    route: Route
    link_sequence: int  # numbers the forwards of one predecessor in one chain version, from 1
    settled: int  # the answers to all up to this number have come: the receiver may forget them
    chunk: ChunkId
    kind: UpdateKind
    version: ChunkVersion
    offset: int
    length: int
    checksum: int  # of the data
    tag: Tag | None
    sync: bool  # on stable storage before the acknowledgement
    data: Any
    copy: bool = False  # of a resync: nobody waits for it; known to the sender only


class Ack(NamedTuple):
    """An update's way back. ``code`` OK: committed by everybody downstream; else by nobody."""

    route: Route
    link_sequence: int  # of the Forward that it answers: chunk and version may come again
    chunk: ChunkId
    version: ChunkVersion
    code: Code
    length: int  # of the whole chunk, bytes
    checksum: int  # of the whole chunk
    detail: str


class Query(NamedTuple):
    """Asks the last serving replica which version of a chunk is committed."""

    route: Route
    chunk: ChunkId
    number: int  # comes back in the Answer: an answer to an older question may be stale


class Answer(NamedTuple):
    """... and what it says. Version 0: none."""

    route: Route
    chunk: ChunkId
    number: int
    version: ChunkVersion


class SyncRequest(NamedTuple):
    """The predecessor asks a syncing replica what it has, behind ``after`` (empty: from the start).

    ``done`` and ``total`` tell it how far the resync is, in chunks.
    """

    route: Route
    round: int
    after: bytes
    limit: int
    done: int
    total: int


class SyncPage(NamedTuple):
    """What a syncing replica has. ``last``: nothing comes behind this page."""

    route: Route
    round: int
    after: bytes
    records: tuple[tuple[ChunkId, ChunkMeta], ...]
    last: bool


class SyncChannels(NamedTuple):
    """Exactly-once records in (client, channel) order, the last one's key in ``after``.

    Answered by the same without records.
    """

    route: Route
    after: tuple[int, int]
    channels: tuple[tuple[int, int, ChannelRecord], ...]


class SyncDone(NamedTuple):
    """The syncing replica has everything."""

    route: Route


class Join(NamedTuple):
    """A replica that has just become serving asks: does its predecessor know?"""

    route: Route


class Welcome(NamedTuple):
    """... it does, and so answers no more for the chain as it was."""

    route: Route


class Used(NamedTuple):
    """Tells the head which values were used here, those used last first. A hint: it may be lost."""

    route: Route
    chunks: tuple[ChunkId, ...]


Message: TypeAlias = (
    Forward
    | Ack
    | Query
    | Answer
    | SyncRequest
    | SyncPage
    | SyncChannels
    | SyncDone
    | Join
    | Welcome
    | Used
)


# --- events --------------------------------------------------------------------------------------


class Write(NamedTuple):
    """A client's update, at the head. ``request`` is the shell's handle for the reply."""

    request: Any
    chain_version: ChainVersion
    chunk: ChunkId
    kind: UpdateKind
    offset: int
    length: int
    checksum: int
    tag: Tag | None
    sync: bool
    data: Any


class Read(NamedTuple):
    """A client's read of a chunk with a pending version."""

    request: Any
    chain_version: ChainVersion
    chunk: ChunkId


class Staged(NamedTuple):
    """A Stage effect is done; if it asked for sync, on stable storage."""

    chunk: ChunkId
    version: ChunkVersion
    code: Code
    length: int
    checksum: int
    detail: str


class Committed(NamedTuple):
    """A Commit effect is done."""

    chunk: ChunkId
    version: ChunkVersion
    code: Code


class Flushed(NamedTuple):
    """A Flush effect is done."""

    number: int


class ChainChanged(NamedTuple):
    """The manager's new view of this replica's chain."""

    chain: Chain


class LeaseRenewed(NamedTuple):
    """May serve until ``until_ms`` (own clock) in that chain version or a later one."""

    chain_version: ChainVersion
    until_ms: int


class PeerUp(NamedTuple):
    """A connection to a neighbour was made anew: what was sent before may be lost."""

    target: TargetId


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = (
    Write
    | Read
    | Staged
    | Committed
    | Flushed
    | ChainChanged
    | LeaseRenewed
    | PeerUp
    | Tick
    | Message
)


# --- effects -------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """Store a pending version; answer with Staged. ``sync``: first on stable storage."""

    chunk: ChunkId
    kind: UpdateKind
    version: ChunkVersion
    offset: int
    length: int
    checksum: int
    chain_version: ChainVersion
    tag: Tag | None
    sync: bool
    data: Any


class Commit(NamedTuple):
    """Make the pending version the committed one; answer with Committed."""

    chunk: ChunkId
    version: ChunkVersion
    chain_version: ChainVersion


class Drop(NamedTuple):
    """Forget the pending version."""

    chunk: ChunkId


class PutChannels(NamedTuple):
    """Store a predecessor's exactly-once records."""

    channels: tuple[tuple[int, int, ChannelRecord], ...]


class Flush(NamedTuple):
    """Bring every effect before this one to stable storage; answer with Flushed."""

    number: int


class Send(NamedTuple):
    """Send to ``message.route.destination``; it may be lost, and is sent again if it matters."""

    message: Message


class Reply(NamedTuple):
    """Answer a client's Write, or refuse its Read."""

    request: Any
    code: Code
    version: ChunkVersion
    length: int
    checksum: int
    detail: str


class ServeRead(NamedTuple):
    """Answer a Read from the committed version, or from the pending one."""

    request: Any
    chunk: ChunkId
    pending: bool


class NoteUses(NamedTuple):
    """Another replica has used these values, those that stand first last."""

    chunks: tuple[ChunkId, ...]


class RefreshRouting(NamedTuple):
    """A neighbour is in a newer chain version: ask the manager."""

    chain_version: ChainVersion


class StateChanged(NamedTuple):
    """This replica's local state is a new one: tell the manager soon."""

    state: LocalState


class Mismatch(NamedTuple):
    """Successor and replica disagree about a chunk's content: one of the two lies."""

    chunk: ChunkId
    version: ChunkVersion
    successor: TargetId
    checksum: int
    successor_checksum: int


class Fault(NamedTuple):
    """This replica does not hold what it should: take its target offline."""

    detail: str


class Demoted(NamedTuple):
    """This replica is no writable member of its chain any more. Discard the core."""


Effect: TypeAlias = (
    Stage
    | Commit
    | Drop
    | PutChannels
    | Flush
    | Send
    | Reply
    | ServeRead
    | NoteUses
    | RefreshRouting
    | StateChanged
    | Mismatch
    | Fault
    | Demoted
)
