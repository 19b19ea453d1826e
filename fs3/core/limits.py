"""Bounds of a replica, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a replica. The simulator draws hostile ones."""

    waiting_per_chunk: int = 256  # requests behind the update under way; more get BUSY
    parked: int = 1024  # messages of a chain version not heard of yet
    parked_bytes: int = 64 << 20  # of their data; what is not kept comes again
    resend_ms: int = 500  # first wait for an acknowledgement; doubles
    resend_ms_max: int = 8000
    query_ms: int = 200  # wait for an Answer before the Query is sent again
    resync_window: int = 8  # full chunks under way to a syncing successor, when clients are quiet
    resync_window_bytes: int = 2 << 20  # of them together, before one more starts
    resync_flush_bytes: int = 16 << 20  # brought before a syncing replica writes them to its disk
    resync_page: int = 2000  # chunk records in one page
    resync_bytes_per_s: int = 0  # 0: as fast as it goes
