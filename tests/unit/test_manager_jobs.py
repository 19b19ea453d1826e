"""Jobs of the manager on a clock that stands still: drained, replaced, rotated, cancelled, resumed.

Storageservers are played: a target that joins a chain says that it is ready, syncs when it is told
to, and says it is up to date when the test lets it.
"""

from __future__ import annotations

import pytest
from test_manager import SURE_END_MS, Cluster, report

from fs3.core.types import ChainId, LocalState, NodeId, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.jobs import JobKind, JobProgress, JobState
from fs3.metaserver.manager_members import Report
from fs3.metaserver.manager_orders import Orders

ON, UP = LocalState.ONLINE, LocalState.UPTODATE
BYTES = 1000


class Jobs(Cluster):
    """A cluster whose storageservers hold data and sync."""

    def __init__(self, nodes: int = 4, targets: int = 1, replicas: int = 3) -> None:
        super().__init__(nodes, targets)
        self.used: dict[int, int] = {}
        self.stuck: set[int] = set()  # targets whose sync does not end
        for node in self.targets:
            self.register(node)
            self.beat(node)
        self.manager.create_chains(replicas, 1)
        self.beat_all()
        for chain in self.routing.chains.values():
            for replica in chain.replicas:
                self.used[replica.target] = BYTES
        self.beat_all()

    def start_manager(self) -> None:
        super().start_manager()
        self.orders = Orders(self.manager, self.clock)

    def as_in_chain(self, target: int) -> Report:
        chain = self.routing.chains.get(self.routing.targets[TargetId(target)].chain)
        replica = chain.replica(TargetId(target)) if chain is not None else None
        room = {"used_bytes": self.used.get(target, 0), "capacity_bytes": 10 * BYTES}
        room["chunks"] = self.used.get(target, 0)
        if chain is None or replica is None:
            return report(target, ON, 0, **room)
        if replica.state is PublicState.SYNCING and target not in self.stuck:
            self.used[target] = BYTES
            room["used_bytes"] = BYTES
            return report(target, UP, chain.version, **room)
        serves = replica.state is PublicState.SERVING
        return report(target, UP if serves else ON, chain.version, **room)

    def work(self, job: JobProgress, at_most_ms: int = 60_000) -> JobProgress:
        """Let time pass until the job is over."""
        for _ in range(at_most_ms // 500):
            now = self.orders.progress(job.job.number)
            if not now.job.is_open:
                return now
            self.pass_ms(500)
        pytest.fail(f"still open: {now}, {[self.states(c) for c in self.routing.chains]}")

    def members(self, chain: int = 1) -> set[int]:
        return {int(r.target) for r in self.routing.chains[ChainId(chain)].replicas}

    def serving(self, chain: int = 1) -> int:
        return len(self.routing.chains[ChainId(chain)].serving)


@pytest.fixture
def four() -> Jobs:
    """Four nodes with a target each; a chain of 11, 21, 31; 41 is free."""
    return Jobs()


def test_a_drained_node_hands_its_place_over_and_nobody_is_missed(four: Jobs) -> None:
    fewest = []
    four.store.after_save = lambda _, new: fewest.append(
        len(new.routing.chains[ChainId(1)].serving)
    )
    job = four.orders.drain(NodeId(2))
    assert job.job.state is JobState.RUNNING
    done = four.work(job)
    assert done.job.state is JobState.DONE
    assert four.states() == "11:SERVING 31:SERVING 41:SERVING"
    assert min(fewest) == 3
    assert four.routing.targets[TargetId(21)].chain == 0
    assert four.routing.targets[TargetId(41)].chain == 1
    assert four.manager.state.held == {}


def test_the_old_target_goes_only_when_the_new_one_serves_and_its_lease_is_over(
    four: Jobs,
) -> None:
    four.stuck.add(41)
    four.orders.drain(NodeId(2))
    four.pass_ms(20_000)
    assert four.states() == "11:SERVING 21:SERVING 31:SERVING 41:SYNCING"
    assert four.beat(2).leases == ((21, four.version()),)
    four.stuck.clear()
    four.beat(4)  # up to date: serves
    four.manager.tick()
    assert four.serving() == 4
    four.manager.tick()  # from here on 21 gets no lease
    since_ms = four.clock.now_ms
    assert four.beat(2).leases == ()
    while four.serving() == 4:
        four.pass_ms(100)
    assert four.clock.now_ms - since_ms >= SURE_END_MS - 500
    four.pass_ms(200)
    assert 21 not in four.members()


def test_a_drained_target_is_free_but_nothing_is_placed_on_its_node(four: Jobs) -> None:
    done = four.work(four.orders.drain(NodeId(2)))
    waits = four.orders.drain(NodeId(3))
    four.pass_ms(2000)
    waits = four.orders.progress(waits.job.number)
    assert waits.job.state is JobState.RUNNING
    assert "no target may take a place in chain 1" in waits.waits_for
    assert four.orders.cancel(done.job.number).job.state is JobState.CANCELLED
    assert four.work(waits).job.state is JobState.DONE
    assert four.members() == {11, 21, 41}


def test_progress_and_estimate_follow_the_bytes(four: Jobs) -> None:
    four.stuck.add(41)
    job = four.orders.drain(NodeId(1))
    assert (job.moves_total, job.bytes_done, job.bytes_total) == (1, 0, BYTES)
    assert job.remaining_ms is None
    four.pass_ms(2000)
    four.used[41] = BYTES // 4
    four.pass_ms(1000)
    half = four.orders.progress(job.job.number)
    assert (half.bytes_done, half.bytes_total) == (BYTES // 4, BYTES)
    assert half.remaining_ms == pytest.approx(9000, abs=1000)
    four.stuck.clear()
    done = four.work(job)
    assert (done.job.moves_done, done.moves_total) == (1, 1)
    assert (done.bytes_done, done.bytes_total, done.remaining_ms) == (BYTES, BYTES, 0)


@pytest.mark.parametrize("pause_ms", range(0, 9000, 500))
def test_a_restarted_manager_goes_on_wherever_it_was(pause_ms: int) -> None:
    cluster = Jobs()
    job = cluster.orders.drain(NodeId(1))
    cluster.pass_ms(pause_ms)
    cluster.start_manager()
    assert cluster.work(job).job.state is JobState.DONE
    assert cluster.members() == {21, 31, 41}
    assert cluster.serving() == 3


def test_chains_of_a_drained_node_move_a_few_at_a_time() -> None:
    cluster = Jobs(nodes=5, targets=6, replicas=3)
    most = cluster.manager.view.moves
    free = {t for t, info in cluster.routing.targets.items() if not info.chain}
    assert not free, "every target is in a chain"
    for node in (6, 7):  # two new, empty nodes
        cluster.targets[node] = [10 * node + i for i in range(1, 7)]
        cluster.incarnation[node], cluster.sequence[node] = 100, 0
        cluster.register(node)
        cluster.beat(node)
    mine = [c for c in cluster.routing.chains.values() if any(r.node == 1 for r in c.replicas)]
    assert len(mine) > most
    under_way = []
    cluster.store.after_save = lambda _, new: under_way.append(
        max((len(job.moves) for job in new.jobs.values()), default=0)
    )
    cluster.work(cluster.orders.drain(NodeId(1)))
    assert max(under_way) == most
    for chain in cluster.routing.chains.values():
        nodes = [replica.node for replica in chain.replicas]
        assert 1 not in nodes
        assert len(set(nodes)) == len(nodes) == 3
    at = {
        n: sum(bool(i.chain) for i in cluster.routing.targets.values() if i.node == n)
        for n in (6, 7)
    }
    assert abs(at[6] - at[7]) <= 1, "load spreads"


def test_a_dead_target_is_replaced(four: Jobs) -> None:
    four.pass_ms(5000, 2)
    assert four.states() == "11:SERVING 31:SERVING 21:OFFLINE"
    job = four.orders.replace(TargetId(21), TargetId(0))
    for _ in range(20):
        four.pass_ms(500, 2)
    assert four.orders.progress(job.job.number).job.state is JobState.DONE
    assert four.states() == "11:SERVING 31:SERVING 41:SERVING"


def test_the_new_target_takes_the_place_in_the_preferred_order(four: Jobs) -> None:
    before = four.routing.chains[ChainId(1)].preferred
    assert before == (11, 21, 31)
    four.work(four.orders.replace(TargetId(11), TargetId(41)))
    assert four.routing.chains[ChainId(1)].preferred == (41, 21, 31)
    assert four.states() == "21:SERVING 31:SERVING 41:SERVING"
    four.work(four.orders.rotate(ChainId(0)))
    assert four.states() == "41:SERVING 21:SERVING 31:SERVING"


def test_rotation_moves_one_at_a_time_and_leaves_nobody_held(four: Jobs) -> None:
    fewest = []
    four.store.after_save = lambda _, new: fewest.append(
        len(new.routing.chains[ChainId(1)].serving)
    )
    four.orders.set_preferred(ChainId(1), [TargetId(31), TargetId(11), TargetId(21)])
    done = four.work(four.orders.rotate(ChainId(1)))
    assert done.job.state is JobState.DONE
    assert four.states() == "31:SERVING 11:SERVING 21:SERVING"
    assert min(fewest) == 2
    assert four.manager.state.held == {}


def test_add_and_remove_a_replica(four: Jobs) -> None:
    four.work(four.orders.add(ChainId(1), TargetId(41)))
    assert four.states() == "11:SERVING 21:SERVING 31:SERVING 41:SERVING"
    four.work(four.orders.remove(TargetId(11)))
    assert four.states() == "21:SERVING 31:SERVING 41:SERVING"
    assert four.routing.targets[TargetId(11)].chain == 0


def test_cancelling_takes_a_target_out_again_that_does_not_serve_yet(four: Jobs) -> None:
    four.stuck.add(41)
    job = four.orders.drain(NodeId(1))
    four.pass_ms(2000)
    assert 41 in four.members()
    four.orders.cancel(job.job.number)
    done = four.work(job)
    assert done.job.state is JobState.CANCELLED
    assert four.states() == "11:SERVING 21:SERVING 31:SERVING"
    assert four.routing.targets[TargetId(41)].chain == 0
    assert four.manager.state.held == {}


def test_cancelling_a_removal_leaves_the_target_where_it_is(four: Jobs) -> None:
    job = four.orders.remove(TargetId(11))
    assert four.manager.state.held == {11: "job 1"}
    four.orders.cancel(job.job.number)
    assert four.work(job).job.state is JobState.CANCELLED
    four.pass_ms(5000)
    assert four.states() == "11:SERVING 21:SERVING 31:SERVING"


def test_a_new_target_that_dies_before_the_old_one_left_gives_the_old_one_back() -> None:
    cluster = Jobs(nodes=2, targets=2, replicas=2)
    cluster.work(cluster.orders.remove(TargetId(21)))  # chain 1 is 11 alone, 21 is free
    assert cluster.members(1) == {11}
    cluster.pass_ms(1000)
    job = cluster.orders.replace(TargetId(11), TargetId(21))
    while cluster.manager.state.held != {TargetId(11): f"job {job.job.number}"}:
        cluster.pass_ms(100)
    cluster.pass_ms(5000, 2)
    assert cluster.states(1) == "11:SERVING 21:OFFLINE"
    assert cluster.manager.state.held == {}
    assert "target 21 of chain 1 is OFFLINE" in cluster.orders.progress(job.job.number).waits_for


def test_the_only_serving_target_is_never_taken_out(four: Jobs) -> None:
    four.pass_ms(5000, 2, 3)
    assert four.serving() == 1
    with pytest.raises(Fs3Error, match="nobody but target 11 serves chain 1"):
        four.orders.remove(TargetId(11))
    job = four.orders.replace(TargetId(21), TargetId(41))
    for _ in range(20):
        four.pass_ms(500, 2, 3)
    assert not four.orders.progress(job.job.number).job.is_open
    assert four.states() == "11:SERVING 41:SERVING 31:OFFLINE"


def test_a_target_about_to_leave_stays_when_all_others_die(four: Jobs) -> None:
    job = four.orders.remove(TargetId(11))
    assert four.manager.state.held == {11: "job 1"}
    four.pass_ms(10_000, 2, 3)
    assert four.states() == "11:SERVING 21:OFFLINE 31:OFFLINE"
    assert four.manager.state.held == {}
    assert four.orders.progress(1).waits_for == "nobody but target 11 serves chain 1"
    assert four.work(job).job.state is JobState.DONE
    assert four.states() == "21:SERVING 31:SERVING"


def test_giving_up_the_last_that_served_needs_force(four: Jobs) -> None:
    four.pass_ms(5000, 1, 2, 3)
    assert four.states() == "11:LASTSRV 21:OFFLINE 31:OFFLINE"
    with pytest.raises(Fs3Error, match="force it"):
        four.orders.give_up_last(ChainId(1), force=False)
    assert four.states() == "11:LASTSRV 21:OFFLINE 31:OFFLINE"
    four.orders.give_up_last(ChainId(1), force=True)
    four.pass_ms(3000, 1, 3)
    assert four.states() == "21:SERVING 31:OFFLINE 11:OFFLINE"


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (lambda o: o.add(ChainId(9), TargetId(41)), "chain 9 is not known"),
        (lambda o: o.add(ChainId(1), TargetId(11)), "target 11 cannot join"),
        (lambda o: o.add(ChainId(1), TargetId(99)), "target 99 cannot join"),
        (lambda o: o.remove(TargetId(41)), "target 41 is in no chain"),
        (lambda o: o.remove(TargetId(99)), "target 99 is not known"),
        (lambda o: o.replace(TargetId(11), TargetId(21)), "target 21 cannot join"),
        (lambda o: o.drain(NodeId(9)), "node 9 is not known; 1, 2, 3, 4 are"),
        (lambda o: o.set_preferred(ChainId(1), [TargetId(11)]), "each once"),
        (lambda o: o.give_up_last(ChainId(1), True), "does not wait for a LASTSRV"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_and_changes_nothing(
    four: Jobs, order: object, why: str
) -> None:
    before = four.manager.state
    with pytest.raises(Fs3Error, match=why) as error:
        order(four.orders)  # type: ignore[operator]
    assert error.value.code is Code.INVALID
    assert four.manager.state is before


def test_a_chain_belongs_to_one_job_at_a_time(four: Jobs) -> None:
    four.stuck.add(41)
    four.orders.replace(TargetId(11), TargetId(41))
    with pytest.raises(Fs3Error, match="chain 1 is being changed by job 1"):
        four.orders.remove(TargetId(21))
    drain = four.orders.drain(NodeId(2))
    assert drain.job.kind is JobKind.DRAIN
    assert "being changed by another job" in drain.waits_for
    with pytest.raises(Fs3Error, match="node 2 is being drained by job 2"):
        four.orders.drain(NodeId(2))
