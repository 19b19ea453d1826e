"""Operators' orders that take a while: what the manager keeps of them, and what it tells.

A job is worked off in *moves*: one change of one chain's members each. At most one move is under
way in a chain. Everything else a job needs to know stands in the routing table, so a manager that
restarts goes on where the one before it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fs3.core.types import ChainId, TargetId


class JobKind(IntEnum):
    """What was ordered. The numbers are stored and sent."""

    ADD = 1  # a free target into a chain
    REMOVE = 2  # a target out of its chain
    REPLACE = 3  # a target by a free one
    DRAIN = 4  # every target of a node
    ROTATE = 5  # chains into their preferred order


class JobState(IntEnum):
    """How far it is. The numbers are stored and sent."""

    RUNNING = 1
    CANCELLING = 2  # what it had begun is being undone or finished
    DONE = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """``new`` comes in, and when it serves ``old`` goes; 0: none. Without both: a rotation."""

    chain: ChainId
    old: TargetId = TargetId(0)  # noqa: RUF009 - an int
    new: TargetId = TargetId(0)  # noqa: RUF009 - an int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One order. ``subject``: the node of a DRAIN, the chain of others; 0 for "all chains"."""

    number: int
    kind: JobKind
    subject: int
    started_ns: int
    state: JobState = JobState.RUNNING
    moves: tuple[Move, ...] = ()  # under way
    moves_done: int = 0
    bytes_done: int = 0  # of moves that are done

    @property
    def is_open(self) -> bool:
        """Something is still to be done."""
        return self.state in (JobState.RUNNING, JobState.CANCELLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """A job and how it stands now."""

    job: Job
    moves_total: int
    bytes_done: int
    bytes_total: int
    remaining_ms: int | None  # an estimate; None: too early to tell
    waits_for: str  # why nothing goes on; empty if it does
