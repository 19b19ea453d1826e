"""How many copies may be under way to a syncing successor: one, while clients write.

A client's update goes the same way as the copies, and waits for those that went before it. So while
clients change the chain there is one copy under way at a time: an update finds at most one full
chunk ahead of it. When they have been quiet for a while two large chunks may be, so that one is
read here while the other is stored there, or more small ones.
"""

from __future__ import annotations

from fs3.core.limits import Limits
from fs3.core.types import ChunkId

_QUIET_MS = 1000  # without an update for so long, nobody is kept waiting


class Pacing:
    """Of one resync. Times are of the replica's own clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._under_way: dict[ChunkId, int] = {}  # and how many bytes it has
        self._under_way_bytes = 0
        self._updates: set[ChunkId] = set()  # of clients, not acknowledged yet
        self._quiet_from_ms = 0
        self._allowance_bytes = 0.0
        self._allowed_at_ms: int | None = None

    def update_sent(self, chunk: ChunkId) -> None:
        """An update of a client goes to the successor, perhaps not for the first time."""
        self._updates.add(chunk)

    def update_ended(self, chunk: ChunkId, now_ms: int) -> None:
        """The successor has answered it."""
        self._updates.discard(chunk)
        self._quiet_from_ms = now_ms + _QUIET_MS

    def allows(self, now_ms: int, rate_bytes_per_s: int) -> bool:
        """May one more copy start now? ``rate_bytes_per_s`` 0: at any rate."""
        return self._has_room(now_ms) and self._keeps_rate(now_ms, rate_bytes_per_s)

    def _has_room(self, now_ms: int) -> bool:
        if not self._under_way:
            return True
        return (
            not self._updates
            and now_ms >= self._quiet_from_ms
            and len(self._under_way) < self._limits.resync_window
            and self._under_way_bytes < self._limits.resync_window_bytes
        )

    def _keeps_rate(self, now_ms: int, rate_bytes_per_s: int) -> bool:
        if not rate_bytes_per_s:
            return True
        since = now_ms - (self._allowed_at_ms if self._allowed_at_ms is not None else now_ms)
        self._allowed_at_ms = now_ms
        earned = self._allowance_bytes + since * rate_bytes_per_s / 1000
        self._allowance_bytes = min(earned, float(rate_bytes_per_s))
        return self._allowance_bytes >= 0

    def started(self, chunk: ChunkId, length_bytes: int) -> None:
        """A copy of ``chunk`` goes to the successor."""
        self._under_way[chunk] = length_bytes
        self._under_way_bytes += length_bytes
        self._allowance_bytes -= length_bytes

    def finished(self, chunk: ChunkId) -> None:
        """It is there."""
        self._under_way_bytes -= self._under_way.pop(chunk, 0)
