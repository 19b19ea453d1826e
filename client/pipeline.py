"""Many control calls of one method at once: they travel behind each other on one connection.

A thousand names are looked up in a handful of round trips. Only over the frame binding; each thread
has a connection of its own. What fails on the way comes back as its error: the caller repeats it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

from google.protobuf.message import Message

from fs3.errors import Fs3Error
from fs3.rpc import Method
from fs3.transport.client import DataConnection, drive

WINDOW = 256  # calls in flight


class Pipeline:
    """Any thread may call."""

    def __init__(self, addresses: Sequence[str], cluster_id: str) -> None:
        self._addresses = tuple(addresses)
        self._cluster_id = cluster_id
        self._preferred = 0
        self._numbers = itertools.count(1)  # no answer can be taken for that of another call
        self.after_fork()

    def after_fork(self) -> None:
        """In the child: the parent's connections are the parent's."""
        self._local = threading.local()

    def close(self) -> None:
        """Let go of every thread's connection; each closes when a call that uses it has ended."""
        self._local = threading.local()

    def exchange(
        self, method: Method, requests: Sequence[Message], timeout_s: float
    ) -> list[Message | Fs3Error]:
        """The outcome of each request, whose header is filled in, in order."""
        outcomes: list[Message | Fs3Error] = []
        deadline_s = time.monotonic() + timeout_s
        for start in range(0, len(requests), WINDOW):
            outcomes += self._window(method, requests[start : start + WINDOW], deadline_s)
        return outcomes

    def _window(
        self, method: Method, requests: Sequence[Message], deadline_s: float
    ) -> list[Message | Fs3Error]:
        try:
            connection = self._connection()
        except Fs3Error as error:
            return [error] * len(requests)
        outcomes: dict[int, Message | Fs3Error] = {}
        numbers = list(itertools.islice(self._numbers, len(requests)))
        try:
            for number, request in zip(numbers, requests, strict=True):
                connection.send(method.number, number, request.SerializeToString())
            while len(outcomes) < len(requests):
                completions = drive([connection], deadline_s)
                if not completions:
                    connection.close()  # nobody waits for what it still brings
                for completion in completions:
                    outcomes[completion.request_id] = completion.error or method.reply.FromString(
                        completion.head
                    )
        except BaseException:  # Ctrl-C, too
            connection.close()
            raise
        return [outcomes[number] for number in numbers]

    def _connection(self) -> DataConnection:
        connection: DataConnection | None = getattr(self._local, "connection", None)
        if connection is None or connection.dead:
            if connection is not None:
                self._preferred = (self._preferred + 1) % len(self._addresses)
            address = self._addresses[self._preferred]
            connection = DataConnection(address, self._cluster_id, lambda _number, _head: None)
            self._local.connection = connection
        return connection
