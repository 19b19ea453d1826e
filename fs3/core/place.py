"""A target's place in its chain: who is before it, who behind it, and may it serve."""

from __future__ import annotations

from fs3.core.messages import Route
from fs3.core.types import Chain, PublicState, Replica, TargetId


class Place:
    """Derived from one version of the chain; a new version makes a new place."""

    __slots__ = ("chain", "last_serving", "predecessor", "state", "successor", "target")

    def __init__(self, target: TargetId, chain: Chain) -> None:
        writable = chain.writable
        mine = next((i for i, r in enumerate(writable) if r.target == target), None)
        self.target = target
        self.chain = chain
        self.state: PublicState | None = None  # None: no writable member of the chain
        self.predecessor: TargetId | None = None
        self.successor: Replica | None = None
        if mine is not None:
            self.state = writable[mine].state
            self.predecessor = writable[mine - 1].target if mine else None
            self.successor = writable[mine + 1] if mine + 1 < len(writable) else None
        self.last_serving = chain.serving[-1].target if chain.serving else None

    @property
    def is_head(self) -> bool:
        """Clients' writes enter here."""
        return self.state is PublicState.SERVING and self.predecessor is None

    @property
    def feeds_syncing(self) -> bool:
        """The successor is syncing, from here."""
        return self.successor is not None and self.successor.state is PublicState.SYNCING

    def route(self, destination: TargetId) -> Route:
        """The address line of a message of this replica."""
        return Route(self.target, destination, self.chain.chain, self.chain.version)
