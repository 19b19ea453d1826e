"""Calling into the reactor's thread from another one, and waiting for the answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor

T = TypeVar("T")


def in_reactor(reactor: Reactor, function: Callable[[], T], timeout_s: float) -> T:
    """The result of ``function``, run in the reactor's thread; raises what it raises.

    Fs3Error BUSY if the reactor did not come to it in time, NOT_SERVING if it ends; then it is not
    called later either.
    """
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - it belongs to the thread that waits
            future.set_exception(error)

    reactor.call_soon(run)
    # Asked after it was queued: if it is not stopping by now it will come to what is queued.
    if reactor.stopping and future.cancel():
        raise Fs3Error(Code.NOT_SERVING, "the storageserver is stopping")
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if not future.cancel():
            return future.result()
        raise Fs3Error(Code.BUSY, f"the event loop did not answer within {timeout_s} s") from None
