"""Time as an argument: daemons get a Clock, tests and the simulator pass one they drive."""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_ms(self) -> int:
        """Never goes back, also when the wall clock is set; its zero means nothing."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for what people and files see. May jump."""


class SystemClock:
    """The machine's clocks. Monotonic time goes on while the machine is suspended."""

    def monotonic_ms(self) -> int:
        """See :class:`Clock`."""
        # CLOCK_MONOTONIC stands still during suspend; a lease that slept must be over on waking.
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def wall_ns(self) -> int:
        """See :class:`Clock`."""
        return time.time_ns()


def boot_clock_id() -> int:
    """The same in two processes of a machine if their :class:`SystemClock` shows the same time.

    It is another one in another time namespace; 0 if there is none to be told.
    """
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except OSError:
        return 0
