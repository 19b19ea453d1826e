"""The data port's own methods: batches of reads and writes of clients, messages of neighbours.

A request is checked as a whole first: a head that is no whole number of items, a body that is not
what the items say, an item beyond the largest chunk: one clear error, nothing done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.buffers import BufferPool
from fs3.core import messages as m
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.kv import OWNER_BYTE
from fs3.core.types import (
    CHUNK_CONTENT_BYTES_MAX,
    CHUNK_ID_BYTES,
    ChainId,
    ChainVersion,
    ChunkId,
    ChunkVersion,
    TargetId,
)
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.transport.tcp import Caller, FrameServer, Request

from . import peerwire
from .jobs import BufferOwner, LocateJob, Payload, Payloads, ReadJob, Unread, WriteJob
from .target import Target

_log = get_logger(__name__)
_FROM_CLIENTS = (
    UpdateKind.WRITE,
    UpdateKind.TRUNCATE,
    UpdateKind.EXTEND,
    UpdateKind.REMOVE,
    UpdateKind.CREATE,
)
_WITH_DATA = (UpdateKind.WRITE, UpdateKind.CREATE)
_ON_VALUES = (UpdateKind.CREATE, UpdateKind.REMOVE)


def _membership(kinds: Sequence[UpdateKind]) -> NDArray[np.bool_]:
    """Of each value that a kind has on the wire, whether it is one of these."""
    found = np.zeros(256, np.bool_)
    found[list(kinds)] = True
    return found


_ARE_FROM_CLIENTS = _membership(_FROM_CLIENTS)
_HAVE_DATA = _membership(_WITH_DATA)
_ARE_ON_VALUES = _membership(_ON_VALUES)


class DataServer:
    """Frames in, jobs for targets out. Reactor thread only."""

    def __init__(
        self, server: FrameServer, targets: Mapping[TargetId, Target], pool: BufferPool
    ) -> None:
        self._targets = targets
        self._by_chain: dict[int, Target] = {}
        self._pool = pool
        self.serve(server)
        server.take([dataplane.PEER], self.guarded(self._on_peer))

    def serve(self, server: FrameServer) -> None:
        """Take what clients ask from one more port."""
        server.take([dataplane.READ_BATCH], self.guarded(self._on_read))
        server.take([dataplane.WRITE_BATCH], self.guarded(self.on_write))
        server.take([dataplane.SUSPECT], self.guarded(self._on_suspect))
        server.take([dataplane.PIN], self.guarded(self._on_pin))
        server.take([dataplane.USED], self.guarded(self._on_used))

    def set_chains(self, by_chain: Mapping[ChainId, Target]) -> None:
        """Which target of this node stands for a chain."""
        self._by_chain = {int(chain): target for chain, target in by_chain.items()}

    @staticmethod
    def guarded(
        handle: Callable[[Caller, Request, BufferOwner | None], None],
    ) -> Callable[[Caller, Request], None]:
        """Own the body, and answer a request that makes no sense with what is wrong with it."""

        def on_frame(connection: Caller, request: Request) -> None:
            body = BufferOwner(request.body) if request.body is not None else None
            try:
                handle(connection, request, body)
            except Fs3Error as error:
                connection.fail(request, error)

        return on_frame

    # --- reads -----------------------------------------------------------------------------------

    def _on_read(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        if body is not None:
            raise Fs3Error(Code.PROTOCOL, "a READ_BATCH has no body")
        items = dataplane.decode_read_items(request.head)
        _check_reads(items)
        reply = _replier(connection, request)
        job = ReadJob(items, self._pool, reply, promises=connection.takes_sources)
        self._serve(job, lambda target, indexes: target.reads.read(job, indexes))

    def locate(self, job: LocateJob, serve: Callable[[Target, list[int]], None]) -> None:
        """Have the targets of a LOCATE's items ``serve`` it, each its own."""
        _check_reads(job.items)
        self._serve(job, serve)

    def _serve(self, job: ReadJob | LocateJob, serve: Callable[[Target, list[int]], None]) -> None:
        items = job.items
        if not items:
            job.done(0)
            return
        indexes_of: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            indexes_of.setdefault(item[1], []).append(index)
        for chain, indexes in indexes_of.items():
            target = self._by_chain.get(chain)
            if target is None:
                job.refuse(indexes, Code.STALE_CHAIN, f"no target of chain {chain} is here")
            else:
                serve(target, indexes)

    def _on_suspect(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        """A reader got whole checksum blocks, which nobody checks here, with a wrong CRC."""
        if body is not None:
            raise Fs3Error(Code.PROTOCOL, "a SUSPECT has no body")
        for chunk, chain, *_ in dataplane.decode_items(request.head, dataplane.READ_ITEM).tolist():
            target = self._by_chain.get(chain)
            if target is not None:
                target.repairs.suspect(ChunkId(chunk), "a reader got bytes with a wrong CRC")
        _replier(connection, request)(b"", ())

    def _on_pin(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        if body is not None:
            raise Fs3Error(Code.PROTOCOL, "a PIN has no body")
        items = dataplane.decode_items(request.head, dataplane.READ_ITEM)
        results = np.zeros(len(items), dataplane.READ_RESULT)
        for index, (chunk, chain, version, _, seconds) in enumerate(items.tolist()):
            target = self._by_chain.get(chain)
            if target is None or target.core is None or target.core.chain.version != version:
                results["code"][index] = Code.STALE_CHAIN
            else:
                results["code"][index] = target.values.pin(ChunkId(chunk), seconds)
        _replier(connection, request)(dataplane.encode_results(results, ()), ())

    def _on_used(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        if body is not None:
            raise Fs3Error(Code.PROTOCOL, "a USED has no body")
        used: dict[int, list[ChunkId]] = defaultdict(list)
        for chunk, chain, *_ in dataplane.decode_read_items(request.head):
            used[chain].append(ChunkId(chunk))
        for chain, chunks in used.items():
            target = self._by_chain.get(chain)
            if target is not None:
                target.values.used(chunks)
        _replier(connection, request)(b"", ())

    # --- writes ----------------------------------------------------------------------------------

    def on_write(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        """A WRITE_BATCH; Fs3Error if it makes no sense."""
        prefix_bytes = dataplane.WRITE_PREFIX.itemsize
        items = dataplane.decode_items(request.head, dataplane.WRITE_ITEM, prefix_bytes)
        prefix = np.frombuffer(request.head, dataplane.WRITE_PREFIX, 1)[0]
        view = body.buffer.view if body is not None else memoryview(b"")
        starts = _check_writes(items, len(view))
        reply = _replier(connection, request)
        if not len(items):
            reply(b"", ())
            return
        job = WriteJob(len(items), reply)
        client, sync = int(prefix["client"]), bool(prefix["flags"] & dataplane.WRITE_FLAG_SYNC)
        events: dict[int, list[m.Write]] = defaultdict(list)
        for index, item in enumerate(items.tolist()):
            chunk, chain, version, offset, length, crc, kind, _, channel, sequence = item
            data = None
            if kind in _WITH_DATA:
                data = Payload(view[starts[index] : starts[index] + length], body)
            write = m.Write(
                (job, index),
                ChainVersion(version),
                ChunkId(chunk),
                UpdateKind(kind),
                offset,
                length,
                crc,
                Tag(client, channel, sequence) if sequence else None,
                sync,
                data,
            )
            if kind == UpdateKind.CREATE and (target := self._by_chain.get(chain)) is not None:
                refusal = target.values.refusal(write.chunk)
                if refusal is not None:
                    job.finish(index, refusal[0], ChunkVersion(0), 0, 0, refusal[1])
                    continue
            events[chain].append(write)
        for chain, writes in events.items():
            target = self._by_chain.get(chain)
            if target is None or target.core is None:
                _refuse(writes, target, chain)
            elif left := target.creations.take(writes):
                target.feed(left)

    # --- neighbours ------------------------------------------------------------------------------

    def _on_peer(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        view = body.buffer.view if body is not None else memoryview(b"")
        at = 0
        for_target: dict[TargetId, list[m.Message]] = defaultdict(list)
        for message in peerwire.decode(memoryview(request.head)):
            length = peerwire.payload_bytes(message)
            if isinstance(message, m.Forward) and length:
                if at + length > len(view):
                    raise Fs3Error(
                        Code.PROTOCOL, f"a payload of {length} bytes, {len(view) - at} are left"
                    )
                message = message._replace(data=Payload(view[at : at + length], body))
                at += length
            for_target[message.route.destination].append(message)
        for target_id, messages in for_target.items():
            target = self._targets.get(target_id)
            if target is not None:
                target.deliver(messages)


def _replier(connection: Caller, request: Request) -> Callable[[bytes, Payloads], None]:
    def reply(head: bytes, payloads: Payloads) -> None:
        keep = list(payloads)  # held until they are sent
        parts = [payload.view for payload in keep]
        places = [payload.place for payload in keep]

        def on_sent() -> None:
            for payload in keep:
                if isinstance(payload, Unread):
                    payload.view.close()
            keep.clear()

        connection.reply(request.request_id, request.method, head, parts, on_sent, places)

    return reply


def _check_reads(items: Sequence[dataplane.ReadItem]) -> None:
    total = 0
    for index, item in enumerate(items):
        if item[3] + item[4] > CHUNK_CONTENT_BYTES_MAX:
            raise _out_of_range(index, item[3], item[4])
        total += item[4]
    if total > dataplane.BATCH_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE,
            f"a batch of {total} bytes; at most {dataplane.BATCH_BYTES_MAX} are allowed",
        )


def _check_ranges(offsets: NDArray[Any], lengths: NDArray[Any]) -> None:
    ends = offsets.astype(np.int64) + lengths
    if len(ends) and int(ends.max()) > CHUNK_CONTENT_BYTES_MAX:
        at = int(ends.argmax())
        raise _out_of_range(at, int(offsets[at]), int(lengths[at]))


def _out_of_range(at: int, offset: int, length: int) -> Fs3Error:
    return Fs3Error(
        Code.INVALID,
        f"item {at}: {length} bytes at offset {offset} reach beyond the largest"
        f" chunk, {CHUNK_CONTENT_BYTES_MAX} bytes",
    )


def _check_writes(items: NDArray[Any], body_bytes: int) -> list[int]:
    """Where each item's data starts in the body."""
    known = _ARE_FROM_CLIENTS[items["kind"]]
    if not known.all():
        at = int(np.flatnonzero(~known)[0])
        allowed = ", ".join(f"{kind.name} ({kind:d})" for kind in _FROM_CLIENTS)
        raise Fs3Error(
            Code.INVALID, f"item {at}: update kind {items['kind'][at]}; {allowed} are allowed"
        )
    _check_ranges(items["offset"], items["length"])
    _check_kv(items)
    lengths = np.where(_HAVE_DATA[items["kind"]], items["length"], 0).astype(np.int64)
    total = int(lengths.sum())
    if total != body_bytes:
        raise Fs3Error(Code.PROTOCOL, f"the items write {total} bytes, the body has {body_bytes}")
    starts: list[int] = (np.cumsum(lengths) - lengths).tolist()
    return starts


def _check_kv(items: NDArray[Any]) -> None:
    """A value of the KV cache never changes: it is created whole, and removed."""
    owners = np.ascontiguousarray(items["chunk"]).view(np.uint8)[::CHUNK_ID_BYTES]
    wrong = (owners >= OWNER_BYTE) & ~_ARE_ON_VALUES[items["kind"]]
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        kind = UpdateKind(int(items["kind"][at])).name
        raise Fs3Error(
            Code.INVALID, f"item {at}: {kind} of a KV value; CREATE and REMOVE are allowed"
        )


def _refuse(writes: Sequence[m.Write], target: Target | None, chain: int) -> None:
    for write in writes:
        job, index = write.request
        if target is None:
            code, detail = Code.STALE_CHAIN, f"no target of chain {chain} is here"
        else:
            code, detail = Code.NOT_SERVING, f"target {target.target} does not serve"
        job.finish(index, code, 0, 0, 0, detail)
