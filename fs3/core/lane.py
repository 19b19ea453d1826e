"""A chunk's lane: the one update that is under way, and what waits behind it.

A lane exists while something happens to its chunk. The update in front holds the chunk's lock by
being there: nothing else touches the chunk until it is finished.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fs3.core.chunks import Tag, UpdateKind
from fs3.core.messages import Forward, Route, Stage, Write
from fs3.core.types import ChainVersion, ChunkId, ChunkVersion


class Phase(Enum):
    """How far an update is on this replica."""

    STAGING = "the store writes the pending version"
    FORWARDED = "the successor has it; its acknowledgement is awaited"
    COMMITTING = "the store makes it the committed version"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One update on one replica."""

    chunk: ChunkId
    kind: UpdateKind
    version: ChunkVersion
    offset: int = 0
    length: int = 0
    checksum: int = 0  # of the data
    tag: Tag | None = None
    sync: bool = False
    data: Any = None  # until it is forwarded; None: the store has the content
    requests: list[Any] = field(default_factory=list)  # clients to answer; only at the head
    phase: Phase = Phase.STAGING
    resync: bool = False  # brings a syncing successor what is committed here; no change here
    exposed: bool = False  # a replica that is gone may have committed it and shown it to readers
    incoming_version: int = 0  # the version the predecessor gave it
    incoming_sequence: int = 0  # the number of the Forward to answer; 0: none waits
    staged_length: int = 0  # of the whole chunk
    staged_checksum: int = 0
    link_sequence: int = 0
    sent_at_ms: int = 0
    resend_after_ms: int = 0

    @property
    def was_taken_up(self) -> bool:
        """Found pending when this replica started, and not yet known to be on stable storage."""
        return self.exposed and self.phase is Phase.STAGING

    def stage(self, chain_version: ChainVersion) -> Stage:
        """What the store is to do."""
        return Stage(
            self.chunk,
            self.kind,
            self.version,
            self.offset,
            self.length,
            self.checksum,
            chain_version,
            self.tag,
            self.sync,
            self.data,
        )

    def forward(self, route: Route, settled: int, *, whole: bool) -> Forward:
        """What the successor is to do; ``whole``: the content itself, not the change."""
        kind, offset, length, checksum = self.kind, self.offset, self.length, self.checksum
        data, self.data = self.data, None
        lacks_data = kind is UpdateKind.WRITE and data is None
        if kind is UpdateKind.REPLACE or lacks_data or (whole and kind is not UpdateKind.REMOVE):
            kind, offset, data = UpdateKind.REPLACE, 0, None
            length, checksum = self.staged_length, self.staged_checksum
        return Forward(
            route,
            self.link_sequence,
            settled,
            self.chunk,
            kind,
            self.version,
            offset,
            length,
            checksum,
            self.tag,
            self.sync,
            data,
            self.resync,
        )

    def is_update_of(self, forward: Forward) -> bool:
        """Whether ``forward`` brings this very update again, in a later chain version."""
        removes = forward.kind is UpdateKind.REMOVE
        if self.resync or self.incoming_version != forward.version:
            return False
        if removes or self.kind is UpdateKind.REMOVE:
            return removes and self.kind is UpdateKind.REMOVE
        # Two serving replicas never give one version to different updates. A syncing one may
        # have taken a copy of an older state under a version that means something else by now.
        known = self.kind is UpdateKind.REPLACE and forward.kind is UpdateKind.REPLACE
        return not known or (self.length, self.checksum) == (forward.length, forward.checksum)


@dataclass(slots=True)
class Lane:
    """Everything that goes on with one chunk."""

    operation: Operation | None = None
    held: Forward | None = None  # came while another update was under way here
    waiting: deque[Write] = field(default_factory=deque)

    @property
    def idle(self) -> bool:
        """Nothing happens: the lane may go."""
        return self.operation is None and self.held is None and not self.waiting
