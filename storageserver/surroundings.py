"""What a target and its process are to each other: what it needs of it, what it tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fs3.core import messages as m
from fs3.core.types import ChainVersion, LocalState, TargetId

from .jobs import Payload


class Surroundings(Protocol):
    """What a target needs of its process."""

    def send(self, message: m.Message, payload: Payload | None) -> None:
        """To a neighbour, with the next flush."""

    def flush(self) -> None:
        """Everything sent so far leaves."""

    def state_changed(self) -> None:
        """The manager should hear of this target soon."""

    def refresh_routing(self) -> None:
        """A neighbour knows more than we do."""

    def accuse(self, target: TargetId, reason: str) -> None:
        """Another target lies: the manager should take it out."""

    def address_of(self, target: TargetId) -> str | None:
        """The data port of the node that has it, if that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the manager and operators hear of a target."""

    target: TargetId
    state: LocalState
    chain_version: ChainVersion
    problem: str
    sync_done: int
    sync_total: int
    resync_bytes_per_s: int  # at most so much to a target that is brought up to date; 0: any
