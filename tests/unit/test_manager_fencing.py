"""Fencing, explored: whatever is lost, late or restarted, only who may serve does.

A state machine of one manager and three storageservers whose clocks run at different speeds.
Messages wait until a rule delivers or loses them. The storageservers follow the rules that real
ones follow; the invariant looks at all of them at once, as no process can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fs3.core.chain import violation
from fs3.core.lease import DRIFT_PER_MILLE, TargetLease
from fs3.core.reach import TRUST_MS_MAX
from fs3.core.types import Chain, ChainId, ChainVersion, LocalState, NodeId, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.metaserver.kv.memory import MemoryEngine
from fs3.metaserver.manager import Manager
from fs3.metaserver.manager_members import Report
from fs3.metaserver.manager_store import ClusterStore
from fs3.metaserver.settings import ManagerSettings
from fs3.routing import NodeInfo

UP, ON, OFF = LocalState.UPTODATE, LocalState.ONLINE, LocalState.OFFLINE
LEASE_MS = 3000
SETTINGS = ManagerSettings(lease_ms=LEASE_MS)
NODES = (1, 2, 3)
nodes = st.sampled_from(NODES)


class World:
    """True time, which is also the manager's."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ns(self) -> int:
        return self.now_ms * 1_000_000


@dataclass
class Beat:
    """A heartbeat under way."""

    incarnation: int
    sequence: int
    sent_ms: int
    report: Report
    unreachable: list[NodeId]


@dataclass
class Storage:
    """A storageserver with target 10 * node. Its clock is slower the higher its number."""

    node: int
    world: World
    chain: Chain | None = None  # as it knows it
    local: LocalState = ON
    incarnation: int = 1
    sequence: int = 0
    lease: TargetLease | None = None
    missed_writes: bool = False  # was out of the chain, and has not synced since
    beats: list[Beat] = field(default_factory=list)
    unreachable: set[NodeId] = field(default_factory=set)

    @property
    def target(self) -> TargetId:
        return TargetId(10 * self.node)

    @property
    def now_ms(self) -> int:
        slower = DRIFT_PER_MILLE * (self.node - 1) // (len(NODES) - 1)
        return self.world.now_ms * 1000 // (1000 + slower)

    @property
    def info(self) -> NodeInfo:
        return NodeInfo(
            node=NodeId(self.node),
            host=f"h{self.node}",
            data_address="127.0.0.1:1",
            control_address="",
            incarnation=self.incarnation,
            alive=True,
        )

    def report(self) -> Report:
        version = self.chain.version if self.chain else ChainVersion(0)
        return Report(target=self.target, local_state=self.local, chain_version=version)

    @property
    def place(self) -> PublicState | None:
        replica = self.chain.replica(self.target) if self.chain else None
        return replica.state if replica else None

    def learn(self, chain: Chain) -> None:
        """Routing came: what a storageserver does with its target then."""
        if self.chain is not None and chain.version <= self.chain.version:
            return
        self.chain = chain
        if self.place is PublicState.SERVING and self.local is ON:
            self.local = UP
        elif self.local is UP and self.place not in (PublicState.SERVING, PublicState.SYNCING):
            self.local = OFF  # it missed writes: it closes, and opens anew by another rule

    def serves(self) -> bool:
        lease, chain = self.lease, self.chain
        if lease is None or chain is None or self.local is not UP:
            return False
        return self.place is PublicState.SERVING and lease.allows(chain.version, self.now_ms)


class Fencing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.engine = MemoryEngine()
        self.manager = Manager(ClusterStore(self.engine), self.world, SETTINGS)
        self.storages = {n: Storage(n, self.world) for n in NODES}
        self.versions: dict[int, Chain] = {}
        for storage in self.storages.values():
            self.manager.register(storage.info, [storage.report()])
        self.manager.create_chains(3, 1)
        for storage in self.storages.values():
            storage.learn(self.truth)
        for node in NODES:
            self.send(node)
            self.deliver(node, answered=True)

    @property
    def truth(self) -> Chain:
        return self.manager.feed.current.chains[ChainId(1)]

    @rule(span_ms=st.sampled_from([1, 29, 500, 2999, 3031]))
    def time_passes(self, span_ms: int) -> None:
        self.world.now_ms += span_ms

    @rule()
    def tick(self) -> None:
        self.manager.tick()

    @rule(node=nodes)
    def send(self, node: int) -> None:
        storage = self.storages[node]
        storage.sequence += 1
        unreachable = sorted(storage.unreachable)
        storage.beats.append(
            Beat(
                storage.incarnation,
                storage.sequence,
                storage.now_ms,
                storage.report(),
                unreachable,
            )
        )

    @rule(node=nodes, other=nodes)
    def loses_a_neighbour(self, node: int, other: int) -> None:
        self.storages[node].unreachable.add(NodeId(other))

    @rule(node=nodes)
    def finds_its_neighbours(self, node: int) -> None:
        self.storages[node].unreachable.clear()

    @rule(node=nodes, answered=st.booleans())
    def deliver(self, node: int, answered: bool) -> None:
        """The oldest heartbeat arrives, however old; its answer may be lost."""
        storage = self.storages[node]
        if not storage.beats:
            return
        beat = storage.beats.pop(0)
        try:
            granted = self.manager.heartbeat(
                NodeId(node), beat.incarnation, beat.sequence, [beat.report], beat.unreachable
            )
        except Fs3Error as error:
            if error.code not in (Code.UNKNOWN_NODE, Code.STALE_UPDATE):
                raise
            return
        if not answered or beat.incarnation != storage.incarnation:
            return
        for target, version in granted.leases:
            fresh = TargetLease.granted(target, version, beat.sent_ms, LEASE_MS)
            if storage.chain is not None and version <= storage.chain.version:
                storage.lease = max(storage.lease or fresh, fresh, key=lambda held: held.until_ms)

    @rule(node=nodes)
    def lose(self, node: int) -> None:
        del self.storages[node].beats[:1]

    @rule(node=nodes)
    def beat(self, node: int) -> None:
        """What happens most: a round trip without trouble."""
        self.storages[node].beats.clear()
        self.send(node)
        self.deliver(node, answered=True)

    @rule(node=nodes)
    def routing_arrives(self, node: int) -> None:
        self.storages[node].learn(self.truth)

    @rule(node=nodes)
    def target_opens(self, node: int) -> None:
        """Once the routing it has shows that nobody counts on it any more."""
        storage = self.storages[node]
        gone = (PublicState.OFFLINE, PublicState.WAITING, PublicState.LASTSRV)
        if storage.local is OFF and storage.place in gone:
            storage.local = ON

    @rule(node=nodes)
    def sync_ends(self, node: int) -> None:
        storage = self.storages[node]
        if storage.local is ON and storage.place is PublicState.SYNCING:
            storage.local = UP
            if storage.chain == self.truth:
                storage.missed_writes = False

    @rule(node=nodes)
    def disk_fails(self, node: int) -> None:
        self.storages[node].local = OFF

    @rule(node=nodes)
    def process_restarts(self, node: int) -> None:
        storage = self.storages[node]
        storage.incarnation += 1
        storage.sequence = 0
        storage.chain = storage.lease = None
        storage.local = OFF
        self.manager.register(storage.info, [storage.report()])

    @rule(node=nodes)
    def operator_takes_target_out(self, node: int) -> None:
        self.manager.offline_targets([self.storages[node].target], "test", force=True)

    @rule()
    def manager_restarts(self) -> None:
        self.manager = Manager(ClusterStore(self.engine), self.world, SETTINGS)

    @invariant()
    def only_those_serve_whom_the_manager_lets_serve(self) -> None:
        for storage in self.storages.values():
            replica = self.truth.replica(storage.target)
            assert replica is not None
            if replica.state in (PublicState.OFFLINE, PublicState.WAITING):
                storage.missed_writes = True
            in_force = replica.state is PublicState.SERVING
            assert in_force or not storage.serves(), storage
            assert not (storage.missed_writes and (in_force or storage.serves())), storage

    @invariant()
    def chains_are_legal_and_a_version_never_changes(self) -> None:
        truth = self.truth
        assert violation(truth) is None
        assert self.versions.setdefault(truth.version, truth) == truth

    @invariant()
    def what_is_published_is_durable(self) -> None:
        assert ClusterStore(self.engine).load().routing == self.manager.feed.current

    @precondition(lambda self: self.truth.version > 1)
    @rule()
    def calm_brings_everybody_back(self) -> None:
        """Liveness: with all processes up and nothing lost, every target serves again."""
        for node in NODES:
            self.storages[node].beats.clear()
            self.storages[node].unreachable.clear()
            self.process_restarts(node)  # ends what an operator ordered
        for part in range(80):
            if part == 40:  # by then any two that were cut have been in touch for long enough
                self.world.now_ms += TRUST_MS_MAX
            for node in NODES:
                self.routing_arrives(node)
                self.target_opens(node)
                self.sync_ends(node)
                self.beat(node)
            self.world.now_ms += 100
            self.manager.tick()
        assert all(r.state is PublicState.SERVING for r in self.truth.replicas), self.truth


Fencing.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestFencing = Fencing.TestCase
