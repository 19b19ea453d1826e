"""Batches of chunk reads and writes, executed by the thread that asks.

A calling thread has connections of its own, one per storageserver, and a poll loop over those it
asked; nothing is handed to another thread. How a batch comes to its end is in transfers.py.

Payload of reads goes from the socket straight into the caller's buffers, and its checksum is
compared there; payload of writes goes out of the caller's memory. Neither is copied or kept.

A forked child starts with no connection and as another client: see :meth:`DataClient.after_fork`.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.dealing import FIRST
from fs3.core.layout import Layout
from fs3.core.request import Batch, Codes, Limits, Operation, Send
from fs3.core.stamps import served_word
from fs3.core.types import ChainId, ChunkId, InodeId, chunk_id
from fs3.transport.interface import Transport

from .channels import UpdateChannels
from .links import TRANSPORTS, Links, Request
from .node_loads import NodeLoads
from .one_piece import OnePiece
from .routing import RoutingCache, versions_in
from .transfers import (
    Items,
    Job,
    Reads,
    Transfer,
    Views,
    Writes,
    advance,
    now_ms,
)
from .written_versions import WrittenVersions

__all__ = ["DataClient", "Items", "Views", "chunk_items", "cut", "items_of"]

CHANNEL_TIMEOUT_S = 30.0
_IDLE_LINKS_MAX = 8  # kept for the next transfers in the background
_VERSIONED = (UpdateKind.WRITE, UpdateKind.EXTEND)  # of files
_NO_VERSIONS: Codes = np.zeros(0, np.uint32)


def items_of(layout: Layout, inode: InodeId, offset: int, length: int) -> Items:
    """The pieces of one range of a file, in order: cut at its chunk borders."""
    chunk_bytes = layout.chunk_bytes
    first, last = offset // chunk_bytes, (offset + length - 1) // chunk_bytes
    count = last + 1 - first
    starts, lengths = [0] * count, [chunk_bytes] * count
    starts[0] = offset - first * chunk_bytes
    lengths[0] -= starts[0]
    lengths[-1] -= (last + 1) * chunk_bytes - (offset + length)
    return chunk_items(layout, inode, range(first, last + 1), starts, lengths)


def chunk_items(
    layout: Layout,
    inode: InodeId,
    indices: Sequence[int],
    starts: Sequence[int],
    lengths: Sequence[int],
) -> Items:
    """One range of each of these chunks of a file."""
    chains = layout.chains
    width = len(chains)
    records = [
        (chunk_id(inode, index), chains[index % width], 0, start, length)
        for index, start, length in zip(indices, starts, lengths, strict=True)
    ]
    return np.array(records, dataplane.READ_ITEM)


def cut(view: memoryview, items: Items) -> list[memoryview]:
    """The parts of ``view`` that the items of one range fill, in order."""
    if len(items) == 1:
        return [view]
    ends = np.cumsum(items["length"], dtype=np.int64).tolist()
    return [view[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class DataClient:
    """Any thread may call; each works on connections of its own."""

    def __init__(
        self, routing: RoutingCache, cluster_id: str, limits: Limits | None = None
    ) -> None:
        self._routing = routing
        self._cluster_id = cluster_id
        self._limits = limits or Limits()
        self._channels = UpdateChannels()
        self._turns = itertools.count()
        self.transports: Sequence[Transport] = TRANSPORTS  # of connections made from now on
        self.written = WrittenVersions()
        self.after_fork()

    @property
    def client(self) -> int:
        """The id under which writes are sent."""
        return self._channels.client

    def after_fork(self) -> None:
        """In the child, before anything else: a new client id, none of the parent's connections."""
        self._channels.reset()
        self.written = WrittenVersions()
        self._local = threading.local()
        self._idle_links: list[Links] = []
        self._closed = False
        self._loads = NodeLoads()

    def close(self) -> None:
        """Let go of every thread's connections; each closes when a call that uses it has ended."""
        self._local = threading.local()
        self._closed = True
        self._idle_links.clear()

    # -- reads -----------------------------------------------------------------------------------

    def read_pieces(self, items: Items, buffers: Views) -> NDArray[np.uint32]:
        """Fill ``buffers`` (each as long as its item) and return how many bytes each chunk had.

        The rest of a buffer is zeros: a hole, or what lies behind the chunk's end. The caller
        knows the file's length and asks for nothing behind it. Fs3Error of the first item that
        failed for good: CORRUPT if no replica has good bytes, UNREACHABLE, NOT_SERVING or
        STALE_CHAIN if none could be asked in time.
        """
        links = self.own_links()
        if self.read_here(items, buffers, links):
            return items["length"]
        reads = Reads(items, buffers)
        self._finish(self._transfer(Operation.READ, items, reads, links))
        return reads.found

    def read_here(self, items: Items, buffers: Views, links: Links) -> bool:
        """Everything by itself, from one replica on this machine, without asking it.

        False if that cannot be done: then the buffers hold anything.
        """
        routing = self._routing.get(self._limits.deadline_ms / 1000)
        near = self._loads.near(routing)
        if not near:
            return False
        versions = versions_in(routing)
        return links.read_here(
            near, routing.nodes, lambda connection: connection.read_here(items, buffers, versions)
        )

    def read_piece(self, chunk: ChunkId, chain: ChainId, offset: int, buffer: memoryview) -> int:
        """The same for one piece, which is mostly asked for and answered without any array."""
        routing = self._routing.get(self._limits.deadline_ms / 1000)
        known = routing.chains.get(chain)
        near = self._loads.near(routing)
        if near and known is not None:
            served = served_word(chain, known.version)
            if self.own_links().read_here(
                near, routing.nodes, lambda c: c.read_piece_here(chunk, served, offset, (buffer,))
            ):
                return len(buffer)
        node = self._loads.node_for(known, near) if known is not None else None
        info = routing.nodes.get(node) if node is not None else None
        if known is None or node is None or info is None:
            items = np.array([(chunk, chain, 0, offset, len(buffer))], dataplane.READ_ITEM)
            return int(self.read_pieces(items, [buffer])[0])
        links, one = self.own_links(), OnePiece(buffer)
        size = len(buffer)
        head = dataplane.ITEM.pack(chunk, chain, known.version, offset, size)
        send = Send(0, node, FIRST, _NO_VERSIONS, size)
        request = links.send(info, dataplane.READ_BATCH, head, (), send, one.place)
        ended = False
        if request is not None:
            self._loads.add(send, 1)
            try:
                late_ms = max(self._loads.pace.late_ms(size), self._limits.late_ms_min)
                ended = request in links.wait(min(late_ms, self._limits.look_ms) / 1000)
            except BaseException:
                links.forget(request)
                self._loads.add(send, -1)
                raise
            if ended and request.reply is not None:
                found = one.result(request.reply, verified=request.verified)
                if found >= 0:
                    self._loads.add(send, -1)
                    self._loads.answered(send, time.monotonic() - one.sent_s)
                    return found
        return self._read_on(links, chunk, chain, offset, buffer, request, ended)

    def _read_on(
        self,
        links: Links,
        chunk: ChunkId,
        chain: ChainId,
        offset: int,
        buffer: memoryview,
        request: Request | None,
        ended: bool,
    ) -> int:
        """One piece whose first request is late, or came to nothing."""
        items = np.array([(chunk, chain, 0, offset, len(buffer))], dataplane.READ_ITEM)
        reads = Reads(items, [buffer])
        transfer = self._transfer(Operation.READ, items, reads, links)
        if request is not None:
            adopted = transfer.adopt(request, request.sent_s)
            if adopted and ended:
                transfer.ended(request)
        self._finish(transfer)
        return int(reads.found[0])

    def begin_reads(
        self, items: Items, buffers: Views, links: Links
    ) -> tuple[Transfer, NDArray[np.uint32]]:
        """The same, for the caller to move on over ``links``; the lengths fill meanwhile."""
        reads = Reads(items, buffers)
        return self._transfer(Operation.READ, items, reads, links), reads.found

    # -- writes ----------------------------------------------------------------------------------

    def write_pieces(self, items: Items, datas: Views, *, sync: bool = False) -> None:
        """Write each item's data, in no particular order; with ``sync`` to stable storage.

        When it returns every serving replica holds the data. Fs3Error of the first item that
        failed for good; the others may have been written.
        """
        self._update(items, datas, UpdateKind.WRITE, sync)

    def sync_chunks(self, items: Items) -> None:
        """Put chunks on stable storage on every replica, whatever they hold.

        An EXTEND to length 0 changes nothing; with the SYNC flag it is answered when the chunk is
        durable.
        """
        items = items.copy()
        items["offset"] = 0
        items["length"] = 0
        self._update(items, (), UpdateKind.EXTEND, True)

    def _update(self, items: Items, datas: Views, kind: UpdateKind, sync: bool) -> None:
        for start in range(0, len(items), dataplane.BATCH_ITEMS_MAX):
            part = slice(start, start + dataplane.BATCH_ITEMS_MAX)
            self._update_part(items[part], datas[part], kind, sync)

    def _update_part(self, items: Items, datas: Views, kind: UpdateKind, sync: bool) -> None:
        self._finish(
            self._begin_update(items, datas, kind, sync, self.own_links(), CHANNEL_TIMEOUT_S)
        )

    def begin_writes(
        self,
        items: Items,
        datas: Views,
        links: Links,
        *,
        sync: bool = False,
        wait_s: float = 0.0,
    ) -> Transfer:
        """At most BATCH_ITEMS_MAX writes, for the caller to move on over ``links``.

        Fs3Error BUSY if too many updates of this client are under way still after ``wait_s``.
        """
        return self._begin_update(items, datas, UpdateKind.WRITE, sync, links, wait_s)

    def _begin_update(
        self,
        items: Items,
        datas: Views,
        kind: UpdateKind,
        sync: bool,
        links: Links,
        timeout_s: float,
    ) -> Transfer:
        updates = np.zeros(len(items), dataplane.WRITE_ITEM)
        for name in ("chunk", "chain", "offset", "length"):
            updates[name] = items[name]
        updates["kind"] = kind
        if datas:
            updates["crc"] = [crc32c(data) for data in datas]
        channels, sequences = self._channels.take(len(items), timeout_s)

        def give() -> None:
            self._channels.give(channels)

        try:
            updates["channel"], updates["sequence"] = channels, sequences
            flags = dataplane.WRITE_FLAG_SYNC if sync else 0
            written = self.written if kind in _VERSIONED else None
            writes = Writes(updates, datas, self._channels.client, flags, written)
            return self._transfer(Operation.WRITE, items, writes, links, give)
        except BaseException:
            give()
            raise

    # -- the loop --------------------------------------------------------------------------------

    def own_links(self) -> Links:
        """The calling thread's connections."""
        links: Links | None = getattr(self._local, "links", None)
        if links is None:
            links = self._local.links = self.new_links()
        elif links.busy:  # the collector ran in the middle of a call, and closes a file
            return self.new_links()
        return links

    def new_links(self) -> Links:
        """Connections for one thread at a time; the caller closes them."""
        return Links(self._cluster_id, self.transports)

    def borrow_links(self) -> Links:
        """Connections for a transfer that no thread waits for, until :meth:`return_links`."""
        try:
            return self._idle_links.pop()
        except IndexError:
            return self.new_links()

    def return_links(self, links: Links) -> None:
        """Nothing is under way on them any more."""
        if not self._closed and len(self._idle_links) < _IDLE_LINKS_MAX:
            self._idle_links.append(links)
        else:
            links.close()

    def _transfer(
        self,
        operation: Operation,
        items: Items,
        job: Job,
        links: Links,
        at_close: Callable[[], None] | None = None,
    ) -> Transfer:
        limits = self._limits
        self._routing.get(limits.deadline_ms / 1000)
        batch = Batch(
            operation,
            items["chain"],
            items["length"],
            now_ms(),
            limits,
            next(self._turns),
            self._loads.pace,
        )
        return Transfer(batch, items, job, links, self._routing, self._loads, at_close)

    @staticmethod
    def _finish(transfer: Transfer) -> None:
        """Execute it; raises the failure of its first failed item."""
        try:
            while not transfer.finished:
                advance((transfer,), transfer.links, math.inf)
        finally:
            transfer.close()
        transfer.check()
