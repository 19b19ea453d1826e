"""The client's life of one batch, without a network: who is asked, when again, how it ends."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.core.codes import TABLE, Code, Retry
from fs3.core.request import Batch, Limits, Operation, Send
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    NodeId,
    PublicState,
    Replica,
    TargetId,
)

LIMITS = Limits(deadline_ms=1000, request_ms=300, avoid_ms=100)
S, W, O = PublicState.SERVING, PublicState.WAITING, PublicState.OFFLINE  # noqa: E741


def chain(number: int, *nodes: int, version: int = 1, states=None) -> Chain:
    states = states or [S] * len(nodes)
    replicas = [
        Replica(TargetId(100 * number + n), NodeId(n), state)
        for n, state in zip(nodes, states, strict=True)
    ]
    return Chain(ChainId(number), ChainVersion(version), tuple(replicas))


def table(*chains: Chain) -> dict[ChainId, Chain]:
    return {c.chain: c for c in chains}


def batch(operation: Operation, chains: list[int], size: int = 4096, limits=LIMITS) -> Batch:
    lengths = np.full(len(chains), size, np.uint32)
    return Batch(operation, np.array(chains, np.uint32), lengths, 0, limits)


def codes(send: Send, code: Code = Code.OK) -> np.ndarray:
    return np.full(len(send.items), code, np.uint32)


def covered(sends: list[Send]) -> list[int]:
    return sorted(int(i) for send in sends for i in send.items)


# Whom to ask.


def test_a_node_is_asked_once_for_all_its_chains():
    chains = table(chain(1, 7), chain(2, 7), chain(3, 8))
    sends = batch(Operation.READ, [1, 2, 3, 2, 1]).sends(chains, {}, 0)
    assert {send.node: send.items.tolist() for send in sends} == {7: [0, 1, 3, 4], 8: [2]}


def test_writes_go_to_the_head_whatever_the_load():
    chains = table(chain(1, 7, 8, 9))
    (send,) = batch(Operation.WRITE, [1, 1]).sends(chains, {NodeId(7): 1 << 40}, 0)
    assert send.node == 7


def test_a_read_goes_to_the_replica_with_the_least_outstanding():
    chains = table(chain(1, 7, 8, 9))
    load = {NodeId(7): 10, NodeId(8): 5, NodeId(9): 20}
    (send,) = batch(Operation.READ, [1]).sends(chains, load, 0)
    assert send.node == 8


def test_equally_loaded_replicas_take_turns():
    chains = table(chain(1, 7, 8, 9))
    asked = set()
    for turn in range(3):
        read = Batch(
            Operation.READ, np.array([1], np.uint32), np.array([9], np.uint32), 0, LIMITS, turn
        )
        asked.add(read.sends(chains, {}, 0)[0].node)
    assert asked == {7, 8, 9}


def test_many_bytes_of_one_chain_are_spread_so_that_loads_come_out_even():
    chains = table(chain(1, 7, 8, 9))
    items = 300
    load = {NodeId(7): 0, NodeId(8): 100 * 4096, NodeId(9): 1 << 40}
    sends = batch(Operation.READ, [1] * items).sends(chains, load, 0)
    assert {send.node: len(send.items) for send in sends} == {7: 200, 8: 100}
    assert covered(sends) == list(range(items))


NEAR = frozenset((NodeId(8), NodeId(9)))


def test_a_replica_on_this_machine_is_read_whatever_the_others_load():
    chains = table(chain(1, 7, 8), chain(2, 8, 6), chain(3, 6, 7))
    one = batch(Operation.READ, [1, 2, 3], size=1 << 20)
    sends = one.sends(chains, {NodeId(8): 1 << 20}, 0, NEAR)
    assert {send.node: send.items.tolist() for send in sends} == {7: [2], 8: [0, 1]}


def test_of_several_on_this_machine_one_takes_all_and_another_the_next_batch():
    chains = table(chain(1, 7, 8, 9), chain(2, 9, 7, 8))
    asked = []
    for turn in range(4):
        lengths = np.full(3, 1 << 20, np.uint32)
        chosen = np.array([1, 2, 1], np.uint32)
        one = Batch(Operation.READ, chosen, lengths, 0, LIMITS, turn)
        (send,) = one.sends(chains, {}, 0, NEAR)
        asked.append(send.node)
    assert asked == [8, 9, 8, 9]


def test_one_on_this_machine_that_is_slow_or_cannot_serve_is_not_preferred():
    chains = table(chain(1, 7, 8))
    (send,) = batch(Operation.READ, [1]).sends(chains, {NodeId(8): 1 << 30}, 0, NEAR)
    assert send.node == 7
    one = batch(Operation.READ, [1])
    (send,) = one.sends(chains, {}, 0, NEAR)
    assert send.node == 8
    one.replied(send.number, codes(send, Code.CORRUPT), 1)
    (send,) = one.sends(chains, {}, 1, NEAR)
    assert send.node == 7
    one = batch(Operation.READ, [1])
    (send,) = one.sends(chains, {}, 0, NEAR)
    one.lost(send.number, 1)
    (send,) = one.sends(chains, {}, 1, NEAR)
    assert send.node == 7


def test_writes_go_to_the_head_wherever_it_is():
    chains = table(chain(1, 7, 8))
    (send,) = batch(Operation.WRITE, [1]).sends(chains, {}, 0, NEAR)
    assert send.node == 7


def test_only_serving_replicas_are_read():
    chains = table(chain(1, 7, 8, 9, states=[S, W, O]))
    sends = batch(Operation.READ, [1] * 200).sends(chains, {NodeId(7): 1 << 40}, 0)
    assert {send.node for send in sends} == {7}


def test_requests_are_cut_by_items_and_bytes_and_bounded_in_flight():
    limits = Limits(items_per_request=3, bytes_per_request=10_000, requests_per_node=2)
    many = batch(Operation.READ, [1] * 7, size=2000, limits=limits)
    sends = many.sends(table(chain(1, 7)), {}, 0)
    assert [send.items.tolist() for send in sends] == [[0, 1, 2], [3, 4, 5]]
    assert many.sends(table(chain(1, 7)), {}, 0) == []
    many.replied(sends[0].number, codes(sends[0]), 1)
    (last,) = many.sends(table(chain(1, 7)), {}, 1)
    assert last.items.tolist() == [6]
    large = batch(Operation.READ, [1, 1], size=20_000, limits=limits)
    assert [len(s.items) for s in large.sends(table(chain(1, 7)), {}, 0)] == [1, 1]


def test_every_item_carries_the_version_of_its_chain():
    chains = table(chain(1, 7, version=4), chain(2, 7, version=9))
    (send,) = batch(Operation.WRITE, [2, 1, 2]).sends(chains, {}, 0)
    assert send.chain_versions.tolist() == [9, 4, 9]


# How it goes on.


def test_a_hole_is_a_result():
    read = batch(Operation.READ, [1, 1])
    (send,) = read.sends(table(chain(1, 7)), {}, 0)
    read.replied(send.number, np.array([Code.OK, Code.NO_CHUNK], np.uint32), 1)
    assert read.finished
    assert read.codes.tolist() == [Code.OK, Code.NO_CHUNK]


def test_a_stale_chain_is_asked_again_at_once_with_fresh_routing_then_after_pauses():
    read = batch(Operation.READ, [1])
    times = []
    for now in range(200):
        for send in read.sends(table(chain(1, 7, version=now)), {}, now):
            assert send.chain_versions.tolist() == [now]
            times.append(now)
            read.replied(send.number, codes(send, Code.STALE_CHAIN), now)
            assert read.refresh
            read.refresh = False
            assert read.wake_ms(now) == now + (0, 10, 20, 40, 80, 160)[len(times) - 1]
    assert times == [0, 1, 11, 31, 71, 151]  # a tick is 1 ms here, so "at once" is the next


def test_an_old_request_found_stale_after_the_refresh_needs_no_other():
    limits = Limits(items_per_request=1)
    read = batch(Operation.READ, [1, 1], limits=limits)
    first, second = read.sends(table(chain(1, 7, version=1)), {}, 0)
    read.replied(first.number, codes(first, Code.STALE_CHAIN), 1)
    assert read.refresh
    read.refresh = False
    again = read.sends(table(chain(1, 7, version=2)), {}, 1)
    read.replied(second.number, codes(second, Code.STALE_CHAIN), 2)
    assert not read.refresh
    again += read.sends(table(chain(1, 7, version=2)), {}, 2)
    assert [send.items.tolist() for send in again] == [[0], [1]]


def test_busy_and_dirty_pause_without_a_refresh():
    for code in (Code.BUSY, Code.DIRTY, Code.NOT_READY):
        read = batch(Operation.READ, [1])
        (send,) = read.sends(table(chain(1, 7)), {}, 0)
        read.replied(send.number, codes(send, code), 5)
        assert not read.refresh
        assert read.sends(table(chain(1, 7)), {}, 14) == []
        assert read.wake_ms(14) == 15
        assert len(read.sends(table(chain(1, 7)), {}, 15)) == 1


@pytest.mark.parametrize("code", [Code.CORRUPT, Code.DISK])
def test_bad_bytes_are_read_from_each_other_replica_once_and_then_it_fails(code):
    read = batch(Operation.READ, [1, 1])
    chains, asked = table(chain(1, 7, 8, 9)), []
    (send,) = read.sends(chains, {}, 0)
    read.replied(send.number, np.array([Code.OK, code], np.uint32), 0)
    asked.append(send.node)
    while not read.finished:
        for send in read.sends(chains, {}, 0):
            assert send.items.tolist() == [1]
            asked.append(send.node)
            read.replied(send.number, codes(send, code), 0)
    assert sorted(asked) == [7, 8, 9]
    assert read.codes.tolist() == [Code.OK, code]


def test_a_lost_read_goes_to_another_replica_at_once():
    read = batch(Operation.READ, [1])
    chains = table(chain(1, 7, 8))
    (first,) = read.sends(chains, {}, 0)
    read.lost(first.number, 10)
    assert read.refresh
    (second,) = read.sends(chains, {first.node: 0, NodeId(15 - first.node): 999}, 10)
    assert second.node != first.node


def test_a_lost_write_goes_to_the_new_head():
    write = batch(Operation.WRITE, [1])
    (send,) = write.sends(table(chain(1, 7, 8)), {}, 0)
    assert send.node == 7
    write.lost(send.number, 10)
    (send,) = write.sends(table(chain(1, 8, 7, version=2, states=[S, O])), {}, 10)
    assert (send.node, send.chain_versions.tolist()) == (8, [2])


def test_a_write_whose_outcome_is_never_known_ends_as_maybe_applied():
    write = batch(Operation.WRITE, [1])
    now = 0
    while not write.finished:
        for send in write.sends(table(chain(1, 7)), {}, now):
            write.lost(send.number, now)
        now = write.wake_ms(now) if not write.finished else now
        assert now <= LIMITS.deadline_ms
    assert write.codes.tolist() == [Code.MAYBE_APPLIED]


def test_who_does_not_answer_and_serves_no_more_is_not_waited_for():
    limits = Limits(deadline_ms=10_000, request_ms=8_000, look_ms=1_000)
    for operation in Operation:
        one = batch(operation, [1, 2], limits=limits)
        before = table(chain(1, 7), chain(2, 7))
        (send,) = one.sends(before, {}, 0)
        assert one.wake_ms(0) == 1_000
        assert one.overdue(999) == []
        assert not one.refresh
        assert one.overdue(1_000) == []
        assert one.refresh
        one.refresh = False
        assert one.sends(before, {}, 1_000) == []  # nothing newer is known: look again later
        assert one.wake_ms(1_000) == 2_000
        assert one.overdue(2_000) == []
        one.refresh = False
        after = table(chain(1, 8, version=2), chain(2, 7))
        assert one.sends(after, {}, 2_000) == []
        assert one.wake_ms(2_000) == 2_000
        assert one.overdue(2_000) == [send.number]
        one.lost(send.number, 2_000)
        again = one.sends(after, {}, 2_000)
        assert {s.node: s.items.tolist() for s in again} == {7: [1], 8: [0]}


def test_a_chain_that_changed_without_losing_who_was_asked_is_waited_for():
    limits = Limits(deadline_ms=10_000, request_ms=8_000, look_ms=1_000)
    one = batch(Operation.READ, [1], limits=limits)
    one.sends(table(chain(1, 7)), {}, 0)
    assert one.overdue(1_000) == []
    one.sends(table(chain(1, 8, 7, version=2)), {}, 1_000)
    assert one.overdue(1_000) == []
    assert one.wake_ms(1_000) == 2_000
    write = batch(Operation.WRITE, [1], limits=limits)  # node 7 is the head no more
    (send,) = write.sends(table(chain(1, 7)), {}, 0)
    assert write.overdue(1_000) == []
    write.sends(table(chain(1, 8, 7, version=2)), {}, 1_000)
    assert write.overdue(1_000) == [send.number]


def test_a_request_without_answer_is_overdue_and_at_the_deadline_all_are():
    read = batch(Operation.READ, [1])
    (send,) = read.sends(table(chain(1, 7)), {}, 0)
    assert read.wake_ms(0) == 300
    assert read.overdue(299) == []
    assert read.overdue(300) == [send.number]
    late = batch(Operation.READ, [1], limits=Limits(deadline_ms=100, request_ms=300))
    (send,) = late.sends(table(chain(1, 7)), {}, 0)
    assert late.overdue(100) == [send.number]


@pytest.mark.parametrize("operation", Operation)
def test_a_chain_that_nobody_serves_is_looked_at_again_soon_not_at_the_deadline(operation):
    one = batch(operation, [1])
    assert one.sends(table(chain(1, 7, states=[PublicState.LASTSRV])), {}, 0) == []
    assert one.refresh
    wake_ms = one.wake_ms(0)
    assert 0 < wake_ms <= LIMITS.pause_min_ms
    (send,) = one.sends(table(chain(1, 7, version=2)), {}, wake_ms)
    assert send.node == 7


def test_a_pause_that_is_over_before_the_shell_asks_for_its_end_is_not_slept_through():
    """On a loaded machine it is: the batch slept to its deadline, for nothing was under way."""
    one = batch(Operation.READ, [1])
    assert one.sends({}, {}, 0) == []
    assert one.wake_ms(50) == 50
    (send,) = one.sends(table(chain(1, 7)), {}, 50)
    one.replied(send.number, codes(send, Code.BUSY), 51)
    assert one.sends(table(chain(1, 7)), {}, 51) == []
    assert one.wake_ms(90) == 90


def test_what_could_not_be_sent_is_tried_again_at_once_and_then_after_pauses():
    one = batch(Operation.WRITE, [1])
    now, times = 0, []
    for _ in range(6):
        for send in one.sends(table(chain(1, 7)), {}, now):
            times.append(now)
            one.lost(send.number, now)  # no way leads to the node
        now = one.wake_ms(now)
    assert times == [0, 0, 10, 30, 70, 150]


def test_what_waits_for_others_answers_wakes_nobody():
    limits = Limits(items_per_request=1, requests_per_node=1)
    one = batch(Operation.WRITE, [1, 1], limits=limits)
    assert len(one.sends(table(chain(1, 7)), {}, 0)) == 1
    assert one.wake_ms(0) == one.wake_ms(5) == limits.look_ms


@pytest.mark.parametrize("chains", [{}, table(chain(1, 7, states=[PublicState.LASTSRV]))])
def test_a_chain_that_nobody_serves_is_waited_for_until_the_deadline(chains):
    read = batch(Operation.READ, [1])
    assert read.sends(chains, {}, 0) == []
    assert read.refresh
    assert len(read.sends(table(chain(1, 7, version=2)), {}, 500)) == 1
    never = batch(Operation.READ, [1])
    now = 0
    while not never.finished:
        assert never.sends(chains, {}, now) == []
        now = never.wake_ms(now) if not never.finished else now
    assert never.codes.tolist() == [Code.NOT_SERVING]


def test_every_code_ends_or_is_tried_again_as_the_table_says():
    for code, row in TABLE.items():
        if code is Code.NO_CHUNK:
            continue
        for operation in Operation:
            one = batch(operation, [1])
            (send,) = one.sends(table(chain(1, 7)), {}, 0)
            one.replied(send.number, codes(send, code), 0)
            one.sends(table(chain(1, 7)), {}, 0)
            ends = row.retry is Retry.NEVER
            if row.retry is Retry.OTHER_REPLICA and operation is Operation.READ:
                ends = True  # there is no other
            assert one.finished is ends, (code, operation)
            assert not ends or one.codes.tolist() == [code]


# Whatever happens.

FAILURES = [c for c, row in TABLE.items() if row.retry is not Retry.NEVER]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    operation=st.sampled_from(Operation),
    items=st.integers(1, 60),
    trouble=st.floats(0, 0.9),
)
def test_every_item_ends_exactly_once_before_the_deadline(seed, operation, items, trouble):
    """Servers that fail at random: nothing is asked twice at once, sends stay within limits."""
    rng = random.Random(seed)
    limits = Limits(
        items_per_request=rng.randint(1, 20),
        bytes_per_request=rng.randint(1, 20_000),
        requests_per_node=rng.randint(1, 3),
        spread_bytes=rng.choice([1, 1 << 20]),
        deadline_ms=2000,
        request_ms=200,
    )
    chains = table(chain(1, 1, 2, 3), chain(2, 2, 3), chain(3, 3, 1, states=[S, W]))
    of = np.array([rng.randint(1, 3) for _ in range(items)], np.uint32)
    sizes = np.array([rng.randint(0, 9000) for _ in range(items)], np.uint32)
    one = Batch(operation, of, sizes, 0, limits, rng.randint(0, 9))
    flying: dict[int, Send] = {}
    now = 0
    for _ in range(5_000):
        one.refresh = False
        for send in one.sends(chains, {}, now):
            check_send(send, one, flying, of, sizes, chains, operation, limits)
            flying[send.number] = send
        lost = one.overdue(now)
        for number in lost:
            one.lost(flying.pop(number).number, now)
        if one.finished:
            break
        if flying and rng.random() < 0.8:
            send = flying.pop(rng.choice(list(flying)))
            answer(one, send, rng, trouble, now)
        else:
            wake = one.wake_ms(now)
            assert wake > now or flying or lost or now == limits.deadline_ms
            now = max(now, wake)
    assert one.finished
    assert now <= limits.deadline_ms
    assert not flying


def check_send(send, one, flying, of, sizes, chains, operation, limits) -> None:
    asked = send.items.tolist()
    assert len(set(asked)) == len(asked) <= limits.items_per_request
    assert not set(asked) & {i for other in flying.values() for i in other.items.tolist()}
    assert sum(s.node == send.node for s in flying.values()) < limits.requests_per_node
    assert send.bytes == int(sizes[asked].sum())
    assert len(asked) == 1 or send.bytes <= limits.bytes_per_request
    for item in asked:
        serving = [r.node for r in chains[ChainId(int(of[item]))].serving]
        assert send.node == serving[0] if operation is Operation.WRITE else send.node in serving


def answer(one: Batch, send: Send, rng: random.Random, trouble: float, now: int) -> None:
    kind = rng.random()
    if kind < trouble / 3:
        one.lost(send.number, now)
    elif kind < trouble / 2:
        one.refused(send.number, rng.choice(FAILURES), now)
    else:
        results = [rng.choice(FAILURES) if rng.random() < trouble else Code.OK for _ in send.items]
        one.replied(send.number, np.array(results, np.uint32), now)
