"""One batch of chunk reads or writes under way, moved on by the thread that wants it.

What to ask whom, and when again, is decided by :class:`fs3.core.request.Batch`; a :class:`Transfer`
is its shell: the connections, the clock, the checksums and the buffers. It can be left alone
between two steps, so a thread may have several under way on the same connections
(:func:`advance`); it must be closed, finished or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.core.request import Batch, Codes, Send
from fs3.core.types import ChainId
from fs3.errors import Code, Fs3Error, code_of
from fs3.log import get_logger
from fs3.routing import Routing

from .links import Links, Request
from .node_loads import NodeLoads
from .routing import RoutingCache
from .written_versions import WrittenVersions

Items = NDArray[Any]  # of dataplane.READ_ITEM
Views = Sequence[memoryview]

_log = get_logger(__name__)
_FEW = 32


class Job(Protocol):
    """What differs between reads and writes: how a request looks and what its reply means."""

    method: int

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        """Head and body of a request."""

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        """Where the body of its reply goes."""

    def results(self, send: Send, head: bytes, *, verified: bool = False) -> Codes:
        """The outcome per item, once the reply is here whole.

        ``verified``: the transport has compared a read's bytes with their checksums.
        """

    details: dict[int, str]
    suspects: bytes  # items of the last reply whose bytes were bad, though they were said to be OK


class Reads:
    method = dataplane.READ_BATCH

    def __init__(self, items: Items, buffers: Views | Mapping[int, memoryview]) -> None:
        self._items = items
        self._buffers = buffers
        self.found = np.zeros(len(items), np.uint32)  # bytes per item, before zeros
        self.suspects = b""
        self.details: dict[int, str] = {}

    def elsewhere(self, send: Send) -> Reads:
        """A job for a second request for the same items, with places of its own."""
        items = send.items.tolist()
        ends = np.cumsum(self._items["length"][send.items], dtype=np.int64).tolist()
        room = memoryview(np.empty(ends[-1], np.uint8).data)
        return Reads(
            self._items,
            {i: room[a:b] for i, a, b in zip(items, [0, *ends], ends, strict=False)},
        )

    def take_over(self, send: Send, other: Reads) -> None:
        """What ``other`` has got for these items is the result."""
        for item in send.items.tolist():
            self._buffers[item][:] = other._buffers[item]
        self.found[send.items] = other.found[send.items]

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        items = self._items[send.items]
        items["chain_version"] = send.chain_versions
        return items.tobytes(), []

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        if len(send.items) <= _FEW:
            return self._place_few(send, head)
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

    def _place_few(self, send: Send, head: bytes) -> list[memoryview]:
        """The same without arrays, whose fixed costs are more than a few items take."""
        size = len(send.items) * dataplane.RESULT.size
        if len(head) < size:
            raise Fs3Error(Code.PROTOCOL, f"a reply's head of {len(head)} bytes; {size} expected")
        places: list[memoryview] = []
        results = dataplane.RESULT.iter_unpack(head[:size])
        for item, (_, length, _, _, _) in zip(send.items.tolist(), results, strict=True):
            buffer = self._buffers[item]
            if length == len(buffer):
                places.append(buffer)
            elif length > len(buffer):
                raise Fs3Error(Code.PROTOCOL, "a reply carries more bytes than were asked for")
            elif length:
                places.append(buffer[:length])
        return places

    def results(self, send: Send, head: bytes, *, verified: bool = False) -> Codes:
        results, details = dataplane.decode_results(head, dataplane.READ_RESULT, len(send.items))
        codes: Codes = results["code"].copy()
        items, lengths = send.items.tolist(), results["length"]
        buffers = self._buffers
        if verified:
            self._take_verified(send, codes, lengths)
            self.details.update((items[position], text) for position, text in details.items())
            return codes
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

    def _take_verified(self, send: Send, codes: Codes, lengths: NDArray[np.uint32]) -> None:
        self.found[send.items] = lengths
        self.suspects = b""
        if not codes.any() and int(lengths.sum()) == send.bytes:
            return  # all there and all good, as mostly
        wrong = np.flatnonzero(codes == Code.CORRUPT)
        self.suspects = self._items[send.items[wrong]].tobytes() if len(wrong) else b""
        short = np.flatnonzero(lengths < self._items["length"][send.items])
        for position in short.tolist():
            buffer, length = self._buffers[int(send.items[position])], int(lengths[position])
            buffer[length:] = bytes(len(buffer) - length)

    def _settle_short(self, item: int, length: int) -> int:
        """Checksum of what came; what did not come is a hole, or behind the end: zeros."""
        buffer = self._buffers[item]
        missing = len(buffer) - length
        if missing:
            buffer[length:] = bytes(missing)
        return crc32c(buffer[:length])


class Writes:
    method = dataplane.WRITE_BATCH

    def __init__(
        self,
        items: NDArray[Any],
        datas: Views,
        client: int,
        flags: int,
        written: WrittenVersions | None = None,
    ) -> None:
        """``written``: is told which versions the updates made."""
        self._items = items
        self._datas = datas
        self._sync = bool(flags & dataplane.WRITE_FLAG_SYNC)
        self._written = written
        if written is not None:
            self._chunks: list[bytes] = items["chunk"].tolist()
            self._known = written.known(self._chunks)
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

    def results(self, send: Send, head: bytes, *, verified: bool = False) -> Codes:
        results, details = dataplane.decode_results(head, dataplane.WRITE_RESULT, len(send.items))
        for position, text in details.items():
            self.details[int(send.items[position])] = text
        if self._written is not None:
            chunks = [self._chunks[item] for item in send.items.tolist()]
            self._written.note(chunks, self._known[send.items], results, sync=self._sync)
        codes: Codes = results["code"]
        return codes


class Transfer:
    """Used by one thread at a time. ``batch.codes`` says per item how it ended."""

    def __init__(
        self,
        batch: Batch,
        items: Items,
        job: Job,
        links: Links,
        routing: RoutingCache,
        loads: NodeLoads,
        at_close: Callable[[], None] | None = None,
    ) -> None:
        """``at_close``: to be done once nothing of it is under way any more."""
        self.batch = batch
        self.job = job
        self.links = links
        self._items = items
        self._cache = routing
        self._routing: Routing = routing.get()
        self._loads = loads
        self._at_close = at_close
        self._flights: dict[int, Request] = {}
        self._seconds: dict[int, Reads] = {}  # jobs of reads that are asked twice

    @property
    def finished(self) -> bool:
        """Every item has its result."""
        return self.batch.finished

    def begin(self) -> None:
        """Send what is due, give up what is overdue. Does not wait for answers."""
        batch = self.batch
        if batch.refresh:
            batch.refresh = False
            self._routing = self._cache.refresh(self._routing)
        for number in batch.overdue(now_ms()):
            self.links.cut(self._flights[number])
        for send in batch.sends(
            self._routing.chains, self._loads.by_node, now_ms(), self._loads.near(self._routing)
        ):
            self._send(send, self.job)
        job = self.job
        if isinstance(job, Reads):
            for send in batch.hedges(self._loads.by_node, now_ms()):
                self._seconds[send.number] = second = job.elsewhere(send)
                self._send(send, second)

    def adopt(self, request: Request, sent_s: float) -> bool:
        """The only item has been asked for already; False if that is of no use any more."""
        chains = self._routing.chains
        chain = chains.get(ChainId(int(self._items["chain"][0])))
        if chain is None:  # the routing has changed meanwhile: begin anew
            self.links.forget(request)
            self._loads.add(request.send, -1)
            return False
        send = self.batch.adopt(request.send.node, chain, int(sent_s * 1000), chains)
        request.send = send
        request.place = lambda head: self.job.place(send, head)
        self._flights[send.number] = request
        return True

    def _send(self, send: Send, job: Job) -> None:
        node = self._routing.nodes.get(send.node)
        if node is None:
            self.batch.refused(send.number, Code.STALE_CHAIN, now_ms())
            return
        head, body = job.request(send)
        request = self.links.send(
            node, job.method, head, body, send, lambda head: job.place(send, head)
        )
        if request is None:
            self.batch.lost(send.number, now_ms())
        else:
            self._flights[send.number] = request
            self._loads.add(send, 1)

    def owns(self, request: Request) -> bool:
        """Is it one of this transfer's that are under way?"""
        return self._flights.get(request.send.number) is request

    def ended(self, request: Request) -> None:
        """One of its requests has."""
        send = request.send
        second = self._seconds.pop(send.number, None)
        job = second or self.job
        del self._flights[send.number]
        self._loads.add(send, -1)
        if request.reply is not None:
            if isinstance(job, Reads):
                self._loads.answered(send, time.monotonic() - request.sent_s)
            codes = job.results(send, request.reply, verified=request.verified)
            counts = self.batch.replied(send.number, codes, now_ms())
            self._forget_cancelled()
            if second is not None and counts:
                self._take_over(send, second)
            if job.suspects:
                self.links.tell(request, dataplane.SUSPECT, job.suspects)
        elif request.error is not None:
            for item in send.items.tolist():
                job.details[item] = request.error.detail
            self.batch.refused(send.number, request.error.code, now_ms())
        else:
            self.batch.lost(send.number, now_ms())

    def _take_over(self, send: Send, second: Reads) -> None:
        # The first request is forgotten: nothing else writes to the caller's memory any more.
        assert isinstance(self.job, Reads)
        self.job.take_over(send, second)
        self.job.details.update(second.details)

    def _forget_cancelled(self) -> None:
        for number in self.batch.cancelled:
            request = self._flights.pop(number)
            self._seconds.pop(number, None)
            self.links.forget(request)
            self._loads.add(request.send, -1)
        self.batch.cancelled.clear()

    def close(self) -> None:
        """Forget what is under way: the caller's memory is not touched any more. Idempotent."""
        flights, self._flights = self._flights, {}
        for request in flights.values():
            self.links.forget(request)
            self._loads.add(request.send, -1)
        at_close, self._at_close = self._at_close, None
        if at_close is not None:
            at_close()

    def failed(self) -> NDArray[np.int64]:
        """Items that failed for good; a hole is no failure."""
        codes = self.batch.codes
        return np.flatnonzero((codes != Code.OK) & (codes != Code.NO_CHUNK))

    def check(self) -> None:
        """Raise the failure of the first item that failed."""
        failed = self.failed()
        if not len(failed):
            return
        first = int(failed[0])
        chunk = bytes(self._items["chunk"][first])
        owner, slot = int.from_bytes(chunk[:8], "big"), int.from_bytes(chunk[8:], "big")
        why = self.job.details.get(first) or "no answer that could be used before the deadline"
        more = f" (and {len(failed) - 1} more pieces)" if len(failed) > 1 else ""
        raise Fs3Error(
            code_of(int(self.batch.codes[first])),
            f"chunk {slot} of inode {owner} on chain {int(self._items['chain'][first])}:"
            f" {why}{more}",
        )


def advance(transfers: Sequence[Transfer], links: Links, until_ms: float) -> None:
    """Move transfers on the same links on, until one has heard something or it is ``until_ms``."""
    wake_ms = until_ms
    for transfer in transfers:
        if not transfer.finished:
            transfer.begin()
            wake_ms = min(wake_ms, transfer.batch.wake_ms(now_ms()))
        if transfer.finished:
            wake_ms = 0
    for request in links.wait(max(wake_ms - now_ms(), 0) / 1000):
        owner = next((t for t in transfers if t.owns(request)), None)
        if owner is not None:  # else it was cancelled by one that ended in the same moment
            owner.ended(request)


def now_ms() -> int:
    """On the clock that batches live by."""
    return time.monotonic_ns() // 1_000_000
