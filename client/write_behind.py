"""What was written to one inode and is not with its storageservers yet.

Small writes are gathered per chunk and leave as one batch of chunk-sized writes. A batch that is
full is begun, not waited for: it travels on connections of its own while the writer goes on, at
most :data:`BATCHES_UNDER_WAY` of them.

- A gathered range is contiguous within its chunk; a write that leaves a gap sends the old one.
- Two batches that touch one chunk are never under way together: they could overtake each other.
- Bytes that could not be written are lost, and ``lost`` is told, when their batch ends.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

from .chunk_buffers import ChunkBuffers
from .data import CHANNEL_TIMEOUT_S, DataClient, Items, Views, chunk_items, cut, items_of
from .links import Links
from .transfers import Transfer, advance

FILE_DIRTY_BYTES = 8 << 20  # of one inode: then they are sent, as one batch
FILE_DIRTY_CHUNKS = 256
BATCHES_UNDER_WAY = 2
_PUMP_BYTES = 64 << 10  # a write of so much takes the time to move on what is under way
_log = get_logger(__name__)


class _Gathered:
    """A contiguous range of one chunk that was written and not sent; offsets are the chunk's."""

    __slots__ = ("buffer", "end", "start")

    def __init__(self, buffer: memoryview, start: int) -> None:
        self.buffer = buffer  # as long as the chunk, so that offsets are the same
        self.start = start
        self.end = start


class _Batch(NamedTuple):
    """Chunks under way."""

    indices: list[int]
    taken: list[_Gathered]
    transfer: Transfer
    links: Links


class WriteBehind:
    """Of one inode, whose lock is held around every call."""

    def __init__(
        self,
        inode: InodeId,
        layout: Layout,
        data: DataClient,
        buffers: ChunkBuffers,
        unsynced: set[int],
        lost: Callable[[Fs3Error], None],
    ) -> None:
        """``unsynced``: gets the chunks that were sent and may be lost in a power cut."""
        self._inode = inode
        self._layout = layout
        self._data = data
        self._buffers = buffers
        self._unsynced = unsynced
        self._lost = lost
        self._gathered: dict[int, _Gathered] = {}
        self._under_way: list[_Batch] = []  # the oldest first
        self.gathered_bytes = 0
        self._since_s = 0.0  # when the first of what is gathered came

    @property
    def empty(self) -> bool:
        """Everything is with the storageservers, or lost."""
        return not self._gathered and not self._under_way

    def is_older(self, age_s: float, now_s: float) -> bool:
        """Whether something has waited so long, or is under way."""
        waited = bool(self._gathered) and now_s - self._since_s >= age_s
        return waited or bool(self._under_way)

    # -- gathering -------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        """Take all of ``data``, or send it if it is much."""
        if len(data) >= FILE_DIRTY_BYTES:
            self._write_through(offset, data)
            return
        self._gather(offset, data)
        if self.gathered_bytes >= FILE_DIRTY_BYTES or len(self._gathered) >= FILE_DIRTY_CHUNKS:
            while len(self._under_way) >= BATCHES_UNDER_WAY:
                self._end_oldest()
            self._begin(list(self._gathered))
        elif self._under_way and len(data) >= _PUMP_BYTES:
            for batch in self._under_way:
                if not batch.transfer.finished:
                    advance([batch.transfer], batch.links, 0)

    def _write_through(self, offset: int, data: memoryview) -> None:
        """Out of the caller's memory, without gathering."""
        self.send_touched(offset, len(data))
        items = items_of(self._layout, self._inode, offset, len(data))
        self._data.write_pieces(items, cut(data, items))
        first = offset // self._layout.chunk_bytes
        self._unsynced.update(range(first, first + len(items)))

    def _gather(self, offset: int, data: memoryview) -> None:
        chunk_bytes = self._layout.chunk_bytes
        position = 0
        while position < len(data):
            index, within = divmod(offset + position, chunk_bytes)
            take = min(chunk_bytes - within, len(data) - position)
            self._gather_piece(index, within, data[position : position + take])
            position += take

    def _gather_piece(self, index: int, within: int, data: memoryview) -> None:
        gathered = self._gathered.get(index)
        if gathered is not None and not gathered.start <= within <= gathered.end:
            self.send([index])
            gathered = None
        if gathered is None:
            if not self._gathered:
                self._since_s = time.monotonic()
            buffer = self._buffers.take(self._layout.chunk_bytes)
            gathered = self._gathered[index] = _Gathered(buffer, within)
        end = within + len(data)
        gathered.buffer[within:end] = data
        grown = end - gathered.end
        if grown > 0:
            gathered.end = end
            self.gathered_bytes += grown
            if not self._buffers.account(grown):
                self.send(list(self._gathered))

    def copy(self, offset: int, buffer: memoryview) -> bool:
        """True if all of it was gathered here in one piece, and is now copied."""
        index, within = divmod(offset, self._layout.chunk_bytes)
        gathered = self._gathered.get(index)
        if gathered is None or not gathered.start <= within <= gathered.end - len(buffer):
            return False
        buffer[:] = gathered.buffer[within : within + len(buffer)]
        return True

    def drop(self) -> None:
        """The file was emptied: what is gathered is of no use; what is under way has to end."""
        self.finish()
        for gathered in self._gathered.values():
            self._give(gathered)
        self._gathered.clear()
        self.gathered_bytes = 0

    def forget(self, buffers: ChunkBuffers) -> None:
        """In a forked child: all of it is the parent's to send."""
        self._buffers = buffers
        self._gathered.clear()
        self._under_way.clear()
        self.gathered_bytes = 0

    # -- sending ---------------------------------------------------------------------------------

    def send_touched(self, offset: int, length: int) -> None:
        """What was written to the chunks of this range is with the storageservers."""
        chunk_bytes = self._layout.chunk_bytes
        first, last = offset // chunk_bytes, (offset + length - 1) // chunk_bytes
        touched = [index for index in self._gathered if first <= index <= last]
        if touched:
            self.send(touched)
        elif any(first <= index <= last for batch in self._under_way for index in batch.indices):
            self.finish()

    def send_all(self, *, sync: bool = False) -> None:
        """Everything written so far is with the storageservers; what is gathered synced, too."""
        if self._gathered:
            self.send(list(self._gathered), sync=sync)
        self.finish()

    def send(self, indices: Sequence[int], *, sync: bool = False) -> None:
        """Write gathered chunks on the caller's own connections, and wait for it."""
        self.finish()
        taken, items, datas = self._take(indices)
        failure: Fs3Error | None = self._interrupted()
        try:
            self._data.write_pieces(items, datas, sync=sync)
            failure = None
        except Fs3Error as error:
            failure = error
        finally:  # also when it was interrupted
            self._ended(taken, failure)
        if sync and failure is None:
            self._unsynced.difference_update(indices)

    def finish(self) -> bool:
        """Wait for everything under way; False if some of it was lost."""
        good = True
        while self._under_way:
            good &= self._end_oldest()
        return good

    def _take(self, indices: Sequence[int]) -> tuple[list[_Gathered], Items, Views]:
        """Gathered chunks, which are not gathered any more, and the pieces to write them."""
        taken = [self._gathered.pop(index) for index in indices]
        starts = [gathered.start for gathered in taken]
        lengths = [gathered.end - gathered.start for gathered in taken]
        self.gathered_bytes -= sum(lengths)
        self._unsynced.update(indices)
        items = chunk_items(self._layout, self._inode, indices, starts, lengths)
        return taken, items, [one.buffer[one.start : one.end] for one in taken]

    def _begin(self, indices: Sequence[int]) -> None:
        """Send gathered chunks without waiting for it."""
        under_way = {index for batch in self._under_way for index in batch.indices}
        if not under_way.isdisjoint(indices):
            self.finish()
        taken, items, datas = self._take(indices)
        failure: Fs3Error | None = self._interrupted()
        links = self._data.borrow_links()
        try:
            transfer = self._transfer(items, datas, links)
            with contextlib.ExitStack() as stack:
                stack.callback(transfer.close)
                advance([transfer], links, 0)
                stack.pop_all()
            self._under_way.append(_Batch(list(indices), taken, transfer, links))
            failure = None
        except Fs3Error as error:
            failure = error
        finally:  # also when it was interrupted
            if failure is not None:
                self._ended(taken, failure)
                self._data.return_links(links)

    def _transfer(self, items: Items, datas: Views, links: Links) -> Transfer:
        try:
            return self._data.begin_writes(items, datas, links)
        except Fs3Error as error:
            if error.code is not Code.BUSY:
                raise
        self.finish()  # others may wait for us in the same way
        return self._data.begin_writes(items, datas, links, wait_s=CHANNEL_TIMEOUT_S)

    def _end_oldest(self) -> bool:
        """Wait for one batch; if it fails its bytes are lost."""
        batch = self._under_way.pop(0)
        transfer = batch.transfer
        failure: Fs3Error | None = self._interrupted()
        try:
            while not transfer.finished:
                advance([transfer], batch.links, math.inf)
            transfer.check()
            failure = None
        except Fs3Error as error:
            failure = error
        finally:
            transfer.close()
            self._data.return_links(batch.links)
            self._ended(batch.taken, failure)
        return failure is None

    def _ended(self, taken: Sequence[_Gathered], failure: Fs3Error | None) -> None:
        """Nothing looks at these any more; if there was a failure their bytes are lost."""
        if failure is not None:
            _log.warning("write_failed", inode=self._inode, error=str(failure))
            self._lost(failure)
        for gathered in taken:
            self._give(gathered)

    def _interrupted(self) -> Fs3Error:
        return Fs3Error(Code.CANCELLED, f"writing to inode {self._inode} was not finished")

    def _give(self, gathered: _Gathered) -> None:
        self._buffers.account(gathered.start - gathered.end)
        self._buffers.give(gathered.buffer)
