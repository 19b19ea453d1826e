"""What may be sent when: the bookkeeping of one link, and permits against incast. No I/O.

Invariants: a message is sent only into a receive that the peer has posted (:class:`Credits`); no
more work requests are posted than the send queue holds, and memory that one of them refers to is
given back only after its completion (:class:`SendQueue`); no more payload is on its way to one
receiver than it has permitted (:class:`Permits`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from fs3.transport.rdma.verbs import UNSIGNALED

Callback = Callable[[], None]
_RESERVED = 1  # the last credit is for returning credits: else both ends could wait for the other


class Credits:
    """Receives posted by the peer that we may use, and receives of ours that it may use again."""

    def __init__(self, theirs: int, ours: int) -> None:
        """``theirs``: receives that the peer has posted; ``ours``: those posted here."""
        self.available = theirs
        self.owed = 0
        self._ours = ours

    @property
    def may_send(self) -> bool:
        """A message that is not about credits alone."""
        return self.available > _RESERVED

    @property
    def must_return(self) -> bool:
        """So many are owed that the peer may be waiting: say so, if nothing else is said."""
        return self.available > 0 and self.owed >= max(1, self._ours // 2)

    def sent(self) -> int:
        """A message leaves: it takes a credit, and with it go those that are owed."""
        self.available -= 1
        owed, self.owed = self.owed, 0
        return owed

    def received(self, returned: int) -> None:
        """A message came, and its receive was posted anew."""
        self.available += returned
        self.owed += 1


class SendQueue:
    """Work requests posted in chains; of a chain at most the last one is signaled.

    A completion stands for its chain and the unsignaled ones before it. Who needs to hear that a
    request is done gives a callback; a chain without any is signaled only when too much stands
    open. Linux' soft iWARP tells that a SEND is done before it tells so of a READ posted earlier:
    such a completion counts when those before it have come.
    """

    def __init__(self, depth: int, slots: int) -> None:
        """``depth`` work requests at once, ``slots`` of which may be messages."""
        self._depth = depth
        self._slots = slots
        self._next_id = 0
        self._open: deque[tuple[int, int, int, list[Callback]]] = deque()
        self._early: set[int] = set()  # done before one that was posted before
        self._unsignaled_requests = self._unsignaled_messages = 0
        self._requests = self._messages = 0  # posted and not known to be done
        self._sent = 0

    @property
    def request_room(self) -> int:
        """Work requests that may be posted now."""
        return self._depth - self._requests

    @property
    def slot_room(self) -> int:
        """Messages that may be posted now."""
        return self._slots - self._messages

    @property
    def outstanding(self) -> bool:
        """A completion is due."""
        return bool(self._open)

    def next_slot(self, ahead: int = 0) -> int:
        """Where the message after ``ahead`` others is written."""
        return (self._sent + ahead) % self._slots

    def posting(self, requests: int, messages: int, callbacks: list[Callback]) -> int:
        """A chain is being posted; the work id of its last request, or UNSIGNALED."""
        self._requests += requests
        self._messages += messages
        self._sent += messages
        self._unsignaled_requests += requests
        self._unsignaled_messages += messages
        if (
            not callbacks
            and self._unsignaled_messages * 2 < self._slots
            and self._unsignaled_requests * 2 < self._depth
        ):
            return UNSIGNALED
        work_id = self._next_id
        self._next_id += 1
        counts = self._unsignaled_requests, self._unsignaled_messages
        self._open.append((work_id, *counts, callbacks))
        self._unsignaled_requests = self._unsignaled_messages = 0
        return work_id

    def completed(self, work_id: int) -> list[Callback]:
        """What is to be called, now that ``work_id`` is done."""
        due: list[Callback] = []
        self._early.add(work_id)
        while self._open and self._open[0][0] in self._early:
            first, requests, messages, callbacks = self._open.popleft()
            self._early.remove(first)
            self._requests -= requests
            self._messages -= messages
            due += callbacks
        return due

    def abandon(self) -> list[Callback]:
        """The queue pair is no more: what is to be called."""
        due = [callback for _, _, _, callbacks in self._open for callback in callbacks]
        self._open.clear()
        return due


class Permits:
    """Bytes that may be on their way to one receiver, from all its senders together.

    Whoever wants to send asks under a key of his; ``grant`` is called when he may, at once or
    later, in the order in which they asked. One that is larger than all goes alone.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._used: dict[Hashable, int] = {}
        self._waiting: deque[tuple[Hashable, int, Callback]] = deque()
        self.used_bytes = 0

    def try_take(self, key: Hashable, length_bytes: int) -> bool:
        """Take a permit now, if nobody waits and there is room."""
        if self._waiting or not self._fits(length_bytes):
            return False
        self._used[key] = length_bytes
        self.used_bytes += length_bytes
        return True

    def ask(self, key: Hashable, length_bytes: int, grant: Callback) -> None:
        """Take a permit when there is room."""
        self._waiting.append((key, length_bytes, grant))
        self._serve()

    def release(self, key: Hashable) -> None:
        """Sent, or given up; a key without a permit, or that waits for one, is fine."""
        length_bytes = self._used.pop(key, None)
        if length_bytes is not None:
            self.used_bytes -= length_bytes
        elif any(waiting[0] == key for waiting in self._waiting):
            self._waiting = deque(w for w in self._waiting if w[0] != key)
        if self._waiting:
            self._serve()

    def _fits(self, length_bytes: int) -> bool:
        return not self._used or self.used_bytes + length_bytes <= self.bytes_max

    def _serve(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            key, length_bytes, grant = self._waiting.popleft()
            self._used[key] = length_bytes
            self.used_bytes += length_bytes
            grant()
