"""The event loop: order, fairness, timers, wake-ups from other threads, exceptions."""

import gc
import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from fs3.reactor import READABLE, WRITABLE, Reactor


@pytest.fixture
def reactor():
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


def test_a_ready_descriptor_calls_back_until_it_is_unregistered(reactor, pair):
    left, right = pair
    seen = []

    def on_ready(events):
        seen.append((events, left.recv(1)))
        if len(seen) == 3:
            reactor.unregister(left.fileno())
            reactor.stop()

    reactor.register(left.fileno(), READABLE, on_ready)
    right.send(b"abcdef")
    reactor.run()
    assert seen == [(READABLE, b"a"), (READABLE, b"b"), (READABLE, b"c")]


def test_a_descriptor_unregistered_in_the_same_turn_is_not_called(reactor):
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def on_ready(own):
        called.append(own)
        for left, _ in pairs:
            reactor.unregister(left.fileno())
        reactor.stop()

    for number, (left, right) in enumerate(pairs):
        reactor.register(left.fileno(), READABLE, lambda _events, n=number: on_ready(n))
        right.send(b"x")
    reactor.run()
    assert len(called) == 1
    for left, right in pairs:
        left.close()
        right.close()


def test_busy_descriptors_take_turns(reactor):
    pairs = [socket.socketpair() for _ in range(3)]
    order = []

    def on_ready(number):
        pairs[number][0].recv(1)
        order.append(number)
        if len(order) == 9:
            reactor.stop()

    for number, (left, right) in enumerate(pairs):
        reactor.register(left.fileno(), READABLE, lambda _events, n=number: on_ready(n))
        right.send(b"xxx")
    reactor.run()
    assert [sorted(order[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    for left, right in pairs:
        left.close()
        right.close()


def test_who_has_work_left_is_called_again_without_new_input(reactor, pair):
    left, _ = pair
    calls = []

    def on_ready(events):
        calls.append(events)
        if len(calls) == 3:
            reactor.stop()
        else:
            reactor.repeat(left.fileno())

    reactor.register(left.fileno(), READABLE, on_ready)
    reactor.repeat(left.fileno())
    reactor.run()
    assert calls == [READABLE] * 3


def test_work_left_is_not_forgotten_when_the_descriptor_is_ready_for_something_else(reactor, pair):
    left, _ = pair
    calls = []

    def on_ready(events):
        calls.append(events)
        if len(calls) == 1:
            reactor.repeat(left.fileno())
        else:
            reactor.stop()

    reactor.register(left.fileno(), WRITABLE, on_ready)
    reactor.run()
    assert calls == [WRITABLE, WRITABLE | READABLE]


def test_call_soon_keeps_the_order_and_what_it_adds_waits_a_turn(reactor):
    order = []

    def first():
        order.append("first")
        reactor.call_soon(order.append, "third")
        reactor.call_soon(reactor.stop)

    reactor.call_soon(first)
    reactor.call_soon(order.append, "second")
    reactor.run()
    assert order == ["first", "second", "third"]


def test_other_threads_wake_the_loop_and_nothing_of_theirs_is_lost(reactor):
    counted = []
    finished = threading.Semaphore(0)

    def count(who):
        counted.append(who)
        if len(counted) == 8 * 500:
            reactor.stop()

    def ask(who):
        for _ in range(500):
            reactor.call_soon(count, who)
        finished.release()

    threads = [threading.Thread(target=ask, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    reactor.run()
    for thread in threads:
        thread.join()
    assert sorted(counted) == sorted(list(range(8)) * 500)


def test_timers_run_in_order_and_cancelled_ones_do_not(reactor, monkeypatch):
    order, now_s = [], time.monotonic()
    with monkeypatch.context() as patch:  # all are asked for in the same moment
        patch.setattr("fs3.reactor.time", SimpleNamespace(monotonic=lambda: now_s))
        reactor.call_later(0.02, lambda: order.append("late"))
        reactor.call_later(0.01, lambda: order.append("early"))
        cancelled = reactor.call_later(0.005, lambda: order.append("never"))
        cancelled.cancel()
        reactor.call_later(0.03, reactor.stop)
    reactor.run()
    assert order == ["early", "late"]


def test_what_was_queued_before_stop_is_called_even_if_the_loop_had_not_begun(reactor):
    called = []
    reactor.call_soon(called.append, "queued")
    reactor.stop()
    reactor.run()
    assert called == ["queued"]


def test_stop_from_another_thread_ends_a_loop_that_waits(reactor):
    thread = threading.Thread(target=reactor.run)
    thread.start()
    reactor.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_a_signal_ends_a_loop_of_its_own_thread_that_waits(reactor):
    before = signal.signal(signal.SIGUSR1, lambda *_: reactor.call_from_signal(reactor.stop))
    here, begun = threading.get_ident(), threading.Event()
    state = f"/proc/self/task/{threading.get_native_id()}/stat"

    def interrupt():
        begun.wait()
        while not asleep():
            pass
        signal.pthread_kill(here, signal.SIGUSR1)

    def asleep():
        with open(state) as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"

    other = threading.Thread(target=interrupt)
    other.start()
    try:
        reactor.call_soon(begun.set)
        reactor.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
        other.join()


def test_an_exception_is_logged_and_told_to_the_owner_and_the_loop_goes_on(reactor, pair, caplog):
    left, right = pair
    told = []

    def broken(_events):
        raise ZeroDivisionError("broken")

    def on_error(error):
        told.append(error)
        reactor.unregister(left.fileno())
        reactor.call_soon(reactor.stop)

    reactor.register(left.fileno(), READABLE, broken, on_error)
    right.send(b"x")
    reactor.run()
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_an_exception_without_an_owner_ends_the_loop(reactor, pair):
    left, right = pair

    def broken(_events):
        raise ZeroDivisionError("broken")

    reactor.register(left.fileno(), READABLE, broken)
    right.send(b"x")
    with pytest.raises(ZeroDivisionError, match="broken"):
        reactor.run()


def test_a_closed_loop_leaves_no_descriptor_behind():
    gc.collect()
    gc.disable()  # or descriptors of earlier tests' garbage might be closed meanwhile
    try:
        before = set(os.listdir("/proc/self/fd"))
        reactor = Reactor()
        reactor.call_soon(reactor.stop)
        reactor.run()
        reactor.close()
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()
