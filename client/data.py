"""Batches of chunk reads and writes, executed by the thread that asks.

A calling thread has connections of its own, one per storageserver, and a poll loop over those it
asked; nothing is handed to another thread. What to ask whom, and when again, is decided by
:class:`fs3.core.request.Batch`; here are the sockets, the clock, the checksums and the buffers.

Payload of reads goes from the socket straight into the caller's buffers, and its checksum is
compared there; payload of writes goes out of the caller's memory. Neither is copied or kept.

A forked child starts with no connection and as another client: see :meth:`DataClient.after_fork`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.layout import Layout
from fs3.core.request import Batch, Codes, Limits, Operation, Send
from fs3.core.types import InodeId, NodeId, chunk_id
from fs3.errors import Code, Fs3Error, code_of
from fs3.log import get_logger
from fs3.routing import Routing

from .channels import UpdateChannels
from .links import Links, Request
from .routing import RoutingCache

Items = NDArray[Any]  # of dataplane.READ_ITEM
Views = Sequence[memoryview]

_CHANNEL_TIMEOUT_S = 30.0
_log = get_logger(__name__)


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


class _Job(Protocol):
    """What differs between reads and writes: how a request looks and what its reply means."""

    method: int

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        """Head and body of a request."""

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        """Where the body of its reply goes."""

    def results(self, send: Send, head: bytes) -> Codes:
        """The outcome per item, once the reply is here whole."""

    details: dict[int, str]
    suspects: bytes  # items of the last reply whose bytes were bad, though they were said to be OK


class _Reads:
    method = dataplane.READ_BATCH

    def __init__(self, items: Items, buffers: Views) -> None:
        self._items = items
        self._buffers = buffers
        self.found = np.zeros(len(items), np.uint32)  # bytes per item, before zeros
        self.suspects = b""
        self.details: dict[int, str] = {}

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        items = self._items[send.items]
        items["chain_version"] = send.chain_versions
        return items.tobytes(), []

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, len(send.items))
        wanted, lengths = self._items["length"][send.items], results["length"]
        buffers, items = self._buffers, send.items.tolist()
        if (lengths == wanted).all():
            return [buffers[i] for i in items]
        if (lengths > wanted).any():
            raise Fs3Error(Code.PROTOCOL, "a reply carries more bytes than were asked for")
        return [
            buffers[i][:length] for i, length in zip(items, lengths.tolist(), strict=True) if length
        ]

    def results(self, send: Send, head: bytes) -> Codes:
        results, details = dataplane.decode_results(head, dataplane.READ_RESULT, len(send.items))
        codes: Codes = results["code"].copy()
        items, lengths = send.items.tolist(), results["length"]
        buffers = self._buffers
        if (lengths == self._items["length"][send.items]).all():
            crcs = [crc32c(buffers[i]) for i in items]
        else:
            crcs = [self._settle_short(i, n) for i, n in zip(items, lengths.tolist(), strict=True)]
        self.found[send.items] = lengths
        good = codes == Code.OK
        wrong = np.flatnonzero(good & (np.array(crcs, np.uint32) != results["crc"]))
        self.suspects = self._items[send.items[wrong]].tobytes() if len(wrong) else b""
        for position in wrong.tolist():
            codes[position] = Code.CORRUPT
            details[position] = (
                f"{lengths[position]} bytes from node {send.node} with checksum"
                f" {crcs[position]:#010x}, {int(results['crc'][position]):#010x} announced"
            )
            _log.warning("read_corrupt", detail=details[position])
        self.details.update((items[position], text) for position, text in details.items())
        return codes

    def _settle_short(self, item: int, length: int) -> int:
        """Checksum of what came; what did not come is a hole, or behind the end: zeros."""
        buffer = self._buffers[item]
        missing = len(buffer) - length
        if missing:
            buffer[length:] = bytes(missing)
        return crc32c(buffer[:length])


class _Writes:
    method = dataplane.WRITE_BATCH

    def __init__(self, items: NDArray[Any], datas: Views, client: int, flags: int) -> None:
        self._items = items
        self._datas = datas
        self._prefix = np.array([(client, flags, 0)], dataplane.WRITE_PREFIX).tobytes()
        self.suspects = b""
        self.details: dict[int, str] = {}

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        items = self._items[send.items]
        items["chain_version"] = send.chain_versions
        body = [self._datas[i] for i in send.items.tolist()] if self._datas else []
        return self._prefix + items.tobytes(), body

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        return []

    def results(self, send: Send, head: bytes) -> Codes:
        results, details = dataplane.decode_results(head, dataplane.WRITE_RESULT, len(send.items))
        for position, text in details.items():
            self.details[int(send.items[position])] = text
        codes: Codes = results["code"]
        return codes


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
        self.after_fork()

    @property
    def client(self) -> int:
        """The id under which writes are sent."""
        return self._channels.client

    def after_fork(self) -> None:
        """In the child, before anything else: a new client id, none of the parent's connections."""
        self._channels.reset()
        self._local = threading.local()
        self._load_lock = threading.Lock()
        self._load: dict[NodeId, int] = {}  # bytes outstanding, of all threads

    def close(self) -> None:
        """Let go of every thread's connections; each closes when a call that uses it has ended."""
        self._local = threading.local()

    # -- reads -----------------------------------------------------------------------------------

    def read_pieces(self, items: Items, buffers: Views) -> NDArray[np.uint32]:
        """Fill ``buffers`` (each as long as its item) and return how many bytes each chunk had.

        The rest of a buffer is zeros: a hole, or what lies behind the chunk's end. The caller
        knows the file's length and asks for nothing behind it. Fs3Error of the first item that
        failed for good: CORRUPT if no replica has good bytes, UNREACHABLE, NOT_SERVING or
        STALE_CHAIN if none could be asked in time.
        """
        reads = _Reads(items, buffers)
        self._run(Operation.READ, items, reads)
        return reads.found

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
        updates = np.zeros(len(items), dataplane.WRITE_ITEM)
        for name in ("chunk", "chain", "offset", "length"):
            updates[name] = items[name]
        updates["kind"] = kind
        if datas:
            updates["crc"] = [crc32c(data) for data in datas]
        channels, sequences = self._channels.take(len(items), _CHANNEL_TIMEOUT_S)
        try:
            updates["channel"], updates["sequence"] = channels, sequences
            flags = dataplane.WRITE_FLAG_SYNC if sync else 0
            self._run(Operation.WRITE, items, _Writes(updates, datas, self._channels.client, flags))
        finally:
            self._channels.give(channels)

    # -- the loop --------------------------------------------------------------------------------

    def _links(self) -> Links:
        links: Links | None = getattr(self._local, "links", None)
        if links is None:
            links = self._local.links = Links(self._cluster_id)
        return links

    def _run(self, operation: Operation, items: Items, job: _Job) -> None:
        """Execute one batch; raises the failure of its first failed item."""
        batch = Batch(
            operation, items["chain"], items["length"], _now_ms(), self._limits, next(self._turns)
        )
        links = self._links()
        routing = self._routing.get(self._limits.deadline_ms / 1000)
        flights: dict[int, Request] = {}
        try:
            while not batch.finished:
                if batch.refresh:
                    batch.refresh = False
                    routing = self._routing.refresh(routing)
                self._drop_overdue(batch, links, flights)
                for send in batch.sends(routing.chains, self._load, _now_ms()):
                    self._send(links, routing, batch, job, send, flights)
                if not batch.finished:
                    self._wait(batch, links, job, flights)
        finally:
            for request in flights.values():  # only when something was raised above
                links.forget(request)
                self._account(request.send, -1)
        failed = np.flatnonzero((batch.codes != Code.OK) & (batch.codes != Code.NO_CHUNK))
        if len(failed):
            _raise(batch, job, items, int(failed[0]), len(failed))

    def _send(
        self,
        links: Links,
        routing: Routing,
        batch: Batch,
        job: _Job,
        send: Send,
        flights: dict[int, Request],
    ) -> None:
        node = routing.nodes.get(send.node)
        if node is None:
            batch.refused(send.number, Code.STALE_CHAIN, _now_ms())
            return
        head, body = job.request(send)
        request = links.send(node, job.method, head, body, send, lambda head: job.place(send, head))
        if request is None:
            batch.lost(send.number, _now_ms())
        else:
            flights[send.number] = request
            self._account(send, 1)

    def _wait(self, batch: Batch, links: Links, job: _Job, flights: dict[int, Request]) -> None:
        """Until something happened or it is time to try again."""
        now_ms = _now_ms()
        for request in links.wait((batch.wake_ms(now_ms) - now_ms) / 1000):
            send = request.send
            del flights[send.number]
            self._account(send, -1)
            if request.reply is not None:
                batch.replied(send.number, job.results(send, request.reply), _now_ms())
                if job.suspects:
                    links.tell(request, dataplane.SUSPECT, job.suspects)
            elif request.error is not None:
                for item in send.items.tolist():
                    job.details[item] = request.error.detail
                batch.refused(send.number, request.error.code, _now_ms())
            else:
                batch.lost(send.number, _now_ms())

    def _drop_overdue(self, batch: Batch, links: Links, flights: dict[int, Request]) -> None:
        for number in batch.overdue(_now_ms()):
            links.cut(flights[number])

    def _account(self, send: Send, sign: int) -> None:
        with self._load_lock:
            self._load[send.node] = self._load.get(send.node, 0) + sign * (send.bytes + 1)


def _raise(batch: Batch, job: _Job, items: Items, first: int, count: int) -> None:
    chunk = bytes(items["chunk"][first])
    owner, slot = int.from_bytes(chunk[:8], "big"), int.from_bytes(chunk[8:], "big")
    why = job.details.get(first) or "no answer that could be used before the deadline"
    more = f" (and {count - 1} more pieces)" if count > 1 else ""
    raise Fs3Error(
        code_of(int(batch.codes[first])),
        f"chunk {slot} of inode {owner} on chain {int(items['chain'][first])}: {why}{more}",
    )


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
