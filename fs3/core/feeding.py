"""The source's side of a resync: what the last serving replica does for its syncing successor.

:class:`Resync` decides what is lacking; here the chunks' lanes come in. A chunk is copied under its
lock: the lane holds an operation that changes nothing here and is forwarded like any update. A
chunk whose own update is under way needs no copy: that update is forwarded as a full replace. But
an update that was on its last step when the successor came never passes it: comparing begins when
all of those are committed, and so can be seen.
"""

from __future__ import annotations

from fs3.core.chunks import ChunkMeta, ChunkTable, UpdateKind
from fs3.core.lane import Lane, Operation, Phase
from fs3.core.limits import Limits
from fs3.core.messages import Message, SyncChannels, SyncPage
from fs3.core.pacing import Pacing
from fs3.core.place import Place
from fs3.core.resync import Resync
from fs3.core.types import ChunkId, ChunkVersion

_NONE = ChunkMeta()


class Feeder:
    """One resync of one successor, in one chain version."""

    def __init__(
        self, place: Place, table: ChunkTable, lanes: dict[ChunkId, Lane], limits: Limits
    ) -> None:
        assert place.successor is not None
        self.resync = Resync(limits.resync_page)
        self.pacing = Pacing(limits)
        for chunk, lane in lanes.items():
            if lane.operation is not None and lane.operation.phase is Phase.FORWARDED:
                self.pacing.update_sent(chunk)
        self._successor = place.successor.target
        self._route = place.route(place.successor.target)
        self._table = table
        self._lanes = lanes
        self._limits = limits
        self.rate_bytes_per_s = limits.resync_bytes_per_s  # may be changed at any time
        self._passed_before = [
            lane.operation
            for lane in lanes.values()
            if lane.operation is not None
            and (lane.operation.phase is Phase.COMMITTING or lane.operation.was_taken_up)
        ]

    def heard(self, message: SyncPage | SyncChannels) -> None:
        """An answer of the syncing successor."""
        if message.route.source != self._successor:
            return
        if isinstance(message, SyncPage):
            self.resync.on_page(message, self._table, self._on_its_way)
        else:
            self.resync.on_channels(message)

    def pump(self, now_ms: int) -> tuple[list[Message], list[Operation]]:
        """What to ask now, and the copies to forward now; their lanes are taken."""
        self._passed_before = [op for op in self._passed_before if self._is_under_way(op)]
        if self._passed_before:
            return [], []
        messages = self.resync.messages(self._route, self._table, now_ms)
        copies: list[Operation] = []
        while self.pacing.allows(now_ms, self.rate_bytes_per_s):
            chunk = self.resync.next_chunk()
            if chunk is None:
                break
            lane = self._lanes.setdefault(chunk, Lane())
            if lane.operation is not None:
                self.resync.finished(chunk)
            else:
                lane.operation = self._copy(chunk)
                self.pacing.started(chunk, lane.operation.staged_length)
                copies.append(lane.operation)
        return messages, copies

    def finished(self, copy: Operation) -> None:
        """The successor has it."""
        self.pacing.finished(copy.chunk)
        self.resync.finished(copy.chunk)

    def _copy(self, chunk: ChunkId) -> Operation:
        meta = self._table.meta(chunk) or _NONE
        return Operation(
            chunk=chunk,
            kind=UpdateKind.REPLACE if meta.version else UpdateKind.REMOVE,
            version=ChunkVersion(max(meta.version, 1)),
            staged_length=meta.length,
            staged_checksum=meta.checksum,
            phase=Phase.FORWARDED,
            resync=True,
            resend_after_ms=self._limits.resend_ms,
        )

    def _is_under_way(self, operation: Operation) -> bool:
        lane = self._lanes.get(operation.chunk)
        return lane is not None and lane.operation is operation

    def _on_its_way(self, chunk: ChunkId) -> bool:
        """Only what is being forwarded is sure to arrive: a staging update may still fail, one that
        commits may have passed before this successor was there."""
        lane = self._lanes.get(chunk)
        operation = lane.operation if lane is not None else None
        return operation is not None and operation.phase is Phase.FORWARDED
