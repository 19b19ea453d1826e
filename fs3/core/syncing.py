"""The syncing side of a resync: it says what it has, takes what comes, and hears when that is all.

It calls itself up to date only when everything it was brought is on stable storage: a client's
fsync was answered long ago by the others, and this replica is about to stand in for them. It writes
down in portions: all at once in the end would keep a disk busy that others share.
"""

from __future__ import annotations

from collections.abc import Mapping

from fs3.core.chunks import ChunkTable
from fs3.core.lane import Lane
from fs3.core.limits import Limits
from fs3.core.messages import (
    Effect,
    Flush,
    PutChannels,
    Send,
    StateChanged,
    SyncChannels,
    SyncPage,
    SyncRequest,
)
from fs3.core.place import Place
from fs3.core.types import ChunkId, LocalState


class Syncing:
    """What a replica knows of its own resync."""

    def __init__(self, table: ChunkTable, limits: Limits) -> None:
        self.uptodate = False
        self.progress = (0, 0)  # chunks compared so far, chunks in all; as the source says
        self._table = table
        self._limits = limits
        self._flushes = 0  # asked for so far; each has its number
        self._last_flush = 0  # after which everything is there; 0: not yet known
        self._portion_flush = 0  # of a portion, under way; 0: none
        self._unflushed_bytes = 0

    def on_request(
        self, request: SyncRequest, place: Place, lanes: Mapping[ChunkId, Lane]
    ) -> list[Effect]:
        """The predecessor asks what this replica has.

        A pending version that nothing is under way for is one that :meth:`Replica.start` has
        dropped and the store has yet to: it is as good as gone. Shown, it would be a difference
        that no copy ends, asked for again and again until the disk is done.
        """
        self.progress = (request.done, request.total)
        limit = min(request.limit, self._limits.resync_page)
        after = ChunkId(request.after) if request.after else None
        records = tuple(
            (chunk, meta if chunk in lanes or not meta.pending_version else meta.committed)
            for chunk, meta in self._table.scan(after, limit)
        )
        route = place.route(request.route.source)
        last = len(records) < limit
        return [Send(SyncPage(route, request.round, request.after, records, last))]

    def on_channels(self, message: SyncChannels, place: Place) -> list[Effect]:
        """The predecessor's exactly-once records."""
        route = place.route(message.route.source)
        return [PutChannels(message.channels), Send(SyncChannels(route, message.after, ()))]

    def on_done(self) -> list[Effect]:
        """The predecessor says that this replica has everything."""
        if self.uptodate or self._last_flush:
            return []
        self._last_flush = self._next_flush()
        return [Flush(self._last_flush)]

    def brought(self, length_bytes: int) -> list[Effect]:
        """So much more has been stored."""
        self._unflushed_bytes += length_bytes
        if self._portion_flush or self._unflushed_bytes < self._limits.resync_flush_bytes:
            return []
        self._unflushed_bytes = 0
        self._portion_flush = self._next_flush()
        return [Flush(self._portion_flush)]

    def _next_flush(self) -> int:
        self._flushes += 1
        return self._flushes

    def on_flushed(self, number: int) -> list[Effect]:
        """Everything up to then is on stable storage."""
        if number == self._portion_flush:
            self._portion_flush = 0
        if number != self._last_flush:
            return []
        self.uptodate = True
        return [StateChanged(LocalState.UPTODATE)]
