"""The two ends of a link: numbers, answers, and when both may be forgotten."""

from __future__ import annotations

from random import Random

from replica_rig import ack, route

from fs3.core.link import IncomingLink, OutgoingLink


def test_numbers_start_at_one_and_settle_in_order():
    link = OutgoingLink()
    assert link.settled == 0
    assert [link.open(), link.open(), link.open()] == [1, 2, 3]
    link.close(2)
    assert link.settled == 0
    link.close(1)
    assert link.settled == 2
    link.close(3)
    link.close(3)
    assert link.settled == 3


def test_a_forward_is_known_from_when_it_is_taken():
    link = IncomingLink()
    assert not link.known(1)
    link.take(1)
    assert link.known(1)
    assert link.answer(1) is None


def test_the_answer_is_kept_until_the_sender_has_it():
    link = IncomingLink()
    answer = ack(route(2, 1), 1, 1, b"x")
    link.take(1)
    link.answered(1, answer)
    assert link.answer(1) == answer
    link.settle(1)
    assert link.answer(1) is None
    assert link.known(1)


def test_an_answer_to_what_is_settled_is_not_kept():
    link = IncomingLink()
    link.settle(3)
    link.answered(2, ack(route(2, 1), 2, 1, b"x"))
    assert link.answer(2) is None


def test_what_is_forgotten_is_new_when_it_comes_again():
    link = IncomingLink()
    link.take(4)
    link.forget(4)
    assert not link.known(4)


def test_over_a_bad_wire_each_number_is_taken_once_and_little_is_remembered():
    random = Random(7)
    sender, receiver = OutgoingLink(), IncomingLink()
    taken: list[int] = []
    wire: list[tuple[int, int]] = []
    under_way: list[int] = []
    for _ in range(5000):
        what = random.random()
        if what < 0.3 and len(under_way) < 20:
            under_way.append(sender.open())
        elif under_way and what < 0.6:
            wire.append((random.choice(under_way), sender.settled))
        elif wire:
            number, settled = wire.pop(random.randrange(len(wire)))
            receiver.settle(settled)
            if not receiver.known(number):
                taken.append(number)
                receiver.answered(number, ack(route(2, 1), number, 1, b""))
            if receiver.answer(number) is not None and number in under_way and what < 0.9:
                sender.close(number)
                under_way.remove(number)
            if random.random() < 0.2:
                wire.append((number, settled))
    assert len(taken) == len(set(taken)) > 300
    assert len(receiver._answers) < 100
