"""A small epoll loop: one thread, callbacks, timers.

One turn: wait, then each ready descriptor's callback once, then the timers that are due, then what
:meth:`Reactor.call_soon` had queued before the turn reached it. Descriptors are level-triggered, so
a callback does a bounded piece of work and returns; what is left makes the descriptor ready again.
That is the whole of fairness: nobody gets a second helping before everybody had a first.

Only :meth:`call_soon` and :meth:`stop` may be called from other threads, and from signal handlers
:meth:`call_from_signal`.

An exception in a descriptor's callback is a bug in that conversation: it is logged, and the owner's
``on_error`` closes its connection; the loop goes on. Callbacks without an owner (timers, call_soon,
descriptors registered without ``on_error``) are the program itself: their exceptions leave
:meth:`run`, because nothing is known to be right any more.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from fs3.log import get_logger

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
FAILED = select.EPOLLERR | select.EPOLLHUP  # always told, whatever was registered for

_EVENTS_PER_TURN = 128
_log = get_logger(__name__)


class _Watch(NamedTuple):
    callback: Callable[[int], None]
    on_error: Callable[[Exception], None] | None


class Timer:
    """A call at a later time; ``cancel`` may be called at any time, also after it ran."""

    __slots__ = ("at_s", "callback")

    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s = at_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not run."""
        self.callback = None


class Reactor:
    """See the module. ``close()`` when :meth:`run` has returned."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._repeats: dict[int, None] = {}  # descriptors with work left, in order
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # timers due at the same moment run in order
        self._thread = 0  # that runs the loop; 0: none
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False  # the eventfd is set: nobody else needs to
        self.register(self._wake, READABLE, self._on_wake)

    def register(
        self,
        fd: int,
        events: int,
        callback: Callable[[int], None],
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready for one of ``events``, or FAILED."""
        self._epoll.register(fd, events)
        self._watches[fd] = _Watch(callback, on_error)

    def modify(self, fd: int, events: int) -> None:
        """Watch for other events; 0 for none but FAILED."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Before ``fd`` is closed. Its callback is not called again, not in this turn either."""
        del self._watches[fd]
        self._epoll.unregister(fd)

    def repeat(self, fd: int) -> None:
        """Call ``fd``'s callback again next turn, as if readable: its owner has work left."""
        self._repeats[fd] = None

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Call it in the loop's thread, in the order asked. Any thread may ask.

        When the loop is closed nothing comes of it.
        """
        self._soon.append((function, arguments))
        self._wake_up()

    def call_from_signal(self, function: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """:meth:`call_soon` for a signal's handler: it may be the loop's own thread, and asleep."""
        self._soon.append((function, arguments))
        self._wake_up_anyone()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call it once, not before ``delay_s`` have passed."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.at_s, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Until :meth:`stop`. What was queued by call_soon before it is still called."""
        self._thread = threading.get_ident()
        try:
            while not self._stopping:
                self._turn()
            self._run_queued()  # queued before stop, but after the last turn had looked
        finally:
            self._thread = 0

    def stop(self) -> None:
        """Make :meth:`run` return after its turn. Any thread may ask."""
        self._stopping = True
        self._wake_up()

    @property
    def stopping(self) -> bool:
        """:meth:`stop` was called. What was queued before it is called, what comes now perhaps."""
        return self._stopping

    def close(self) -> None:
        """Give the loop's own descriptors back; those registered are their owners' to close."""
        self._woken = True  # who calls late must not write to what has this number next
        self._epoll.close()
        os.close(self._wake)

    def _wake_up(self) -> None:
        if threading.get_ident() != self._thread:
            self._wake_up_anyone()

    def _wake_up_anyone(self) -> None:
        # The loop clears _woken before it looks at the queue: who finds it set after queueing will
        # be seen. Two that find it clear write twice, which costs nothing but a turn.
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake, 1)

    def _on_wake(self, _events: int) -> None:
        os.eventfd_read(self._wake)
        self._woken = False

    def _turn(self) -> None:
        ready = self._epoll.poll(self._timeout_s(), _EVENTS_PER_TURN)
        repeats, self._repeats = self._repeats, {}
        for fd, events in ready:
            repeated = READABLE if repeats.pop(fd, 0) is None else 0
            self._call(fd, events | repeated)
        for fd in repeats:
            self._call(fd, READABLE)
        self._run_timers()
        self._run_queued()

    def look(self, fd: int) -> None:
        """Call back for ``fd`` now, as if it was readable: its errors are its own, as ever."""
        self._call(fd, READABLE)

    def _call(self, fd: int, events: int) -> None:
        watch = self._watches.get(fd)
        if watch is None:
            return  # unregistered by an earlier callback of this turn
        try:
            watch.callback(events)
        except Exception as error:
            if watch.on_error is None:
                raise
            _log.exception("callback_failed", fd=fd)
            watch.on_error(error)

    def _timeout_s(self) -> float:
        if self._soon or self._repeats or self._stopping:
            return 0.0
        if not self._timers:
            return -1.0
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_queued(self) -> None:
        for _ in range(len(self._soon)):
            function, arguments = self._soon.popleft()
            function(*arguments)

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()
