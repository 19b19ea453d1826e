"""Background work: a thread that does one thing again and again, until it is stopped.

A failure with a code is expected now and then (a chain is down, the disk is full): it is logged,
and the next round comes later, twice as late each time up to a bound. Anything else is a bug: the
thread ends, and so must the process, or a duty would go undone unnoticed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from fs3.errors import Fs3Error
from fs3.log import get_logger

_log = get_logger(__name__)


class Periodic:
    """Calls ``work()`` every ``interval_s``; ``on_death(name)`` if that ends in a bug."""

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        interval_s: float,
        pause_s_max: float,
        on_death: Callable[[str], None],
    ) -> None:
        self._name = name
        self._work = work
        self._interval_s = interval_s
        self._pause_s_max = max(pause_s_max, interval_s)
        self._on_death = on_death
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """The first round comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """No more rounds. Does not wait for the one in progress: see :meth:`join`."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """True once the round in progress is over."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        died = True
        try:
            self._loop()
            died = False
        finally:
            if died:
                self._on_death(self._name)

    def _loop(self) -> None:
        pause_s = self._interval_s
        while not self._stop.wait(pause_s):
            try:
                self._work()
            except Fs3Error as error:
                pause_s = min(2 * pause_s, self._pause_s_max)
                _log.warning(
                    "background_work_failed", work=self._name, error=str(error), again_in_s=pause_s
                )
            else:
                pause_s = self._interval_s
