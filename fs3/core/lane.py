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
from fs3.core.messages import Write
from fs3.core.types import ChunkId, ChunkVersion


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
    data: Any = None  # None: the store has the content
    requests: list[Any] = field(default_factory=list)  # clients to answer; only at the head
    phase: Phase = Phase.STAGING
    resync: bool = False  # brings a syncing successor what is committed here; no change here
    incoming_version: int = 0  # the version the predecessor gave it
    staged_length: int = 0  # of the whole chunk
    staged_checksum: int = 0
    link_sequence: int = 0
    incoming_sequence: int = 0  # the predecessor's number of the forward that brought it
    sent_at_ms: int = 0
    resend_after_ms: int = 0


@dataclass(slots=True)
class Lane:
    """Everything that goes on with one chunk."""

    operation: Operation | None = None
    waiting: deque[Write] = field(default_factory=deque)

    @property
    def idle(self) -> bool:
        """Nothing happens: the lane may go."""
        return self.operation is None and not self.waiting
