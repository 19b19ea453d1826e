"""Which clients are alive: who was heard lately. Kept in memory only.

A client that opens files or asks for it is heard. One that is silent for a whole lease has its
sessions pruned (pruner.py). A metaserver that has just started has heard nobody and counts every
client as heard at its own start, so that none loses its files to a restart. The same holds when the
process was stopped for a while: what clients said meanwhile still waits in its sockets.
"""

from __future__ import annotations

import threading

from fs3.clock import Clock

_AWAKE_MS = 2_000  # a gap below this between two calls of awake() means nothing


class Clients:
    """When each client was heard last. Any thread may call."""

    def __init__(self, clock: Clock, lease_ms: int) -> None:
        self.lease_ms = lease_ms
        self._clock = clock
        self._started_ms = clock.monotonic_ms()
        self._lock = threading.Lock()
        self._heard_ms: dict[int, int] = {}
        self._awake_ms: int | None = None  # the last call of awake()

    def awake(self) -> None:
        """To be called every second: a large gap shows that this process was stopped itself."""
        with self._lock:
            self._look_at_the_gap()
            self._awake_ms = self._clock.monotonic_ms()

    def _look_at_the_gap(self) -> None:
        now_ms = self._clock.monotonic_ms()
        allowed_ms = max(self.lease_ms // 3, _AWAKE_MS)
        if self._awake_ms is not None and now_ms - self._awake_ms > allowed_ms:
            self._started_ms = self._awake_ms = now_ms
            self._heard_ms.clear()

    def heard(self, client: int) -> None:
        """``client`` is alive."""
        with self._lock:
            self._heard_ms[client] = self._clock.monotonic_ms()

    def is_gone(self, client: int) -> bool:
        """Was ``client`` silent for a whole lease?"""
        with self._lock:
            self._look_at_the_gap()
            heard_ms = self._heard_ms.get(client, self._started_ms)
        return self._clock.monotonic_ms() - heard_ms >= self.lease_ms

    def forget_gone(self) -> None:
        """Bound the memory: a client that is gone is known by not being known."""
        oldest_ms = self._clock.monotonic_ms() - self.lease_ms
        if oldest_ms < self._started_ms:
            return  # who is forgotten now would count as heard at the start
        with self._lock:
            self._heard_ms = {c: ms for c, ms in self._heard_ms.items() if ms > oldest_ms}

    def __len__(self) -> int:
        """Clients that are alive, so far as is known."""
        oldest_ms = self._clock.monotonic_ms() - self.lease_ms
        with self._lock:
            return sum(heard_ms > oldest_ms for heard_ms in self._heard_ms.values())
