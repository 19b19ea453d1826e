"""The cluster manager as the metaserver runs it, around the real next_chain and the real leases.

Durable: the chain and each node's incarnation. Everything else is forgotten when it restarts. It
grants a lease in the same step in which it takes a heartbeat and decides on the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fs3.core.chain import add_replica, next_chain, remove_replica, violation
from fs3.core.lease import NodeLeases
from fs3.core.reach import Cuts
from fs3.core.types import Chain, ChainVersion, LocalState, NodeId, PublicState, Replica, TargetId

from .swarm import Settings
from .world import Violation, World

_TICK_MS = 100
_LEASED = (PublicState.SERVING, PublicState.SYNCING)
_ASSUMED = {
    PublicState.SERVING: LocalState.UPTODATE,
    PublicState.LASTSRV: LocalState.OFFLINE,
    PublicState.SYNCING: LocalState.ONLINE,
    PublicState.WAITING: LocalState.UPTODATE,
    PublicState.OFFLINE: LocalState.OFFLINE,
}


@dataclass(frozen=True, slots=True)
class Report:
    """A heartbeat. Node and target have one number here."""

    node: NodeId
    incarnation: int
    sequence: int
    state: LocalState
    chain_version: ChainVersion
    unreachable: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Grant:
    """Its answer. ``leased``: the chain version of the lease; None: no lease, or unknown node."""

    leased: ChainVersion | None
    chain: Chain
    unknown: bool = False


class Manager:
    """One at a time, and always the same store."""

    def __init__(
        self, world: World, settings: Settings, chain: Chain, changed: Callable[[Chain], None]
    ) -> None:
        self.chain = chain
        self.up = True
        self._world = world
        self._settings = settings
        self._changed = changed
        self._incarnations: dict[NodeId, int] = {}  # 1 for those not in it
        self._per_mille = 1000 + world.random.randint(0, settings.drift_per_mille)
        self._epoch = 0
        self._start()

    def _start(self) -> None:
        self._leases = NodeLeases(self._settings.lease_ms, self._clock_ms())
        self._local: dict[TargetId, LocalState] = {}
        self._sequences: dict[NodeId, int] = {}
        self._cuts = Cuts(self._clock_ms())
        self._tick(self._epoch)

    def _clock_ms(self) -> int:
        return self._world.now_ms * self._per_mille // 1000

    def restart(self, down_ms: int) -> None:
        """Away for a while, and back without its memories."""
        self._world.note("manager", "restarts")
        self.up = False
        self._epoch += 1

        def back() -> None:
            self.up = True
            self._start()

        self._world.after(down_ms, back)

    def _tick(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._settle()
            self._world.after(_TICK_MS, lambda: self._tick(epoch))

    def hear(self, report: Report) -> Grant:
        """A heartbeat."""
        if self._incarnations.get(report.node, 1) != report.incarnation:
            return Grant(None, self.chain, unknown=True)
        if report.sequence <= self._sequences.get(report.node, 0):
            return Grant(None, self.chain)
        self._sequences[report.node] = report.sequence
        self._leases.heard(report.node, self._clock_ms())
        self._cuts.say(report.node, report.unreachable)
        target = TargetId(report.node)
        if report.state is LocalState.OFFLINE or report.chain_version == self.chain.version:
            self._local[target] = report.state
        self._settle()
        place = self.chain.replica(target)
        leased = place is not None and place.state in _LEASED
        leased = leased and not self._cuts.is_leaving(target)
        return Grant(self.chain.version if leased else None, self.chain)

    def register(self, node: NodeId, incarnation: int) -> None:
        """A process has started; the one before it is dead."""
        if incarnation <= self._incarnations.get(node, 1):
            return
        self._incarnations[node] = incarnation
        self._sequences.pop(node, None)
        self._leases.heard(node, self._clock_ms())
        self._cuts.forget(node, self._clock_ms())
        self._local[TargetId(node)] = LocalState.OFFLINE
        self._settle()

    def _settle(self) -> None:
        for replica in self.chain.replicas:
            if self._leases.expired(replica.node, self._clock_ms()):
                self._local[replica.target] = LocalState.OFFLINE
                self._cuts.forget(replica.node, self._clock_ms())
        self._cuts.settle(self._clock_ms())
        local = {
            r.target: self._local.get(r.target, _ASSUMED[r.state]) for r in self.chain.replicas
        }
        seen = self._cuts.local_states(self.chain, local, self._clock_ms(), self._leases.ended_ms)
        self._adopt(next_chain(self.chain, seen))

    def _adopt(self, chain: Chain) -> None:
        if chain is self.chain:
            return
        problem = violation(chain)
        if problem is not None:
            raise Violation(f"{problem}: {chain}")
        self.chain = chain
        self._world.note("manager", describe(chain))
        self._changed(chain)

    def add(self, target: TargetId) -> None:
        """An operator's order."""
        replica = Replica(target, NodeId(target), PublicState.OFFLINE)
        self._adopt(add_replica(self.chain, replica))

    def remove(self) -> TargetId | None:
        """An operator's order: take out one that is not there anyway, if there is one."""
        gone = [
            r.target
            for r in self.chain.replicas
            if r.state in (PublicState.OFFLINE, PublicState.WAITING)
        ]
        if not gone or len(self.chain.replicas) < 2:
            return None
        target = self._world.random.choice(gone)
        self._adopt(remove_replica(self.chain, target))
        return target


def describe(chain: Chain) -> str:
    """In one line."""
    return f"chain {chain.version}: " + " ".join(
        f"{r.target}:{r.state.name}" for r in chain.replicas
    )
