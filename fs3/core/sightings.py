"""Uses of values that a replica has seen and the head, which evicts, has not: when it is told.

Any replica answers reads, and clients of its machine tell it what they read by themselves, but
only the head decides what has to go. So each of the others tells it now and then what was used
since, each value once, in the order of the last use. That is a hint: nobody waits for it or sends
it again, and what does not fit is forgotten, the longest unused first.
"""

from __future__ import annotations

from collections.abc import Sequence

from fs3.core.messages import Used
from fs3.core.place import Place
from fs3.core.types import ChunkId

TELL_MS = 250  # from the first use that the head has not heard of
TELL_MAX = 4096  # values in a message; with so many it leaves at once


class Sightings:
    """Of one replica. Time is handed in."""

    def __init__(self) -> None:
        self._seen: dict[ChunkId, None] = {}  # those used last stand last
        self._first_ms = 0

    def __len__(self) -> int:
        return len(self._seen)

    def see(self, chunks: Sequence[ChunkId], now_ms: int) -> None:
        """These were used, in one batch, whose first counts as used last (see recency.py)."""
        seen = self._seen
        if not seen:
            self._first_ms = now_ms
        for chunk in reversed(chunks):
            seen.pop(chunk, None)  # to the end of the order
            seen[chunk] = None

    def tell(self, place: Place | None, now_ms: int) -> Used | None:
        """The message to the head that is due now; None: nobody is to be told anything.

        ``place`` of this replica; None if it is in no chain. A head has nobody to tell.
        """
        if place is None or place.is_head or not place.chain.serving:
            self._seen.clear()
            return None
        if not self._seen or (len(self._seen) < TELL_MAX and now_ms - self._first_ms < TELL_MS):
            return None
        chunks = tuple(reversed(self._seen))[:TELL_MAX]
        self._seen.clear()
        return Used(place.route(place.chain.serving[0].target), chunks)
