"""Handler table on the frame port: the second binding of fs3/rpc.py.

A method marked inline runs on the reactor's thread: it neither blocks nor writes, and handing it to
a thread would cost more than it does. All others run in a few threads behind a bounded queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from typing import Protocol

from fs3 import frames
from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor
from fs3.rpc import Handlers
from fs3.transport.connection import Caller, OnFrame, Request

_QUEUED_PER_WORKER = 64
_GONE = Fs3Error(Code.CANCELLED, "the caller has gone")


class FramePort(Protocol):
    """What is needed of a fs3.transport.tcp.FrameServer."""

    reactor: Reactor

    def take(self, methods: Iterable[int], on_frame: OnFrame) -> None:
        """Hand frames of these methods to ``on_frame``."""


class HandlerThreads:
    """What serves the methods that are not inline. ``close`` it after the server."""

    def __init__(self, handlers: Handlers, server: FramePort, workers: int) -> None:
        self._handlers = handlers
        self._reactor = server.reactor
        self._queued_max = workers * _QUEUED_PER_WORKER
        self._queued = 0  # not answered yet; the reactor's thread counts
        self._queue: queue.SimpleQueue[tuple[Caller, Request] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"handler-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def on_frame(self, connection: Caller, request: Request) -> None:
        """In the reactor's thread."""
        if request.body is not None:
            request.body.release()
            connection.fail(
                request,
                Fs3Error(Code.INVALID, f"control method {request.method:#06x} takes no body"),
            )
        elif self._handlers.is_inline(request.method):
            _answer(connection, request, self._outcome(request))
        elif self._queued >= self._queued_max:
            connection.fail(
                request,
                Fs3Error(Code.BUSY, f"{self._queued} requests wait; no more are allowed here"),
            )
        else:
            self._queued += 1
            self._queue.put((connection, request))

    def close(self) -> None:
        """Wait for the handlers that run. Before the reactor is closed: they report to it."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            connection, request = job
            # Whoever has given up asks again: what was asked first must not come after that.
            outcome = _GONE if connection.closed else self._outcome(request)
            self._reactor.call_soon(self._done, connection, request, outcome)

    def _outcome(self, request: Request) -> bytes | Fs3Error:
        try:
            reply = self._handlers.dispatch(request.method, request.head)
        except Fs3Error as error:
            return error
        if len(reply) > frames.HEAD_BYTES_MAX:
            return Fs3Error(
                Code.TOO_LARGE,
                f"a reply of {len(reply)} bytes; {frames.HEAD_BYTES_MAX} are allowed: ask for less",
            )
        return reply

    def _done(self, connection: Caller, request: Request, outcome: bytes | Fs3Error) -> None:
        self._queued -= 1
        _answer(connection, request, outcome)


def _answer(connection: Caller, request: Request, outcome: bytes | Fs3Error) -> None:
    if isinstance(outcome, Fs3Error):
        connection.fail(request, outcome)
    else:
        connection.reply(request.request_id, request.method, outcome)


def serve_handlers(server: FramePort, handlers: Handlers, workers: int = 4) -> HandlerThreads:
    """Serve every method of ``handlers`` on ``server``'s port."""
    threads = HandlerThreads(handlers, server, workers)
    server.take(handlers.methods, threads.on_frame)
    return threads
