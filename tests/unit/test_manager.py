"""The cluster manager on a clock that stands still and an engine that can fail.

Three nodes with one target each; a chain of three. Node n runs on a host of its own and has target
10n+1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fs3.core.lease import sure_end_ms
from fs3.core.types import ChainId, ChainVersion, LocalState, NodeId, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.metaserver.kv.memory import MemoryEngine
from fs3.metaserver.manager import Grant, Manager
from fs3.metaserver.manager_members import Report, space
from fs3.metaserver.manager_store import ClusterState, ClusterStore
from fs3.metaserver.settings import ManagerSettings
from fs3.routing import NodeInfo, Routing

UP, ON, OFF = LocalState.UPTODATE, LocalState.ONLINE, LocalState.OFFLINE
SETTINGS = ManagerSettings(heartbeat_ms=500, lease_ms=3000, tick_ms=100, history=8)
SURE_END_MS = sure_end_ms(SETTINGS.lease_ms)


class HandClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ns(self) -> int:
        return self.now_ms * 1_000_000


class WatchedStore(ClusterStore):
    """Tells a test when a save is made, before anything can have left the manager."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.before_save = lambda old, new: None
        self.after_save = lambda old, new: None

    def save(self, old: ClusterState, new: ClusterState) -> None:
        self.before_save(old, new)
        super().save(old, new)
        self.after_save(old, new)


def report(target: int, state: LocalState, version: int = 0, **more: int) -> Report:
    return Report(
        target=TargetId(target), local_state=state, chain_version=ChainVersion(version), **more
    )


class Cluster:
    """A manager, and what its storageservers would say."""

    def __init__(self, nodes: int = 3, targets: int = 1, hosts: int | None = None) -> None:
        self.clock = HandClock()
        self.engine = MemoryEngine()
        self.hosts = hosts or nodes
        self.targets = {n: [10 * n + i + 1 for i in range(targets)] for n in range(1, nodes + 1)}
        self.incarnation = dict.fromkeys(self.targets, 100)
        self.sequence = dict.fromkeys(self.targets, 0)
        self.start_manager()

    def start_manager(self) -> None:
        self.store = WatchedStore(self.engine)
        self.manager = Manager(self.store, self.clock, SETTINGS)

    def info(self, node: int, host: str | None = None) -> NodeInfo:
        return NodeInfo(
            node=NodeId(node),
            host=host or f"h{(node - 1) % self.hosts}",
            data_address=f"127.0.0.1:{7000 + node}",
            control_address=f"127.0.0.1:{8000 + node}",
            incarnation=self.incarnation[node],
            alive=False,
        )

    def register(self, node: int, state: LocalState = ON, host: str | None = None) -> None:
        said = [report(target, state) for target in self.targets[node]]
        self.manager.register(self.info(node, host), said)

    def restart_node(self, node: int) -> None:
        self.incarnation[node] += 1
        self.sequence[node] = 0
        self.register(node, OFF)

    def beat(self, node: int, *reports: Report, unreachable: Sequence[int] = ()) -> Grant:
        """A heartbeat; without reports: that every target is as the chain has it."""
        self.sequence[node] += 1
        said = reports or [self.as_in_chain(target) for target in self.targets[node]]
        return self.manager.heartbeat(
            NodeId(node),
            self.incarnation[node],
            self.sequence[node],
            said,
            [NodeId(other) for other in unreachable],
        )

    def beat_all(self, *but: int) -> None:
        for node in self.targets:
            if node not in but:
                self.beat(node)

    def as_in_chain(self, target: int) -> Report:
        chain = self.routing.chains.get(self.routing.targets[TargetId(target)].chain)
        if chain is None:
            return report(target, ON)
        replica = chain.replica(TargetId(target))
        serves = replica is not None and replica.state is PublicState.SERVING
        return report(target, UP if serves else ON, chain.version)

    def pass_ms(self, span_ms: int, *silent: int) -> None:
        """Time passes, with heartbeats of all nodes but the silent ones, and ticks."""
        end_ms = self.clock.now_ms + span_ms
        while self.clock.now_ms < end_ms:
            self.clock.now_ms = min(end_ms, self.clock.now_ms + 500)
            self.beat_all(*silent)
            self.manager.tick()

    @property
    def routing(self) -> Routing:
        return self.manager.feed.current

    def states(self, chain: int = 1) -> str:
        """``11:SERVING 21:SYNCING``"""
        found = self.routing.chains[ChainId(chain)]
        return " ".join(f"{r.target}:{r.state.name}" for r in found.replicas)

    def version(self, chain: int = 1) -> int:
        return self.routing.chains[ChainId(chain)].version


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    for node in made.targets:
        made.register(node)
    made.manager.create_chains(3, 1)
    made.beat_all()
    return made


ALL_SERVE = "11:SERVING 21:SERVING 31:SERVING"


# Leases and deaths.


def test_heartbeat_grants_a_lease_that_names_the_chain_version(cluster):
    assert cluster.beat(1).leases == ((TargetId(11), ChainVersion(1)),)


def test_silent_node_is_taken_out_only_after_its_lease_has_surely_run_out(cluster):
    cluster.pass_ms(SURE_END_MS - 1, 2)
    assert cluster.states() == ALL_SERVE
    cluster.clock.now_ms += 1
    cluster.manager.tick()
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"
    assert not cluster.routing.nodes[NodeId(2)].alive


def test_node_that_was_cut_off_is_alive_again_and_syncs_once_it_has_reopened(cluster):
    cluster.pass_ms(SURE_END_MS + 500, 2)
    version = cluster.version()
    stale = cluster.beat(2, report(21, UP, 1))  # has not heard of its removal
    assert stale.leases == ()
    assert cluster.routing.nodes[NodeId(2)].alive
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"
    cluster.beat(2, report(21, OFF, version))
    granted = cluster.beat(2, report(21, ON, version))
    assert cluster.states() == "11:SERVING 31:SERVING 21:SYNCING"
    assert granted.leases == ((TargetId(21), ChainVersion(version + 1)),)


def test_synced_target_serves_as_the_new_tail(cluster):
    cluster.pass_ms(SURE_END_MS + 500, 1)
    cluster.beat(1, report(11, ON, cluster.version()))
    cluster.beat(1, report(11, UP, cluster.version()))
    assert cluster.states() == "21:SERVING 31:SERVING 11:SERVING"


def test_up_to_date_report_of_an_older_chain_version_ends_no_sync(cluster):
    cluster.pass_ms(SURE_END_MS + 500, 1)
    cluster.beat(1, report(11, ON, cluster.version()))
    cluster.beat(1, report(11, UP, cluster.version() - 1))
    assert cluster.states() == "21:SERVING 31:SERVING 11:SYNCING"


def test_failed_disk_is_believed_at_once_whatever_chain_version_it_speaks_of(cluster):
    granted = cluster.beat(2, report(21, OFF, 0, problem="EIO"))
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"
    assert granted.leases == ()


def test_target_that_is_not_reported_any_more_is_taken_out(cluster):
    cluster.beat(2, report(99, ON))
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_last_serving_target_is_waited_for(cluster):
    cluster.pass_ms(SURE_END_MS + 500, 2, 3)
    assert cluster.states() == "11:SERVING 21:OFFLINE 31:OFFLINE"
    cluster.pass_ms(SURE_END_MS + 500, 1, 2, 3)
    assert cluster.states() == "11:LASTSRV 21:OFFLINE 31:OFFLINE"
    cluster.beat(3, report(31, ON, cluster.version()))
    assert cluster.states() == "11:LASTSRV 31:WAITING 21:OFFLINE"
    cluster.restart_node(1)
    assert cluster.states() == "11:LASTSRV 31:WAITING 21:OFFLINE"
    granted = cluster.beat(1, report(11, ON, cluster.version()))
    assert cluster.states() == "11:SERVING 31:SYNCING 21:OFFLINE"
    assert granted.leases == ((TargetId(11), ChainVersion(cluster.version())),)


def test_all_nodes_that_die_at_once_leave_the_head_as_the_one_to_wait_for(cluster):
    cluster.pass_ms(SURE_END_MS, 1, 2, 3)
    assert cluster.states() == "11:LASTSRV 21:OFFLINE 31:OFFLINE"


def test_time_in_which_the_manager_itself_was_stopped_is_nobodys_silence(cluster):
    cluster.pass_ms(1000)
    cluster.pass_ms(500, 2)
    cluster.clock.now_ms += 10 * SURE_END_MS  # SIGSTOP, or a disk that is waited for
    cluster.manager.tick()
    assert cluster.states() == ALL_SERVE
    assert cluster.manager.status()[0].heartbeat_age_ms == 10 * SURE_END_MS
    cluster.pass_ms(SURE_END_MS - 501, 2)
    assert cluster.states() == ALL_SERVE
    cluster.pass_ms(1, 2)
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_a_heartbeat_that_waited_while_the_manager_was_stopped_counts_from_when_it_is_heard(
    cluster,
):
    cluster.clock.now_ms += 10 * SURE_END_MS
    cluster.beat(2)
    cluster.pass_ms(SURE_END_MS - 1, 2)
    assert cluster.states() == ALL_SERVE
    cluster.pass_ms(1, 2)
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


# Incarnations and sequences.


def test_new_incarnation_takes_its_targets_out_at_once_whatever_it_claims(cluster):
    cluster.incarnation[2] += 1
    cluster.register(2, UP)
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_old_incarnation_is_not_heard_any_more(cluster):
    cluster.restart_node(2)
    cluster.incarnation[2] -= 1
    with pytest.raises(Fs3Error, match="not registered") as caught:
        cluster.beat(2)
    assert caught.value.code is Code.UNKNOWN_NODE
    with pytest.raises(Fs3Error, match="replaced"):
        cluster.register(2)


def test_stale_heartbeat_is_refused_and_changes_nothing(cluster):
    cluster.beat(2)
    cluster.sequence[2] -= 1
    with pytest.raises(Fs3Error) as caught:
        cluster.beat(2, report(21, OFF, 1))
    assert caught.value.code is Code.STALE_UPDATE
    assert cluster.states() == ALL_SERVE


def test_second_machine_with_a_living_nodes_id_is_refused_until_the_lease_is_over(cluster):
    cluster.incarnation[2] += 1
    with pytest.raises(Fs3Error, match="alive on host 'h1'") as caught:
        cluster.register(2, host="elsewhere")
    assert caught.value.code is Code.NOT_READY
    assert cluster.states() == ALL_SERVE
    cluster.pass_ms(SURE_END_MS + 500, 2)
    cluster.register(2, OFF, host="elsewhere")
    assert cluster.routing.nodes[NodeId(2)].host == "elsewhere"


def test_target_of_a_chain_cannot_move_to_another_node(cluster):
    cluster.targets[3] = [31, 11]
    with pytest.raises(Fs3Error, match="target 11 belongs to node 1"):
        cluster.register(3)


def test_unknown_node_must_register_first(cluster):
    cluster.incarnation[9] = cluster.sequence[9] = 1
    with pytest.raises(Fs3Error) as caught:
        cluster.beat(9, report(91, ON))
    assert caught.value.code is Code.UNKNOWN_NODE


# The manager's own restart.


def test_restarted_manager_keeps_chains_and_declares_nobody_dead_for_a_lease(cluster):
    before = cluster.routing
    cluster.clock.now_ms += 10 * SURE_END_MS
    cluster.start_manager()
    assert cluster.routing == before
    cluster.pass_ms(SURE_END_MS - 1, 1, 2, 3)
    assert cluster.states() == ALL_SERVE
    cluster.beat_all(2)
    cluster.clock.now_ms += 1
    cluster.manager.tick()
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_restarted_manager_knows_incarnations_so_that_nobody_need_register_anew(cluster):
    cluster.start_manager()
    assert cluster.beat(1).leases == ((TargetId(11), ChainVersion(1)),)


def test_restarted_manager_lets_a_sync_go_on(cluster):
    cluster.pass_ms(SURE_END_MS + 500, 1)
    cluster.beat(1, report(11, ON, cluster.version()))
    cluster.start_manager()
    cluster.manager.tick()
    assert cluster.states() == "21:SERVING 31:SERVING 11:SYNCING"


# Durable first.


def test_transition_is_durable_before_any_lease_or_routing_names_it(cluster):
    seen = []

    def published_while_saving(old: ClusterState, new: ClusterState) -> None:
        seen.append((cluster.routing.version, new.routing.version))

    cluster.store.after_save = published_while_saving
    granted = cluster.beat(2, report(21, OFF, 1))
    assert seen == [(granted.routing_version - 1, granted.routing_version)]


def test_transition_that_cannot_be_saved_is_not_published_and_is_tried_again(cluster):
    def refuse(old: ClusterState, new: ClusterState) -> None:
        raise Fs3Error(Code.NO_SPACE, "disk full")

    before = cluster.routing
    cluster.store.before_save = refuse
    with pytest.raises(Fs3Error, match="disk full"):
        cluster.beat(2, report(21, OFF, 1))
    assert cluster.routing is before
    cluster.store.before_save = lambda old, new: None
    cluster.manager.tick()
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_answer_of_a_save_that_was_lost_does_not_make_the_manager_disagree_with_its_rows(cluster):
    def lose_the_answer(old: ClusterState, new: ClusterState) -> None:
        raise Fs3Error(Code.MAYBE_APPLIED, "answer lost")

    cluster.store.after_save = lose_the_answer
    with pytest.raises(Fs3Error, match="answer lost"):
        cluster.beat(2, report(21, OFF, 1))
    cluster.store.after_save = lambda old, new: None
    cluster.manager.tick()
    assert cluster.routing == cluster.store.load().routing
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_second_manager_on_the_same_rows_is_refused(cluster):
    other = Manager(ClusterStore(cluster.engine), cluster.clock, SETTINGS)
    cluster.beat(2, report(21, OFF, 1))
    for _ in range(SURE_END_MS // 1000):
        cluster.clock.now_ms += 1000
        other.tick()
    cluster.clock.now_ms += 1000
    with pytest.raises(Fs3Error) as caught:
        other.tick()
    assert caught.value.code is Code.NOT_MANAGER


def test_one_event_that_changes_many_chains_is_one_routing_version():
    cluster = Cluster(nodes=3, targets=4)
    for node in cluster.targets:
        cluster.register(node)
    cluster.manager.create_chains(3, 1)
    before = cluster.routing.version
    cluster.restart_node(1)
    assert cluster.routing.version == before + 1
    assert all(cluster.version(chain) == 2 for chain in cluster.routing.chains)


def test_heartbeats_that_say_nothing_new_save_nothing(cluster):
    cluster.store.before_save = lambda old, new: pytest.fail("saved")
    cluster.pass_ms(3000)


# Operators.


def test_target_ordered_offline_leaves_when_its_lease_is_over_and_gets_none_before(cluster):
    cluster.manager.offline_targets([TargetId(21)], "maintenance", force=False)
    assert cluster.beat(2).leases == ()
    assert cluster.states() == ALL_SERVE
    cluster.pass_ms(SURE_END_MS + 500)
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"
    cluster.beat(2, report(21, ON, cluster.version()))
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_target_ordered_offline_leaves_at_once_when_it_says_so_itself(cluster):
    cluster.manager.offline_targets([TargetId(21)], "maintenance", force=False)
    cluster.beat(2, report(21, OFF, 1))
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_order_to_stay_offline_survives_the_manager_and_ends_with_the_nodes_restart(cluster):
    cluster.manager.offline_targets([TargetId(21)], "maintenance", force=False)
    cluster.start_manager()
    assert cluster.beat(2).leases == ()
    cluster.pass_ms(SURE_END_MS + 500)
    cluster.restart_node(2)
    cluster.beat(2, report(21, ON, cluster.version()))
    assert cluster.states() == "11:SERVING 31:SERVING 21:SYNCING"


def test_last_serving_target_is_not_taken_out_without_force(cluster):
    targets = [TargetId(11), TargetId(21), TargetId(31)]
    with pytest.raises(Fs3Error, match="nobody serves chain 1"):
        cluster.manager.offline_targets(targets, "oops", force=False)
    cluster.pass_ms(SURE_END_MS + 500)
    assert cluster.states() == ALL_SERVE


def test_the_slowest_tick_that_is_allowed_is_no_sleep():
    slowest = SETTINGS.lease_ms // 4
    assert replace(SETTINGS, tick_ms=slowest).validate() is None
    refused = replace(SETTINGS, tick_ms=slowest + 1).validate()
    assert refused is not None
    assert "a quarter of lease_ms" in refused
    cluster = Cluster(nodes=1)
    cluster.register(1)
    for _ in range(SURE_END_MS // slowest + 1):  # it alone is there, and says nothing
        cluster.clock.now_ms += slowest
        cluster.manager.tick()
    assert not cluster.routing.nodes[NodeId(1)].alive


# Chains.


def test_create_chains_twice_changes_nothing(cluster):
    before = cluster.routing
    cluster.manager.create_chains(3, 1)
    assert cluster.routing is before


def test_create_chains_says_what_is_missing():
    cluster = Cluster(nodes=2, targets=3)
    for node in cluster.targets:
        cluster.register(node)
    with pytest.raises(Fs3Error, match=r"3 different nodes; 6 targets .* found on 2"):
        cluster.manager.create_chains(3, 1)
    assert not cluster.routing.chains


def test_chains_are_only_made_of_targets_that_are_open_and_empty():
    cluster = Cluster(nodes=3)
    cluster.register(1)
    cluster.register(2, OFF)
    cluster.manager.register(cluster.info(3), [report(31, ON, chunks=5)])
    with pytest.raises(Fs3Error, match="1 targets"):
        cluster.manager.create_chains(2, 1)


def test_chains_of_named_targets_wait_until_each_of_them_is_open():
    cluster = Cluster(nodes=4)
    named = frozenset(TargetId(target) for (target,) in cluster.targets.values())
    for node in (1, 3, 4):
        cluster.register(node)
    with pytest.raises(Fs3Error, match="targets 21 are not open") as refused:
        cluster.manager.create_chains(3, 1, named)
    assert refused.value.code is Code.NOT_READY
    cluster.register(2, OFF)
    with pytest.raises(Fs3Error, match="targets 21 are not open"):
        cluster.manager.create_chains(3, 1, named)
    assert not cluster.routing.chains
    cluster.beat(2, report(21, ON))
    cluster.manager.create_chains(3, 1, named)
    (chain,) = cluster.routing.chains.values()
    assert [replica.target for replica in chain.replicas] == [11, 21, 31]
    cluster.manager.create_chains(3, 1, named)  # most are in a chain: nothing more to wait for
    assert len(cluster.routing.chains) == 1


def test_second_table_has_only_its_own_chains(cluster):
    cluster.targets = {n: [*ts, 10 * n + 2] for n, ts in cluster.targets.items()}
    for node in cluster.targets:
        cluster.register(node)
    cluster.manager.create_chains(1, 2)
    assert cluster.routing.tables[1].chains == (1,)
    assert cluster.routing.tables[2].chains == (2, 3, 4)


# Who asks.


def test_space_is_what_the_smallest_replica_of_each_chain_has(cluster):
    for node, free in ((1, 70), (2, 50), (3, 90)):
        target = 10 * node + 1
        cluster.beat(node, report(target, UP, 1, capacity_bytes=100, free_bytes=free))
    assert space(cluster.routing, 1, cluster.manager.reports) == (100, 50)


def test_space_of_a_table_is_that_of_its_chains(cluster):
    cluster.targets = {n: [*ts, 10 * n + 2] for n, ts in cluster.targets.items()}
    for node in cluster.targets:
        cluster.register(node)
    cluster.manager.create_chains(1, 2)
    for node in cluster.targets:
        size = {"capacity_bytes": 100, "free_bytes": 60}
        reports = [report(10 * node + i, UP, 1, **size) for i in (1, 2)]
        cluster.beat(node, *reports)
    assert space(cluster.routing, 1, cluster.manager.reports) == (100, 60)
    assert space(cluster.routing, 2, cluster.manager.reports) == (300, 180)
    assert space(cluster.routing, 3, cluster.manager.reports) == (0, 0)


def test_status_shows_age_and_last_reports(cluster):
    cluster.clock.now_ms += 700
    cluster.beat(1)
    ages = {status.node.node: status.heartbeat_age_ms for status in cluster.manager.status()}
    assert ages == {1: 0, 2: 700, 3: 700}
    assert [r.target for r in cluster.manager.status()[0].reports] == [11]


def test_watcher_that_is_behind_gets_what_changed_and_one_far_behind_everything(cluster):
    known = cluster.routing
    cluster.beat(2, report(21, OFF, 1))
    update = cluster.manager.feed.update_since(known.version)
    assert update.from_version == known.version
    assert [chain.chain for chain in update.chains] == [1]
    assert not update.nodes
    assert cluster.manager.feed.update_since(0).from_version == 0
    for _ in range(SETTINGS.history):
        cluster.restart_node(3)
        cluster.beat(3, report(31, ON, cluster.version()))
    assert cluster.manager.feed.update_since(known.version).from_version == 0


def test_watcher_is_woken_by_a_new_version_and_by_the_end(cluster):
    feed = cluster.manager.feed
    assert not feed.wait(cluster.routing.version, 0)
    assert feed.wait(cluster.routing.version - 1, 0)
    feed.close()
    assert not feed.wait(cluster.routing.version - 1, 60)
