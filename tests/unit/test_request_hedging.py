"""Reads whose answers are late: asked of a second node, and the first good answer counts."""

from __future__ import annotations

import numpy as np
import pytest
from test_request import LIMITS, chain, codes, table

from fs3.core.codes import Code
from fs3.core.pace import Pace
from fs3.core.request import Batch, Limits, Operation
from fs3.core.types import Chain, ChainId, NodeId

CHAINS = table(chain(1, 7, 8), chain(2, 8, 9))


def known_pace(late_ms: float = 20.0) -> Pace:
    """One that has seen enough to call an answer late after about so long."""
    pace = Pace()
    for turn in range(100):
        pace.answered(NodeId(7), 4096, late_ms, turn)
        pace.answered(NodeId(7), 8192, late_ms, turn)
    return pace


def reads(chains: list[int], pace: Pace | None = None, limits: Limits = LIMITS) -> Batch:
    lengths = np.full(len(chains), 4096, np.uint32)
    numbers = np.array(chains, np.uint32)
    return Batch(Operation.READ, numbers, lengths, 0, limits, 0, pace or known_pace())


def begin(batch: Batch, chains: dict[ChainId, Chain] = CHAINS):
    (send,) = batch.sends(chains, {}, 0)
    return send


def test_a_late_read_is_asked_of_another_replica_and_an_early_one_is_not():
    batch = reads([1])
    first = begin(batch)
    late_ms = batch.wake_ms(0)
    assert 15 < late_ms < 30
    assert batch.hedges({}, late_ms - 1) == []
    (second,) = batch.hedges({}, late_ms)
    assert second.items.tolist() == first.items.tolist()
    assert {first.node, second.node} == {7, 8}
    assert batch.hedges({}, late_ms + 200) == []  # once


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_good_answer_counts_and_the_other_request_is_cancelled(winner):
    batch = reads([1])
    first = begin(batch)
    both = [first, *batch.hedges({}, 50)]
    assert batch.replied(both[winner].number, codes(first), 51)
    assert batch.finished
    assert batch.cancelled == [both[1 - winner].number]
    assert batch.overdue(10_000) == []


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("how", ["lost", "refused", "bad bytes"])
def test_of_two_requests_one_may_fail(failing, how):
    batch = reads([1, 1])
    first = begin(batch)
    both = [first, *batch.hedges({}, 50)]
    broken, other = both[failing], both[1 - failing]
    if how == "lost":
        batch.lost(broken.number, 51)
    elif how == "refused":
        batch.refused(broken.number, Code.BUSY, 51)
    else:
        mixed = codes(first)
        mixed[1] = Code.CORRUPT
        assert not batch.replied(broken.number, mixed, 51)
    assert not batch.finished
    assert batch.sends(CHAINS, {}, 52) == []  # it waits for the other
    assert batch.replied(other.number, codes(first), 53)
    assert batch.finished
    assert batch.cancelled == []
    assert not batch.codes.any()


def test_when_both_are_lost_the_items_are_asked_for_again():
    batch = reads([1])
    both = [begin(batch), *batch.hedges({}, 50)]
    for send in both:
        batch.lost(send.number, 60)
    (again,) = batch.sends(CHAINS, {}, 400)
    assert batch.replied(again.number, codes(again), 401)
    assert batch.finished


def test_the_second_node_serves_every_item_of_the_request():
    chains = table(chain(1, 7, 8), chain(2, 7, 9), chain(3, 7, 9, 8))
    for wanted, others in (([1, 2], set()), ([1, 3], {8}), ([2, 3], {9})):
        batch = reads(wanted)
        (first,) = batch.sends(chains, {NodeId(8): 1 << 30, NodeId(9): 1 << 30}, 0)
        assert first.node == 7
        assert {send.node for send in batch.hedges({}, 50)} == others


def test_with_one_serving_replica_nothing_is_asked_twice():
    alone = table(chain(1, 7))
    batch = reads([1])
    begin(batch, alone)
    assert batch.hedges({}, 100) == []
    assert batch.wake_ms(100) == 300  # when the request is given up


def test_writes_are_never_sent_twice():
    numbers, lengths = np.array([1], np.uint32), np.array([4096], np.uint32)
    batch = Batch(Operation.WRITE, numbers, lengths, 0, LIMITS, 0, known_pace())
    begin(batch)
    assert batch.hedges({}, 100) == []


def test_when_hedges_are_used_up_a_late_read_waits():
    pace = known_pace()
    while pace.take_hedge():
        pass
    batch = reads([1], pace)
    first = begin(batch)
    assert batch.hedges({}, 100) == []
    assert batch.replied(first.number, codes(first), 150)


def test_a_piece_asked_for_before_is_taken_over_with_the_time_it_was_sent():
    batch = reads([1])
    send = batch.adopt(NodeId(8), CHAINS[ChainId(1)], 0, CHAINS)
    assert batch.sends(CHAINS, {}, 10) == []
    (second,) = batch.hedges({}, 50)
    assert second.node == 7
    batch.lost(second.number, 60)
    assert batch.replied(send.number, codes(send), 70)
    assert batch.finished


def test_bytes_in_flight_at_one_node_are_bounded():
    limits = Limits(bytes_per_request=4096, requests_per_node=100, node_bytes=3 * 4096)
    batch = reads([1] * 10, limits=limits)
    alone = table(chain(1, 7))
    sends = batch.sends(alone, {}, 0)
    assert len(sends) == 3
    assert batch.sends(alone, {}, 1) == []
    batch.replied(sends[0].number, codes(sends[0]), 2)
    assert len(batch.sends(alone, {}, 2)) == 1
    one = Limits(bytes_per_request=4096, node_bytes=100)
    assert len(reads([1] * 10, limits=one).sends(alone, {}, 0)) == 1  # a larger one goes alone
