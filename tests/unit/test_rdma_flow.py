"""Credits, the send queue and permits: what may be sent when."""

import random

from fs3.transport.rdma.flow import Credits, Permits, SendQueue
from fs3.transport.rdma.verbs import UNSIGNALED


def test_the_last_credit_is_kept_for_returning_credits():
    credits = Credits(3, 4)
    assert credits.may_send
    credits.sent()
    credits.sent()
    assert (credits.available, credits.may_send) == (1, False)
    credits.received(2)
    assert credits.may_send


def test_credits_are_returned_with_a_message_or_when_many_are_owed():
    credits = Credits(8, 4)
    credits.received(0)
    assert not credits.must_return
    credits.received(0)
    assert credits.must_return
    assert credits.sent() == 2
    assert (credits.owed, credits.must_return) == (0, False)


def test_two_ends_that_only_send_when_they_may_never_overrun_and_never_stop():
    rng = random.Random(7)
    for slots in ((4, 4), (4, 32), (5, 7)):
        ends = [Credits(slots[1], slots[0]), Credits(slots[0], slots[1])]
        wires: list[list[int]] = [[], []]  # messages towards each end: the credits they return
        sent = [0, 0]
        for _ in range(5000):
            end = rng.randrange(2)
            me, there = ends[end], wires[1 - end]
            if rng.random() < 0.5 and wires[end]:
                me.received(wires[end].pop(0))
            elif me.may_send:
                there.append(me.sent())
                sent[end] += 1
            elif me.must_return:
                there.append(me.sent())
            assert len(wires[end]) <= slots[end]
            assert len(there) <= slots[1 - end]
        assert min(sent) > 100


def test_a_completion_stands_for_the_unsignaled_ones_before_it_and_waits_for_signaled_ones():
    queue, called = SendQueue(16, 8), []
    assert queue.posting(3, 1, []) == UNSIGNALED
    first = queue.posting(2, 1, [lambda: called.append("first")])
    second = queue.posting(1, 0, [lambda: called.append("second")])
    assert (queue.request_room, queue.slot_room) == (10, 6)
    assert queue.completed(second) == []
    assert (queue.request_room, queue.slot_room, queue.outstanding) == (10, 6, True)
    for callback in queue.completed(first):
        callback()
    assert called == ["first", "second"]
    assert (queue.request_room, queue.slot_room, queue.outstanding) == (16, 8, False)


def test_a_queue_is_signaled_before_it_is_full_of_what_nobody_waits_for():
    queue = SendQueue(100, 8)
    ids = [queue.posting(1, 1, []) for _ in range(4)]
    assert ids[:3] == [UNSIGNALED] * 3
    assert ids[3] != UNSIGNALED
    queue = SendQueue(8, 100)
    assert queue.posting(4, 0, []) != UNSIGNALED


def test_slots_are_used_in_turn():
    queue = SendQueue(100, 4)
    assert [queue.next_slot(n) for n in range(3)] == [0, 1, 2]
    queue.posting(3, 3, [])
    assert [queue.next_slot(n) for n in range(2)] == [3, 0]


def test_permits_are_given_in_the_order_of_asking():
    permits, granted = Permits(100), []
    assert permits.try_take("a", 60)
    permits.ask("b", 50, lambda: granted.append("b"))
    permits.ask("c", 10, lambda: granted.append("c"))
    assert granted == []  # c would fit, but b was first
    assert not permits.try_take("d", 1)
    permits.release("a")
    assert (granted, permits.used_bytes) == (["b", "c"], 60)


def test_what_is_larger_than_all_permits_goes_alone():
    permits, granted = Permits(100), []
    permits.ask("huge", 1000, lambda: granted.append("huge"))
    permits.ask("small", 1, lambda: granted.append("small"))
    assert granted == ["huge"]
    permits.release("huge")
    assert granted == ["huge", "small"]


def test_who_gives_up_waiting_lets_the_others_go_on():
    permits, granted = Permits(100), []
    permits.try_take("a", 90)
    permits.ask("big", 90, lambda: granted.append("big"))
    permits.ask("small", 5, lambda: granted.append("small"))
    permits.release("big")
    assert granted == ["small"]
    permits.release("nobody")
    permits.release("a")
    permits.release("small")
    assert permits.used_bytes == 0
