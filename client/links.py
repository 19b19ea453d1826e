"""One thread's connections to storageservers: one per address, made when needed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from fs3.core.request import Send
from fs3.errors import Code, Fs3Error
from fs3.transport.client import Completion, DataConnection, drive

Place = Callable[[bytes], Sequence[memoryview]]


class Request:
    """A request in flight. When it has ended: ``reply``, or ``error``, or neither: it was lost."""

    __slots__ = ("connection", "error", "number", "place", "reply", "send")

    def __init__(self, number: int, connection: DataConnection, send: Send, place: Place) -> None:
        self.number = number
        self.connection = connection
        self.send = send
        self.place = place  # where the body of the reply goes, once its head is known
        self.reply: bytes | None = None
        self.error: Fs3Error | None = None  # what the server said of the request as a whole


class Links:
    """Used by one thread."""

    def __init__(self, cluster_id: str) -> None:
        self._cluster_id = cluster_id
        self._connections: dict[str, DataConnection] = {}
        self._requests: dict[int, Request] = {}
        self._place = _placer(self._requests)
        self._numbers = itertools.count(1)
        self._late: list[Completion] = []  # of connections that have been replaced

    def send(
        self,
        address: str,
        method: int,
        head: bytes,
        body: Sequence[memoryview],
        send: Send,
        place: Place,
    ) -> Request | None:
        """Begin a request; None if there is no way to ``address``."""
        try:
            connection = self._connection(address)
        except Fs3Error as error:
            if error.code is not Code.UNREACHABLE:
                raise
            return None
        request = Request(next(self._numbers), connection, send, place)
        self._requests[request.number] = request
        connection.send(method, request.number, head, body)
        return request

    def tell(self, request: Request, method: int, head: bytes) -> None:
        """Say something to whom ``request`` was sent; what it answers does not matter."""
        if not request.connection.dead:
            request.connection.send(method, next(self._numbers), head)

    def wait(self, timeout_s: float) -> list[Request]:
        """Requests that have ended; empty after ``timeout_s``."""
        if self._late:
            completions, self._late = self._late, []
        elif self._requests:
            deadline_s = time.monotonic() + timeout_s
            completions = drive(self._connections.values(), deadline_s)
        else:
            time.sleep(max(timeout_s, 0.0))
            return []
        ended = []
        for completion in completions:
            request = self._requests.pop(completion.request_id, None)
            if request is None:
                continue  # forgotten
            if completion.error is None:
                request.reply = completion.head
            elif not completion.connection.dead:
                request.error = completion.error
            ended.append(request)
        return ended

    def cut(self, request: Request) -> None:
        """It takes too long: break its connection; all requests on that are lost."""
        request.connection.close()

    def forget(self, request: Request) -> None:
        """Nobody wants the answer, and its buffers must not be touched any more."""
        if self._requests.pop(request.number, None) is not None:
            request.connection.forget(request.number)

    def close(self) -> None:
        """Close everything; what is pending is lost."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._requests.clear()

    def _connection(self, address: str) -> DataConnection:
        connection = self._connections.get(address)
        if connection is None or connection.dead:
            if connection is not None:
                self._late += connection.take_completed()
            connection = DataConnection(address, self._cluster_id, self._place)
            self._connections[address] = connection
        return connection


def _placer(requests: dict[int, Request]) -> Callable[[int, bytes], Sequence[memoryview] | None]:
    """Not a method of Links: in a cycle, connections would outlive their thread until collected."""

    def place(number: int, head: bytes) -> Sequence[memoryview] | None:
        request = requests.get(number)
        return None if request is None else request.place(head)

    return place
