"""Reads of KV values that a server has not seen: noted by who made them, told in batches.

A client that remembers where values lie reads them without asking, and the server, which evicts
what was not used for long, has to hear of it. It is told before anything else is sent, so that a
thread's puts find its gets noted, and when many have come together or the first is some time ago.
What is not told when the connection ends is lost: the order of use is approximate.
"""

from __future__ import annotations

import time

from fs3 import dataplane
from fs3.compiled import Buffer
from fs3.core.kv import OWNER_BYTE

USES_MAX = 1024
PAUSE_S = 0.25


class Uses:
    """Of one connection."""

    def __init__(self) -> None:
        self._heads: list[bytes] = []
        self._count = 0
        self._first_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._heads)

    def note(self, head: Buffer) -> bool:
        """READ_ITEMs have been read; True if it is time to tell."""
        if head[0] < OWNER_BYTE:  # files and values never share a batch
            return False
        now_s = time.monotonic()
        if not self._heads:
            self._first_s = now_s
        self._heads.append(bytes(head))
        self._count += len(head) // dataplane.ITEM.size
        return self._count >= USES_MAX or now_s - self._first_s >= PAUSE_S

    def take(self) -> list[bytes]:
        """What is to be told, each a request's head; nothing is left."""
        item, most = dataplane.ITEM.size, dataplane.BATCH_ITEMS_MAX
        told = b"".join(self._heads)
        self._heads.clear()
        self._count = 0
        return [told[at : at + item * most] for at in range(0, len(told), item * most)]
