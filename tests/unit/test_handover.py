"""Calls into the reactor's thread: they end, whatever the reactor does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor
from fs3.storageserver.handover import in_reactor

LONG_S = 30.0  # nobody waits for so long unless it is wrong


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


def test_the_result_comes_back_and_so_does_what_is_raised(reactor: Reactor) -> None:
    def refuse() -> None:
        raise Fs3Error(Code.NO_CHUNK, "none")

    thread = threading.Thread(target=reactor.run)
    thread.start()
    try:
        assert in_reactor(reactor, threading.get_ident, LONG_S) == thread.ident
        with pytest.raises(Fs3Error, match="none"):
            in_reactor(reactor, refuse, LONG_S)
    finally:
        reactor.stop()
        thread.join()


def test_a_reactor_that_does_not_come_to_it_in_time_never_does(reactor: Reactor) -> None:
    calls: list[int] = []
    with pytest.raises(Fs3Error) as refused:
        in_reactor(reactor, lambda: calls.append(1), 0.01)
    assert refused.value.code is Code.BUSY
    reactor.stop()
    reactor.run()
    assert calls == []


def test_a_reactor_that_has_ended_is_not_waited_for(reactor: Reactor) -> None:
    """A storageserver that ends would wait for each caller's time, and be killed meanwhile."""
    reactor.stop()
    reactor.run()
    calls: list[int] = []
    with pytest.raises(Fs3Error) as refused:
        in_reactor(reactor, lambda: calls.append(1), 1.0)
    assert refused.value.code is Code.NOT_SERVING
    assert calls == []


def test_callers_at_the_end_are_answered_or_refused_and_wait_for_nothing() -> None:
    for _ in range(50):
        reactor, codes = Reactor(), []

        def ask(reactor: Reactor = reactor, codes: list[Code] = codes) -> None:
            while True:
                try:
                    in_reactor(reactor, lambda: None, LONG_S)
                except Fs3Error as error:
                    codes.append(error.code)
                    return

        loop = threading.Thread(target=reactor.run)
        callers = [threading.Thread(target=ask) for _ in range(4)]
        for thread in (loop, *callers):
            thread.start()
        reactor.stop()
        for thread in (loop, *callers):
            thread.join()
        reactor.close()
        assert codes == [Code.NOT_SERVING] * 4
