"""The transport between processes of one machine: the client reads the data files by itself.

It is a frame connection over a unix socket, on which a READ_BATCH travels as a LOCATE: the
storageserver makes the same checks, but answers with where the bytes lie and which checksum they
have; descriptors of files that are new to the connection come along. The bytes are then read with
the client's own ``preadv``, into the caller's buffers, and compared with their checksums here.
Pieces that the server cannot point at (their chunk is being written) are in the reply's body. All
else, writes included, travels as over TCP.

What the answer points at is granted for a lease: no block of it is reused before that has run out,
or the next request says that it was read. It counts here from when the request was *sent*, so it is
over here before it is over there. A reply that was read too late, or whose server has gone
meanwhile, is not used: its items are read again, through the socket.

Nothing is kept from one request to the next but descriptors, so a read means what a READ_BATCH
means that was served when the server looked: see docs/decisions/0008-grants.md.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane, frames
from fs3.checksum import Crcs
from fs3.clock import SystemClock, boot_clock_id
from fs3.core.kv import is_value
from fs3.core.stamps import STAMPS_BYTES, StampView
from fs3.core.types import ChunkId
from fs3.errors import Code, Fs3Error
from fs3.frames import Buffer
from fs3.log import get_logger
from fs3.routing import NodeInfo
from fs3.transport.address import SocketAddress, open_socket
from fs3.transport.client import DataConnection
from fs3.transport.interface import Completion, Place
from fs3.transport.located import LocatedReader, Places, parts_per_piece
from fs3.transport.remembered import Found, Remembered
from fs3.transport.uses import Uses
from fs3.transport.window import WORTH_BYTES, WriteWindow

RIGHTS_MAX = 250  # descriptors in one frame; Linux takes 253
_RIGHTS_BYTES = socket.CMSG_SPACE(RIGHTS_MAX * array("i").itemsize)
_PREFIX = struct.Struct("<QII")  # dataplane.LOCATE_PREFIX
_START = struct.Struct("<QIIQII")  # dataplane.LOCATE_REPLY
_TELLING = 1 << 61  # requests of the connection's own are above: owners count theirs from 1
_WINDOW = 1 << 62
_CLOCK = SystemClock()
_log = get_logger(__name__)


@cache
def boot_id() -> str:
    """Names this machine as long as it runs, in every namespace; empty if it cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_here(node: NodeInfo) -> bool:
    """Is it on this machine, and does it serve clients here?"""
    return bool(node.local_address) and node.boot_id == boot_id() != ""


class Local:
    """Reaches storageservers of this machine that have a unix socket."""

    name = "local"

    def reaches(self, node: NodeInfo) -> bool:
        """See :class:`Transport`."""
        return is_here(node)

    def connect(self, node: NodeInfo, cluster_id: str, place: Place) -> LocalConnection:
        """See :class:`Transport`."""
        return LocalConnection(node.local_address, cluster_id, place)


class _Asked(NamedTuple):
    """A READ_BATCH that went out as a LOCATE."""

    head: bytes
    sent_s: float
    number: int  # of all LOCATEs, in the order in which they were sent, and are granted


class _Reply(NamedTuple):
    """A LOCATE's reply, taken apart."""

    grant: int
    lease_s: float
    new_files: list[int]
    clock: int
    places: NDArray[Any]  # of whole chunks: dataplane.CHUNK_PLACE
    crcs: Crcs  # theirs
    results: bytes  # and details, encoded


class LocalConnection(DataConnection):
    """See the module; and :class:`ClientConnection`."""

    def __init__(self, address: str, cluster_id: str, place: Place) -> None:
        """Fs3Error UNREACHABLE if nobody listens, which is known at once."""
        self._descriptors: deque[int] = deque()  # received; their frames are not handled yet
        self._files: dict[int, int] = {}  # descriptor of a file by its number
        self._asked: dict[int, _Asked] = {}  # the oldest first
        self._locates = 0
        # Grants that are not used any more, by the LOCATE's number, while an older one is; and up
        # to which one none is.
        self._read_through: dict[int, int] = {}
        self._released = 0
        self._reply: _Reply | None = None  # the one that is being received
        self._located: Places | None = None  # its results,
        self._results = b""  # the same, as those of a READ_BATCH,
        self._details: dict[int, str] = {}  # why some of them failed,
        self._parts: Sequence[memoryview] = ()  # and where those with bytes go
        self._reader = LocatedReader(self._files)
        self._window = WriteWindow()
        self._uses = Uses()
        self._tellings = 0
        # No method: in a cycle, connections would stay open until that is collected.
        self._remembered = Remembered(partial(_stamps_in, self._files, address), self._files)
        self._remembers = True
        self._clock_id = boot_clock_id()
        self._ready: dict[int, tuple[bytes, Found]] = {}  # reads that need not be asked for
        super().__init__(address, cluster_id, place)
        self._connecting = False
        self._hang_up = select.poll()
        self._hang_up.register(self._socket, select.POLLRDHUP)

    def _connect(self, candidate: SocketAddress) -> socket.socket:
        made = open_socket(candidate.family)
        failure = made.connect_ex(candidate.address)
        if failure:
            made.close()
            raise Fs3Error(Code.UNREACHABLE, f"{self.address}: {os.strerror(failure)}")
        return made

    def __del__(self) -> None:
        self._close_files()
        super().__del__()

    def _die(self, error: Fs3Error) -> None:
        super()._die(error)
        self._close_files()
        self._asked.clear()
        ready, self._ready = self._ready, {}
        unsent = Fs3Error(Code.UNREACHABLE, error.detail)
        self._completed += [Completion(self, number, b"", unsent) for number in ready]

    def _close_files(self) -> None:
        self._window.close()
        for descriptor in (*self._files.values(), *self._descriptors):
            os.close(descriptor)
        self._files.clear()
        self._descriptors.clear()
        self._remembered.clear()

    # -- sending ---------------------------------------------------------------------------------

    def send(
        self, method: int, request_id: int, head: Buffer, body_parts: Sequence[memoryview] = ()
    ) -> None:
        """See :class:`ClientConnection`."""
        # Whether chunks are there is said as well without places, and for less. (One of no items
        # at all tells the server what it may reuse.)
        locates = method == dataplane.READ_BATCH and (not head or dataplane.wants_bytes(head))
        if method != dataplane.READ_BATCH:
            self._tell_uses()
        if method == dataplane.WRITE_BATCH and body_parts and not self.dead:
            self._send_write(request_id, head, body_parts)
            return
        if not locates or self.dead:
            super().send(method, request_id, head, body_parts)
            return
        found = self._remembered.find(np.frombuffer(head, dataplane.READ_ITEM))
        if found is not None:
            self._ready[request_id] = bytes(head), found
        else:
            self._send_locate(request_id, bytes(head))

    def _send_locate(self, request_id: int, head: bytes) -> None:
        self._tell_uses()
        self._locates += 1
        self._asked[request_id] = _Asked(head, time.monotonic(), self._locates)
        items = np.frombuffer(head, dataplane.READ_ITEM)
        wanted = self._remembered.unknown(items) if self._remembers else []
        prefix = _PREFIX.pack(self._released, len(wanted), 0)
        prefix += struct.pack(f"<{len(wanted)}I", *wanted)
        super().send(dataplane.LOCATE, request_id, prefix + head)

    def _send_write(self, request_id: int, head: Buffer, parts: Sequence[memoryview]) -> None:
        """By way of the window if there is one."""
        if not self._window.asked and sum(map(len, parts)) >= WORTH_BYTES:
            self._window.asked = True
            super().send(dataplane.WINDOW, _WINDOW, b"")
        prefix = self._window.put(request_id, parts)
        if prefix is None:
            super().send(dataplane.WRITE_BATCH, request_id, head, parts)
        else:
            super().send(dataplane.WRITE_WINDOW, request_id, prefix + head)

    def _tell_uses(self) -> None:
        """What was read here without asking, before anything else is said."""
        if self._uses and not self.dead:
            for head in self._uses.take():
                self._tellings += 1
                super().send(dataplane.USED, _TELLING + self._tellings, head)

    def forget(self, request_id: int) -> None:
        """See :class:`ClientConnection`."""
        self._asked.pop(request_id, None)
        if self._ready.pop(request_id, None) is None:
            super().forget(request_id)

    # -- reading without asking ------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """See :class:`ClientConnection`."""
        return super().pending + len(self._ready)

    def take_completed(self) -> list[Completion]:
        """See :class:`ClientConnection`."""
        while self._ready:  # only now, when what others are asked for is under way
            request_id, (head, found) = next(iter(self._ready.items()))
            del self._ready[request_id]
            try:
                self._read_remembered(request_id, head, found)
            except Fs3Error as error:
                self._completed.append(Completion(self, request_id, b"", error))
                self._die(error)
        return super().take_completed()

    def read_here(
        self, items: NDArray[Any], parts: Sequence[memoryview], versions: Callable[[int], int]
    ) -> bool:
        """See :class:`ClientConnection`."""
        now_ms = _CLOCK.monotonic_ms
        if not self._reads_here(lambda known: known.read(items, parts, versions, now_ms)):
            return False
        self._note_use(items.view(np.uint8).data)
        return True

    def read_piece_here(
        self, chunk: bytes, served: int, offset: int, parts: Sequence[memoryview]
    ) -> bool:
        """See :class:`ClientConnection`."""
        now_ms = _CLOCK.monotonic_ms
        if not self._reads_here(lambda k: k.read_piece(chunk, served, offset, parts, now_ms)):
            return False
        if is_value(ChunkId(chunk)):
            self._note_use(dataplane.ITEM.pack(chunk, served >> 32, 0, 0, 0))
        return True

    def _reads_here(self, read: Callable[[Remembered], bool]) -> bool:
        try:
            return read(self._remembered) and not self._is_gone()
        except Fs3Error as error:  # what the server said makes no sense
            self._die(error)
            return False

    def _note_use(self, items: Buffer) -> None:
        if self._uses.note(items):
            self.on_readable()  # what the server said to the uses before: nobody waits for that
            self._tell_uses()

    def _read_remembered(self, request_id: int, head: bytes, found: Found) -> None:
        """See fs3/core/stamps.py for why this is a read as good as any."""
        remembered = self._remembered
        if remembered.standing(found) and remembered.serving(found, _CLOCK.monotonic_ms):
            pieces = remembered.pieces(found)
            results = np.zeros(len(pieces), dataplane.READ_RESULT)
            results["length"], results["crc"] = pieces["length"], pieces["crc"]
            results["version"] = found.entries["version"]
            answer = results.tobytes()
            parts = super()._places(request_id, answer) or ()
            good = remembered.read_found(found, pieces, parts)
            if self._is_gone():  # whoever has the files now does not tell by these stamps
                raise Fs3Error(Code.UNREACHABLE, f"{self.address}: the server is gone")
            if good:
                self._completed.append(Completion(self, request_id, answer, None, verified=True))
                self._note_use(head)
                return
        self._send_locate(request_id, head)

    def _learn(self, asked: _Asked, reply: _Reply) -> None:
        """What the reply says of whole chunks, unless leases are counted on another clock."""
        if reply.clock != self._clock_id:
            self._remembers = False
            return
        try:
            items = np.frombuffer(asked.head, dataplane.READ_ITEM)
            self._remembered.learn(items, reply.places, reply.crcs)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, Fs3Error):
                raise
            self._remembers = False
            _log.warning("places_not_remembered", server=self.address, reason=str(error))

    # -- receiving -------------------------------------------------------------------------------

    def _read(self, buffers: list[memoryview]) -> int:
        count, ancillary, flags, _ = self._socket.recvmsg_into(
            buffers, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self._descriptors.extend(received)
        if flags & socket.MSG_CTRUNC:
            raise Fs3Error(Code.UNREACHABLE, f"{self.address}: no descriptor is left to receive")
        return count

    def _begin_reply(self, header: frames.Header, head: bytes) -> None:
        self._window.answered(header.request_id)
        if header.method == dataplane.LOCATE:
            self._reply = reply = _decode(head)
            if len(reply.new_files) > len(self._descriptors):
                raise Fs3Error(
                    Code.PROTOCOL,
                    f"{self.address}: {len(reply.new_files)} files announced,"
                    f" {len(self._descriptors)} came",
                )
            for number in reply.new_files:
                if number in self._files:
                    raise Fs3Error(Code.PROTOCOL, f"{self.address}: file {number} came twice")
                self._files[number] = self._descriptors.popleft()
        super()._begin_reply(header, head)

    def _places(self, request_id: int, head: bytes) -> Sequence[memoryview] | None:
        located = self._locate(request_id)
        if located is None:
            return super()._places(request_id, head)
        with_bytes = located[located["length"] > 0]
        in_body = with_bytes["file"] == dataplane.FILE_NONE
        if not in_body.any():
            return []
        arrive = np.repeat(in_body, parts_per_piece(self._parts, with_bytes["length"]))
        return [part for part, here in zip(self._parts, arrive.tolist(), strict=True) if here]

    def _locate(self, request_id: int) -> Places | None:
        """The results of the LOCATE that is being answered, and where they go; None: it is none."""
        asked, reply = self._asked.get(request_id), self._reply
        if asked is None or reply is None:
            return None
        if self._located is None:
            count = len(asked.head) // dataplane.ITEM.size
            self._located, self._details = _decode_places(reply.results, count)
            self._results = _results_of(self._located)
            self._parts = super()._places(request_id, self._results) or ()
        return self._located

    def _finish_reply(self) -> None:
        super()._finish_reply()
        self._reply = None
        self._located, self._parts = None, ()

    def _note_read(self, number: int, grant: int) -> None:
        """Release it with the next LOCATE, and what is before it, unless older ones are awaited.

        Answers may overtake each other: the server waits for what is being written.
        """
        read = self._read_through
        read[number] = grant
        oldest = next((asked.number for asked in self._asked.values()), self._locates + 1)
        for one in [one for one in read if one < oldest]:
            self._released = max(self._released, read.pop(one))

    def _on_error_frame(self, header: frames.Header, error: Fs3Error) -> None:
        self._asked.pop(header.request_id, None)
        self._window.answered(header.request_id)
        super()._on_error_frame(header, error)

    def _on_window(self, head: bytes) -> None:
        if not self._descriptors:
            raise Fs3Error(Code.PROTOCOL, f"{self.address}: a window without its memory")
        descriptor = self._descriptors.popleft()
        try:
            self._window.install(head, descriptor)
        except (OSError, ValueError) as error:  # then all of it is sent along
            if isinstance(error, Fs3Error):
                raise
            _log.warning("no_window", server=self.address, reason=str(error))
        finally:
            os.close(descriptor)

    def _complete(self, request_id: int, head: bytes) -> None:
        if request_id == _WINDOW:
            self._on_window(head)
            return
        if request_id > _TELLING:
            return
        failures = {}
        try:
            located, reply = self._locate(request_id), self._reply
            if located is None or reply is None:
                super()._complete(request_id, head)
                return
            asked = self._asked.pop(request_id)
            if len(reply.places):
                self._learn(asked, reply)
            failures = self._reader.read(located, self._parts)
            self._note_read(asked.number, reply.grant)
            if not self._stood(asked, reply):
                _log.debug("grant_over", server=self.address, items=len(located))
                super().send(dataplane.READ_BATCH, request_id, asked.head)
                return
        except Fs3Error as error:
            self._die(error)
        else:
            if self._is_gone():  # whoever has the files now may have reused blocks
                self._break("the server went while its files were read")
        if self.error is not None or located is None:
            self._completed.append(Completion(self, request_id, b"", self.error))
            return
        for item, (code, reason) in failures.items():
            located["code"][item] = code
            self._details[item] = reason
        results = _results_of(located) if failures else self._results
        made = dataplane.encode_results(results, list(self._details.items()))
        self._completed.append(Completion(self, request_id, made, None, verified=True))

    @staticmethod
    def _stood(asked: _Asked, reply: _Reply) -> bool:
        """Has everything been read while the grant was good?"""
        return time.monotonic() - asked.sent_s < reply.lease_s

    def _is_gone(self) -> bool:
        return bool(self._hang_up.poll(0))


def _stamps_in(files: dict[int, int], address: str, number: int) -> StampView:
    """OSError if the memory of this number cannot be mapped, Fs3Error if it was never passed."""
    descriptor = files.get(number)
    if descriptor is None:
        raise Fs3Error(Code.PROTOCOL, f"{address}: stamps {number} were never passed")
    return StampView(memoryview(mmap.mmap(descriptor, STAMPS_BYTES, prot=mmap.PROT_READ)))


def _decode(head: bytes) -> _Reply:
    """Raises Fs3Error PROTOCOL for a head that is no answer to a LOCATE."""
    start = _START.size
    if len(head) < start:
        raise Fs3Error(Code.PROTOCOL, f"a LOCATE reply of {len(head)} bytes; {start} are the least")
    grant, lease_ms, count, clock, place_count, crc_count = _START.unpack_from(head)
    files_end = start + 4 * count
    places_end = files_end + dataplane.CHUNK_PLACE.itemsize * place_count
    end = places_end + 4 * crc_count
    if count > RIGHTS_MAX or len(head) < end:
        raise Fs3Error(
            Code.PROTOCOL,
            f"a LOCATE reply of {len(head)} bytes announces {count} files, {place_count} places"
            f" of chunks and {crc_count} CRCs",
        )
    files = list(struct.unpack_from(f"<{count}I", head, start))
    places = np.frombuffer(head, dataplane.CHUNK_PLACE, place_count, files_end)
    crcs = np.frombuffer(head, np.uint32, crc_count, places_end)
    return _Reply(grant, lease_ms / 1000, files, clock, places, crcs, head[end:])


def _decode_places(results: bytes, count: int) -> tuple[Places, dict[int, str]]:
    size = count * dataplane.PLACE.size
    if len(results) < size:
        raise Fs3Error(Code.PROTOCOL, f"{len(results)} bytes of places; {size} expected")
    details = dict(json.loads(results[size:])) if len(results) > size else {}
    return np.frombuffer(results, dataplane.LOCATE_RESULT, count).copy(), details


def _results_of(located: Places) -> bytes:
    """The READ_RESULTs that a READ_BATCH would have had."""
    results = np.zeros(len(located), dataplane.READ_RESULT)
    for name in ("code", "length", "version", "crc"):
        results[name] = located[name]
    return results.tobytes()
