"""Who reaches whom, as a node finds out, and whom the manager takes out when neighbours do not."""

from __future__ import annotations

from fs3.core.chain import next_chain
from fs3.core.reach import AGAIN_MS, RETURN_MS, TRUST_MS_MAX, TRUST_MS_MIN, Cuts, Prober
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    LocalState,
    NodeId,
    PublicState,
    Replica,
    TargetId,
)

BOUND_MS = 3000
LEASE_MS = 1000
UP, ON, OFF = LocalState.UPTODATE, LocalState.ONLINE, LocalState.OFFLINE
SERVING, SYNCING = PublicState.SERVING, PublicState.SYNCING
LASTSRV, WAITING, OFFLINE = PublicState.LASTSRV, PublicState.WAITING, PublicState.OFFLINE


# A node finds out.


def live(prober: Prober, wanted: set[int], now_ms: int, span_ms: int, *answer: int) -> int:
    """Time passes in ticks of 50 ms; these answer at once. Returns the time afterwards."""
    for tick_ms in range(now_ms, now_ms + span_ms, 50):
        for node in prober.tick([NodeId(n) for n in wanted], tick_ms):
            if node in answer:
                prober.answered(node, tick_ms, tick_ms)
    return now_ms + span_ms


def test_who_does_not_answer_for_the_bound_is_unreachable_and_who_answers_again_is_not() -> None:
    prober = Prober(BOUND_MS)
    now_ms = live(prober, {2, 3}, 0, BOUND_MS, 2)
    assert prober.unreachable == set()
    now_ms = live(prober, {2, 3}, now_ms, 700, 2)
    assert prober.unreachable == {3}
    live(prober, {2, 3}, now_ms, 700, 2, 3)
    assert prober.unreachable == set()


def test_probes_are_few() -> None:
    prober = Prober(BOUND_MS)
    asked = [node for ms in range(0, 30_000, 50) for node in prober.tick([NodeId(2)], ms)]
    assert 45 <= len(asked) <= 50


def test_only_the_age_of_the_newest_answered_probe_counts() -> None:
    prober = Prober(BOUND_MS)
    now_ms = live(prober, {2}, 0, BOUND_MS + 700)
    prober.answered(NodeId(2), 0, now_ms)  # an answer that was long under way
    prober.tick([NodeId(2)], now_ms)
    assert prober.unreachable == {2}


def test_a_node_that_was_stopped_itself_blames_nobody() -> None:
    prober = Prober(BOUND_MS)
    now_ms = live(prober, {2}, 0, 1000, 2) + 60_000
    prober.tick([NodeId(2)], now_ms)
    assert prober.unreachable == set()


def test_who_shares_no_chain_any_more_is_forgotten() -> None:
    prober = Prober(BOUND_MS)
    now_ms = live(prober, {2}, 0, BOUND_MS + 700)
    assert prober.tick([], now_ms) == []
    assert prober.unreachable == set()
    prober.answered(NodeId(2), now_ms, now_ms)  # nobody asks
    prober.tick([NodeId(2)], now_ms + 50)
    assert prober.unreachable == set()


# The manager decides. Node n has target n.


def chain(*states: PublicState) -> Chain:
    replicas = tuple(Replica(TargetId(n), NodeId(n), s) for n, s in enumerate(states, 1))
    return Chain(ChainId(1), ChainVersion(1), replicas)


class World:
    """A manager of one chain whose targets are all up, and say so."""

    def __init__(self, *states: PublicState) -> None:
        self.cuts = Cuts(-RETURN_MS)
        self.chain = chain(*states)
        self.local: dict[TargetId, LocalState] = {}
        self.now_ms = 0
        self.unreachable: dict[int, list[int]] = {}
        self.silent: set[int] = set()

    def part(self, *pairs: tuple[int, int]) -> None:
        """From now on the first of each pair says that it does not reach the second."""
        self.unreachable = {}
        for one, other in pairs:
            self.unreachable.setdefault(one, []).append(other)

    def round(self, span_ms: int = 100) -> None:
        """Everybody's heartbeat, and a decision."""
        self.now_ms += span_ms
        for replica in sorted(self.chain.replicas, key=lambda r: r.node):
            if replica.node in self.silent:
                continue
            said = [NodeId(n) for n in self.unreachable.get(replica.node, [])]
            self.cuts.say(replica.node, said)
            up = replica.state in (SERVING, SYNCING)
            self.local[replica.target] = UP if up else ON
        self.cuts.settle(self.now_ms)
        local = self.cuts.local_states(
            self.chain, self.local, self.now_ms, lambda _: self.now_ms + LEASE_MS
        )
        self.chain = next_chain(self.chain, local)

    def rounds(self, span_ms: int) -> None:
        for _ in range(span_ms // 100):
            self.round()

    @property
    def states(self) -> str:
        return " ".join(f"{r.target}:{r.state.name}" for r in self.chain.replicas)

    @property
    def leaving(self) -> list[int]:
        return [t for t in sorted(r.target for r in self.chain.replicas) if self.cuts.is_leaving(t)]


def test_the_successor_leaves_when_its_lease_is_over_and_comes_back_behind_the_tail() -> None:
    world = World(SERVING, SERVING, SERVING)
    world.part((1, 2))
    world.rounds(LEASE_MS)
    assert world.leaving == [2]
    assert world.states == "1:SERVING 2:SERVING 3:SERVING"
    world.rounds(1000)
    assert world.states == "1:SERVING 3:SERVING 2:SERVING"
    version = world.chain.version
    world.rounds(60_000)  # still cut, but neighbours no more
    assert (world.chain.version, world.leaving) == (version, [])


def test_it_does_not_matter_which_of_the_two_says_so() -> None:
    world = World(SERVING, SERVING, SERVING)
    world.part((2, 1))
    world.rounds(LEASE_MS)
    assert world.leaving == [2]


def test_who_is_missed_by_more_leaves() -> None:
    world = World(SERVING, SERVING, SERVING)
    world.part((1, 2), (1, 3))
    world.rounds(LEASE_MS)
    assert world.leaving == [1]
    world.rounds(1000)
    assert world.states == "2:SERVING 3:SERVING 1:WAITING"


def test_of_all_that_lose_each_other_one_serves() -> None:
    world = World(SERVING, SERVING, SERVING)
    world.part((1, 2), (2, 3), (3, 1))
    world.rounds(30_000)
    assert world.states == "1:SERVING 2:WAITING 3:WAITING"
    assert world.leaving == []


def test_a_syncing_successor_leaves_and_another_one_syncs() -> None:
    world = World(SERVING, SYNCING, WAITING)
    world.part((1, 2))
    world.local = {TargetId(1): UP, TargetId(2): ON, TargetId(3): ON}
    world.silent = {3}  # its heartbeat says what it said before
    world.rounds(LEASE_MS + 200)
    assert world.states in ("1:SERVING 3:SYNCING 2:OFFLINE", "1:SERVING 3:SYNCING 2:WAITING")


def test_who_could_not_hear_the_tail_does_not_begin_to_sync_until_it_can() -> None:
    world = World(SERVING, OFFLINE)
    world.part((2, 1))
    world.rounds(10_000)
    assert world.states == "1:SERVING 2:WAITING"
    world.part()
    world.rounds(300)
    assert world.states == "1:SERVING 2:SERVING"


def test_a_dead_node_is_left_to_its_lease() -> None:
    """Everybody misses it, and it is not heard either: nobody is taken out in its stead."""
    world = World(SERVING, SERVING)
    world.rounds(1000)
    world.silent = {1}
    world.part((2, 1))
    world.rounds(1000)
    assert world.leaving == []
    world.cuts.forget(NodeId(1), world.now_ms)  # its lease is over
    world.local[TargetId(1)] = OFF
    world.rounds(1000)
    assert (world.states, world.leaving) == ("2:SERVING 1:OFFLINE", [])


def test_who_becomes_the_last_that_serves_stays() -> None:
    world = World(SERVING, SERVING)
    world.part((1, 2))
    world.rounds(300)
    assert world.leaving == [2]
    world.silent, world.local[TargetId(1)] = {1}, OFF
    world.rounds(5000)
    assert (world.states, world.leaving) == ("2:SERVING 1:OFFLINE", [])


def test_those_who_lose_each_other_again_must_be_in_touch_for_longer_each_time() -> None:
    world = World(SERVING, SERVING)

    def part_and_mend() -> int:
        world.part((1, 2))
        world.rounds(LEASE_MS + 500)
        assert world.states == "1:SERVING 2:WAITING"
        world.part()
        began_ms = world.now_ms
        while world.states != "1:SERVING 2:SERVING":
            world.round()
            assert world.now_ms < began_ms + TRUST_MS_MAX + 1000
        return world.now_ms - began_ms

    spans = [part_and_mend() for _ in range(4)]
    assert spans[0] < 1000
    for span_ms, trust_ms in zip(spans[1:], (1, 2, 4), strict=True):
        assert TRUST_MS_MIN * trust_ms <= span_ms < TRUST_MS_MIN * trust_ms + 1000
    for _ in range(6):
        last = part_and_mend()
    assert TRUST_MS_MAX <= last < TRUST_MS_MAX + 1000
    world.round(AGAIN_MS + 100)  # long enough in touch: as if nothing had ever been
    assert part_and_mend() < 1000


def test_of_a_node_that_has_just_come_back_nothing_counts_until_the_others_can_have_found_it() -> (
    None
):
    cuts = Cuts(-RETURN_MS)
    cuts.say(NodeId(1), [NodeId(2)])
    cuts.say(NodeId(2), [])
    assert cuts.settle(0) == {1, 2}
    cuts.forget(NodeId(2), 1)
    assert cuts.settle(1) == {1, 2}  # once more: what was held back may go on
    assert cuts.said_by(NodeId(1), 1) == ()
    for _ in range(2):  # they have not found each other yet
        cuts.say(NodeId(1), [NodeId(2)])
        cuts.say(NodeId(2), [NodeId(1)])
    assert cuts.settle(RETURN_MS) == set()
    assert cuts.said_by(NodeId(1), RETURN_MS) == ()  # nor is it shown
    assert cuts.settle(1 + RETURN_MS) == {1, 2}
    assert cuts.said_by(NodeId(1), 1 + RETURN_MS) == (2,)


def test_a_node_that_dies_again_and_again_syncs_at_once_each_time() -> None:
    """The others miss it until they have found its new process: that is no cut."""
    world = World(SERVING, SERVING)
    for _ in range(10):
        world.silent = {2}
        world.part((1, 2))
        world.rounds(3000)
        world.cuts.forget(NodeId(2), world.now_ms)  # its lease is over
        world.local[TargetId(2)] = OFF
        world.rounds(2000)
        assert world.states == "1:SERVING 2:OFFLINE"
        world.silent = set()
        world.cuts.forget(NodeId(2), world.now_ms)  # it registers
        world.rounds(2000)  # ... and is not found yet
        assert world.states == "1:SERVING 2:SERVING"
        assert world.leaving == []
        world.part()
        world.rounds(1000)
        assert world.states == "1:SERVING 2:SERVING"
