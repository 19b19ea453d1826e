"""The syncing side of a resync: it says what it has, takes what comes, and hears when that is all.

It calls itself up to date only when everything it was brought is on stable storage: a client's
fsync was answered long ago by the others, and this replica is about to stand in for them.
"""

from __future__ import annotations

from fs3.core.chunks import ChunkTable
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

    def __init__(self, table: ChunkTable, page: int) -> None:
        self.uptodate = False
        self.progress = (0, 0)  # chunks compared so far, chunks in all; as the source says
        self._table = table
        self._page = page
        self._flush = 0  # the one under way; 0: none

    def on_request(self, request: SyncRequest, place: Place) -> list[Effect]:
        """The predecessor asks what this replica has."""
        self.progress = (request.done, request.total)
        limit = min(request.limit, self._page)
        after = ChunkId(request.after) if request.after else None
        records = tuple(self._table.scan(after, limit))
        route = place.route(request.route.source)
        last = len(records) < limit
        return [Send(SyncPage(route, request.round, request.after, records, last))]

    def on_channels(self, message: SyncChannels, place: Place) -> list[Effect]:
        """The predecessor's exactly-once records."""
        route = place.route(message.route.source)
        return [PutChannels(message.channels), Send(SyncChannels(route, message.after, ()))]

    def on_done(self) -> list[Effect]:
        """The predecessor says that this replica has everything."""
        if self.uptodate or self._flush:
            return []
        self._flush = 1
        return [Flush(self._flush)]

    def on_flushed(self, number: int) -> list[Effect]:
        """Everything up to then is on stable storage."""
        if number != self._flush:
            return []
        self._flush = 0
        self.uptodate = True
        return [StateChanged(LocalState.UPTODATE)]
