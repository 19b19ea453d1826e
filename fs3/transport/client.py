"""The data plane's calling end: many requests in flight on few sockets, driven by the caller.

A thread that wants data owns its connections, sends on them, and waits in :func:`drive`; nothing
here has a thread or a loop of its own. Not thread-safe, not shared over a fork.

The body of a reply never stops over: once its head is here, ``place`` says where the body belongs
(a scatter list over the caller's own memory), and the kernel writes it there. Large answers to
reads are compared with their checksums as they come, while the processor's cache has them.

What a connection promises is said in :mod:`fs3.transport.interface`; this is the one over TCP.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from fs3 import dataplane, frames
from fs3.errors import Code, Fs3Error
from fs3.frames import Buffer, FrameKind
from fs3.routing import NodeInfo
from fs3.transport.address import SocketAddress, open_socket, resolve
from fs3.transport.arriving import ArrivingPieces
from fs3.transport.interface import ClientConnection, Completion, Place
from fs3.transport.lowwater import LowWater
from fs3.transport.output import Output, frame_buffers

# What is read ahead of knowing where it belongs, and copied from here: small on purpose.
_INPUT_BYTES = 8 << 10
_BUFFERS_PER_CALL = 1024  # Linux's IOV_MAX
_BYTES_PER_RECEIVE = 1 << 20  # of a body; what the second cache holds is checked while it does
_RECEIVES_PER_CALL = 4  # bounds how long one fast server keeps the others waiting
_CHECKED_BYTES_MIN = 64 << 10  # smaller bodies are in the cache until their owner checks them


class DataConnection:
    """One socket to one server: a :class:`ClientConnection`."""

    def __init__(self, address: str, cluster_id: str, place: Place) -> None:
        """Fs3Error UNREACHABLE if ``address`` names nothing. Only looking a name up may block."""
        self.address = address
        self.error: Fs3Error | None = None  # why it is dead
        self._cluster_id = cluster_id
        self._tag = frames.cluster_tag(cluster_id)
        self._place = place
        self._output = Output()
        self._low_water = LowWater()
        self._reads: dict[int, int] = {}  # pending READ_BATCHes: of how many items
        # Pending requests, and whether they are with the kernel whole.
        self._sent: dict[int, bool] = {}
        self._completed: list[Completion] = []
        # Input: _view[_start:_end] is unread. While a body is being received it is empty.
        self._view = memoryview(bytearray(_INPUT_BYTES))
        self._start = self._end = 0
        self._header: frames.Header | None = None
        self._current: tuple[int, bytes] | None = None  # the reply whose body is being received
        self._targets: list[memoryview] = []  # where the rest of that body goes, reversed
        self._pieces: ArrivingPieces | None = None  # what checks them
        self._in_body = False
        self._body_left = 0
        self._candidates = resolve(address)
        self._connecting = True
        self._socket = self._connect(self._candidates.pop(0))

    def _connect(self, candidate: SocketAddress) -> socket.socket:
        made = open_socket(candidate.family)
        made.connect_ex(candidate.address)  # how it went is asked when it becomes writable
        return made

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()

    @property
    def dead(self) -> bool:
        """Nothing more can be sent."""
        return self.error is not None

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        return len(self._sent)

    @property
    def wants_write(self) -> bool:
        """Watch for writability too."""
        return self._connecting or self._output.unsent_bytes > 0

    def fileno(self) -> int:
        """For poll; changes while connecting, so ask again before each wait."""
        return self._socket.fileno()

    def send(
        self, method: int, request_id: int, head: Buffer, body_parts: Sequence[memoryview] = ()
    ) -> None:
        """Begin a request; ``request_id`` must not be pending here.

        The parts must stay as they are until it is completed, or :meth:`forget` says otherwise.
        """
        if self.error is not None:
            self._completed.append(Completion(self, request_id, b"", self.error))
            return
        self._sent[request_id] = False
        if method == dataplane.READ_BATCH:
            self._reads[request_id] = len(head) // dataplane.ITEM.size
        buffers = frame_buffers(FrameKind.REQUEST, method, self._tag, request_id, head, body_parts)
        self._output.put(buffers, lambda: self._note_sent(request_id))
        if not self._connecting:
            self.on_writable()

    def read_here(
        self, items: NDArray[Any], parts: Sequence[memoryview], versions: Callable[[int], int]
    ) -> bool:
        """See :class:`ClientConnection`: whoever is far away must be asked."""
        return False

    def read_piece_here(
        self, chunk: bytes, served: int, offset: int, parts: Sequence[memoryview]
    ) -> bool:
        """See :class:`ClientConnection`."""
        return False

    def forget(self, request_id: int) -> None:
        """Give up on a request: nothing will complete, and the caller's memory is left alone.

        If its frame is still being sent, the connection dies: a frame cannot end half-way.
        """
        sent = self._sent.pop(request_id, True)
        self._reads.pop(request_id, None)
        if self._current is not None and self._current[0] == request_id:
            self._current = self._pieces = None
            self._targets.clear()
        if not sent:
            self._die(Fs3Error(Code.UNREACHABLE, f"{self.address}: given up while sending"))

    def close(self) -> None:
        """What is pending completes as broken."""
        self._die(Fs3Error(Code.UNREACHABLE, f"{self.address}: closed by its owner"))

    def take_completed(self) -> list[Completion]:
        """What has completed since this was asked last."""
        completed, self._completed = self._completed, []
        return completed

    def on_writable(self) -> None:
        """Finish connecting, or send what waits."""
        try:
            if self._connecting and not self._on_connected():
                return
            self._output.send(self._socket)
        except OSError as error:
            self._break(str(error))

    def on_readable(self) -> None:
        """Receive until the kernel has nothing more for now, or a fair share."""
        if self._connecting:
            return  # a failed attempt is writable too
        try:
            for _ in range(_RECEIVES_PER_CALL):
                more = self._receive()
                self._handle()
                if self.dead or not more:
                    break
        except Fs3Error as error:  # first: it is an OSError too, and may be a BlockingIOError
            self._die(error)
        except BlockingIOError:
            pass
        except OSError as error:
            self._break(str(error))
        if not self.dead:
            self._low_water.expect(self._socket, self._body_left)

    def _on_connected(self) -> bool:
        failure = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not failure:
            self._connecting = False
            return True
        if not self._candidates:
            raise OSError(failure, f"errno {failure}: no connection")
        self._socket.close()
        self._socket = self._connect(self._candidates.pop(0))
        return False

    def _note_sent(self, request_id: int) -> None:
        if request_id in self._sent and not self.dead:
            self._sent[request_id] = True

    def _break(self, reason: str) -> None:
        self._die(Fs3Error(Code.MAYBE_APPLIED, f"{self.address}: {reason}"))

    def _die(self, error: Fs3Error) -> None:
        """End every pending request; one that did not leave whole can be said to have failed."""
        if self.error is not None:
            return
        self.error = error
        self._socket.close()
        self._targets.clear()
        self._reads.clear()
        self._current = self._pieces = None
        pending, self._sent = self._sent, {}
        for request_id, sent in pending.items():
            said = error
            if error.code in (Code.MAYBE_APPLIED, Code.UNREACHABLE):
                code = Code.MAYBE_APPLIED if sent else Code.UNREACHABLE
                said = Fs3Error(code, error.detail)
            self._completed.append(Completion(self, request_id, b"", said))
        self._output.abandon()

    def _receive(self) -> bool:
        """One receive; True if it may have left more with the kernel."""
        if not self._body_left:
            self._make_room()
            room = self._view[self._end :]
            count = self._read([room])
            self._end += count
            more = count == len(room)
        else:
            # The rest of the body, if it is not too much, and what follows it, in one call.
            self._start = self._end = 0
            # A caller that forgot its request leaves no targets: the body goes over the buffer.
            targets = self._next_targets()
            whole = bool(targets) and sum(map(len, targets)) == self._body_left
            if not targets:
                targets = [self._view[: self._body_left]]
            offered = sum(map(len, targets))
            count = self._read([*targets, self._view] if whole else targets)
            taken = min(count, self._body_left)
            self._advance(taken)
            self._end = count - taken
            # A call that was not filled has taken all there was: the next one would find scraps.
            more = count >= offered and (self._body_left > 0 or self._end == len(self._view))
        if not count:
            raise ConnectionResetError("peer closed the connection")
        return more

    def _next_targets(self) -> list[memoryview]:
        """Where the next bytes of the body go."""
        found: list[memoryview] = []
        room = _BYTES_PER_RECEIVE
        for target in islice(reversed(self._targets), _BUFFERS_PER_CALL - 1):
            found.append(target[:room])
            room -= len(target)
            if room <= 0:
                break
        return found

    def _read(self, buffers: list[memoryview]) -> int:
        if len(buffers) == 1:
            return self._socket.recv_into(buffers[0])
        return self._socket.recvmsg_into(buffers)[0]

    def _advance(self, count: int) -> None:
        """``count`` bytes of the body are in place."""
        self._body_left -= count
        targets, pieces = self._targets, self._pieces
        while count and targets:
            first = targets[-1]
            if len(first) > count:
                targets[-1] = first[count:]
                first = first[:count]
            else:
                targets.pop()
            if pieces is not None:
                pieces.take(first)
            count -= len(first)

    def _make_room(self) -> None:
        unread = self._end - self._start
        need = frames.HEADER_BYTES + (self._header.head_bytes if self._header else 0)
        if not unread and need <= _INPUT_BYTES:
            if len(self._view) > _INPUT_BYTES:  # an exceptional head's memory
                self._view = memoryview(bytearray(_INPUT_BYTES))
            self._start = self._end = 0
        elif len(self._view) - self._start < need:
            target = memoryview(bytearray(need)) if need > len(self._view) else self._view
            target[:unread] = bytes(self._view[self._start : self._end])
            self._view, self._start, self._end = target, 0, unread

    def _handle(self) -> None:
        """Everything that the buffer holds. Raises Fs3Error if it makes no sense."""
        while not self.dead:
            if self._in_body:
                self._copy_body()
                if self._body_left:
                    return
                self._finish_reply()
            elif not self._begin_frame():
                return

    def _copy_body(self) -> None:
        """The part of a body that came with its head."""
        while self._body_left and self._start < self._end:
            unread = self._end - self._start
            count = min(unread, self._body_left)
            if self._targets:
                count = min(count, len(self._targets[-1]))
                self._targets[-1][:count] = self._view[self._start : self._start + count]
            self._start += count
            self._advance(count)

    def _begin_frame(self) -> bool:
        """Take a header and its head from the buffer; False if they are not all there."""
        if self._header is None:
            if self._end - self._start < frames.HEADER_BYTES:
                return False
            self._header = frames.decode(self._view[self._start : self._end])
        header = self._header
        start = self._start + frames.HEADER_BYTES
        if self._end - start < header.head_bytes:
            return False
        head = bytes(self._view[start : start + header.head_bytes])
        frames.check_head(header, head)
        self._header = None
        self._start = start + header.head_bytes
        if header.kind == FrameKind.REPLY:
            self._begin_reply(header, head)
        elif header.kind == FrameKind.ERROR:
            self._on_error_frame(header, frames.decode_error(head))
        else:
            raise Fs3Error(Code.PROTOCOL, f"{self.address}: a frame of kind {header.kind}")
        return True

    def _begin_reply(self, header: frames.Header, head: bytes) -> None:
        if header.cluster_tag != self._tag or header.protocol != frames.PROTOCOL_VERSION:
            frames.check_peer(header, self._cluster_id)
        wanted = header.request_id in self._sent
        self._in_body = True
        self._body_left = header.body_bytes
        if wanted:
            self._current = header.request_id, head
        if not header.body_bytes:
            self._finish_reply()
            return
        places = self._places(header.request_id, head) if wanted else None
        if places is not None:
            self._targets = [part for part in reversed(places) if len(part)]
            room = sum(map(len, self._targets))
            if room != header.body_bytes:
                raise Fs3Error(
                    Code.PROTOCOL,
                    f"{self.address}: a body of {header.body_bytes} bytes; {room} expected",
                )
            items = self._reads.get(header.request_id)
            if items and header.body_bytes >= _CHECKED_BYTES_MIN:
                self._pieces = ArrivingPieces(head, items, header.body_bytes, self.address)

    def _places(self, request_id: int, head: bytes) -> Sequence[memoryview] | None:
        return self._place(request_id, head)

    def _finish_reply(self) -> None:
        self._in_body = False
        current, self._current = self._current, None
        if current is not None:
            request_id, head = current
            del self._sent[request_id]
            self._reads.pop(request_id, None)
            self._complete(request_id, head)
        self._pieces = None

    def _complete(self, request_id: int, head: bytes) -> None:
        pieces = self._pieces
        if pieces is None:
            self._completed.append(Completion(self, request_id, head, None))
        else:
            checked = pieces.checked_head()
            self._completed.append(Completion(self, request_id, checked, None, verified=True))

    def _on_error_frame(self, header: frames.Header, error: Fs3Error) -> None:
        if header.body_bytes:
            raise Fs3Error(Code.PROTOCOL, f"{self.address}: an error frame with a body")
        if header.request_id in self._sent:
            del self._sent[header.request_id]
            self._reads.pop(header.request_id, None)
            self._completed.append(Completion(self, header.request_id, b"", error))
        elif header.request_id == 0:
            self._die(error)  # about the connection


class Tcp:
    """The transport that reaches every node."""

    name = "tcp"

    def reaches(self, node: NodeInfo) -> bool:
        """See :class:`Transport`."""
        return True

    def connect(self, node: NodeInfo, cluster_id: str, place: Place) -> DataConnection:
        """See :class:`Transport`."""
        return DataConnection(node.data_address, cluster_id, place)


def drive(connections: Iterable[ClientConnection], deadline_s: float) -> list[Completion]:
    """Move bytes until something completes, and return it; empty at ``deadline_s``.

    The deadline is by ``time.monotonic``; it is never overstayed, and one in the past still takes
    what is there. Returns at once if nothing is pending.
    """
    connections = tuple(connections)
    while True:
        completed = [done for connection in connections for done in connection.take_completed()]
        left_ms = (deadline_s - time.monotonic()) * 1000
        if completed or not _wait(connections, max(0.0, left_ms)) or left_ms <= 0:
            return completed + [done for c in connections for done in c.take_completed()]


def _wait(connections: Sequence[ClientConnection], timeout_ms: float) -> bool:
    """Move the bytes that can be moved within the timeout; False if nothing is pending."""
    alive = {c.fileno(): c for c in connections if c.pending}
    waiting = select.poll()
    for fd, connection in alive.items():
        waiting.register(fd, select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
    if not alive:
        return False
    for fd, events in waiting.poll(timeout_ms):
        if events & select.POLLOUT:
            alive[fd].on_writable()
        if events & ~select.POLLOUT and not alive[fd].dead:
            alive[fd].on_readable()
    return True
