"""What a syncing replica lacks: compared page by page, brought chunk by chunk.

The source (the last serving replica) asks for the syncing replica's records in pages, in chunk
order, compares each page with its own, and brings what differs under the chunk's lock. Writes go on
meanwhile and reach the syncing replica as full replaces. So a chunk that one of them reached since
its page was asked for is equal, whatever the page says, and one that is on its way is only waited
for: without that rule a busy chain would find differences for ever. When a round is through and
something differed, another round follows; a round without a difference ends with the exactly-once
records and SyncDone. So the end is verified, and a resync that breaks off starts over cheaply: what
is there already is equal.

A chunk is different when version, length or checksum are (a version alone can lie: after a power
cut two replicas may have given one number to different data), or when the syncing one has a version
pending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from fs3.core.chunks import ChunkMeta, ChunkTable
from fs3.core.messages import Message, Route, SyncChannels, SyncDone, SyncPage, SyncRequest
from fs3.core.types import ChunkId

_ASK_AGAIN_MS = 1000
_CHANNELS_PER_PAGE = 1000
_PAGE_MIN = 256  # records; where nothing differs pages grow


def differing(
    mine: Sequence[tuple[ChunkId, ChunkMeta]], theirs: Sequence[tuple[ChunkId, ChunkMeta]]
) -> list[ChunkId]:
    """The chunks to bring or to remove, removals first, of two pages over the same range."""
    has = {chunk: meta for chunk, meta in theirs if meta.version or meta.pending_version}
    committed = {chunk: meta for chunk, meta in mine if meta.version}
    removals = [chunk for chunk in has if chunk not in committed]
    copies = [chunk for chunk, meta in committed.items() if not _same(meta, has.get(chunk))]
    return removals + copies


def _same(mine: ChunkMeta, theirs: ChunkMeta | None) -> bool:
    if theirs is None or theirs.pending_version:
        return False
    return (mine.version, mine.length, mine.checksum) == (
        theirs.version,
        theirs.length,
        theirs.checksum,
    )


class _Stage(Enum):
    COMPARE = 1
    CHANNELS = 2
    DONE = 3


class Resync:
    """The source's side of one resync, in one chain version."""

    def __init__(self, page: int) -> None:
        self._page_max = page
        self._page = min(page, _PAGE_MIN)
        self._stage = _Stage.COMPARE
        self._round = 1
        self._after = b""
        self._compared = 0
        self._last_page = False
        self._asked_at_ms: int | None = None
        self._dirty = False
        self._todo: deque[ChunkId] = deque()
        self._under_way: set[ChunkId] = set()
        self._reached: set[ChunkId] = set()  # acknowledged there since the page was asked for
        self._awaited: set[ChunkId] = set()  # different, but an update is on its way
        self._channels_after: tuple[int, int] = (-1, -1)
        self._channels_end = False

    @property
    def done(self) -> bool:
        """The syncing replica has everything."""
        return self._stage is _Stage.DONE

    def messages(self, route: Route, table: ChunkTable, now_ms: int) -> list[Message]:
        """What to send now; called often, asks again only after a while."""
        self._advance()
        waiting = self._asked_at_ms is not None and now_ms - self._asked_at_ms < _ASK_AGAIN_MS
        if waiting or self._todo or self._under_way or (self._last_page and self._awaited):
            return []
        if self._asked_at_ms is None:
            self._reached.clear()
        self._asked_at_ms = now_ms
        if self._stage is _Stage.COMPARE:
            done, total = self._compared, max(table.count(), self._compared)
            return [SyncRequest(route, self._round, self._after, self._page, done, total)]
        if self._stage is _Stage.CHANNELS:
            after = None if self._channels_after == (-1, -1) else self._channels_after
            channels = tuple(table.scan_channels(after, _CHANNELS_PER_PAGE))
            if channels:
                self._channels_end = len(channels) < _CHANNELS_PER_PAGE
                sent = tuple((c[0], c[1], c[2]) for c in channels)
                return [SyncChannels(route, sent[-1][:2], sent)]
            self._stage = _Stage.DONE
        return [SyncDone(route)]

    def ask_again(self) -> None:
        """What was asked last may be lost: ask at once."""
        if self._asked_at_ms is not None:
            self._asked_at_ms = -_ASK_AGAIN_MS

    def _advance(self) -> None:
        """A page is dealt with when all it asked for has been brought."""
        if self._stage is not _Stage.COMPARE or not self._last_page:
            return
        if self._todo or self._under_way or self._awaited:
            return
        self._last_page = False
        self._after = b""
        self._asked_at_ms = None
        if self._dirty:
            self._round += 1
            self._compared = 0
            self._dirty = False
        else:
            self._stage = _Stage.CHANNELS

    def on_page(
        self, page: SyncPage, table: ChunkTable, on_its_way: Callable[[ChunkId], bool]
    ) -> None:
        """Compare one page of the syncing replica's records with the source's own.

        ``on_its_way``: an update of the chunk is being forwarded, and will make it equal.
        """
        expected = (self._round, self._after)
        if self._stage is not _Stage.COMPARE or (page.round, page.after) != expected:
            return
        if self._todo or self._under_way or self._last_page:
            return  # a second answer to the same question
        after = ChunkId(self._after) if self._after else None
        mine = table.scan(after, self._page)
        theirs: Sequence[tuple[ChunkId, ChunkMeta]] = page.records
        # Compare only as far as both pages reach.
        ends = [
            p[-1][0]
            for p, last in ((mine, len(mine) < self._page), (theirs, page.last))
            if not last
        ]
        end = min(ends, default=None)
        if end is not None:
            mine = [row for row in mine if row[0] <= end]
            theirs = [row for row in theirs if row[0] <= end]
        for chunk in differing(mine, theirs):
            if on_its_way(chunk):
                self._awaited.add(chunk)
            elif chunk not in self._reached:
                self._todo.append(chunk)
        self._dirty = self._dirty or bool(self._todo)
        self._page = min(_PAGE_MIN if self._todo else self._page * 2, self._page_max)
        self._compared += len(mine)
        self._asked_at_ms = None
        if end is None:
            self._last_page = True
        else:
            self._after = end

    def on_channels(self, answer: SyncChannels) -> None:
        """A page of exactly-once records has arrived there."""
        if self._stage is _Stage.CHANNELS and answer.after > self._channels_after:
            self._channels_after = answer.after
            self._asked_at_ms = None
            if self._channels_end:
                self._stage = _Stage.DONE

    def next_chunk(self) -> ChunkId | None:
        """The next chunk to bring; None: there is none now."""
        while self._todo:
            chunk = self._todo.popleft()
            if chunk not in self._reached:
                self._under_way.add(chunk)
                return chunk
        return None

    def reached(self, chunk: ChunkId) -> None:
        """The syncing replica has acknowledged the chunk as it is here."""
        self._awaited.discard(chunk)
        if self._stage is _Stage.COMPARE:
            self._reached.add(chunk)

    def finished(self, chunk: ChunkId) -> None:
        """It is there, or its own update brings it."""
        self._under_way.discard(chunk)
