"""Messages of a chain version that this replica has not heard of yet, in the order they came.

Bounded: what is not kept is sent again by whoever needs an answer.
"""

from __future__ import annotations

from fs3.core.limits import Limits
from fs3.core.messages import Effect, Forward, Message, RefreshRouting
from fs3.core.types import ChainVersion


class Parking:
    """The messages, and which version was asked for because of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._messages: list[Message] = []
        self._bytes = 0
        self._asked_for = ChainVersion(0)

    def park(self, message: Message) -> list[Effect]:
        """Keep it if there is room; ask for the routing that it speaks of, once."""
        size = message.length if isinstance(message, Forward) and message.data is not None else 0
        room = self._bytes + size <= self._limits.parked_bytes
        if room and len(self._messages) < self._limits.parked:
            self._messages.append(message)
            self._bytes += size
        if message.route.chain_version <= self._asked_for:
            return []
        self._asked_for = message.route.chain_version
        return [RefreshRouting(self._asked_for)]

    def tick(self) -> list[Effect]:
        """Ask again while somebody waits."""
        return [RefreshRouting(self._asked_for)] if self._messages else []

    def take_all(self) -> list[Message]:
        """Everything kept: the chain has changed."""
        messages, self._messages, self._bytes = self._messages, [], 0
        return messages
