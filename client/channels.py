"""Update channels: how a client's writes are applied exactly once.

A storageserver remembers, per (client, channel), the newest sequence and its result. So a channel
carries one update at a time, its sequence grows, and a repeated update is repeated with the same
channel and sequence. A channel whose update failed may be used again: an old update that arrives
late has a lower sequence and is refused.
"""

from __future__ import annotations

import secrets
import threading

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Code, Fs3Error

CHANNELS = 1 << 16  # the wire has 16 bits for them


class UpdateChannels:
    """The channels of one client id. Few are used over and over: servers keep a record of each."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new client with fresh channels (after a fork, when no other thread is here)."""
        self.client = secrets.randbits(64) or 1
        self._sequences = np.zeros(CHANNELS, np.uint64)
        self._free: list[int] = []
        self._unused = 0
        self._changed = threading.Condition()

    def take(self, count: int, timeout_s: float) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
        """``count`` channels and the sequence of the next update on each; :meth:`give` them back.

        Waits while other threads hold too many; Fs3Error BUSY after ``timeout_s``.
        """
        if count > CHANNELS:
            raise Fs3Error(Code.INVALID, f"{count} updates at once; at most {CHANNELS} are allowed")
        with self._changed:
            if not self._changed.wait_for(lambda: self._available() >= count, timeout_s):
                raise Fs3Error(
                    Code.BUSY, f"{count} update channels wanted, {self._available()} are free"
                )
            old = min(count, len(self._free))
            taken = self._free[len(self._free) - old :]
            del self._free[len(self._free) - old :]
            taken.extend(range(self._unused, self._unused + count - old))
            self._unused += count - old
            channels = np.array(taken, np.uint16)
            self._sequences[channels] += np.uint64(1)
            return channels, self._sequences[channels]

    def give(self, channels: NDArray[np.uint16]) -> None:
        """The updates on these channels have ended, well or not."""
        with self._changed:
            self._free.extend(channels.tolist())
            self._changed.notify_all()

    def _available(self) -> int:
        return len(self._free) + CHANNELS - self._unused
