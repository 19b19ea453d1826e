"""What a connection still has to send: frames as lists of buffers, gathered by sendmsg.

Sans-policy: it neither watches the socket nor decides when to send. Used by both ends.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from fs3 import frames
from fs3.frames import Buffer

_BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")
SMALL_BYTES = 4 << 10  # a head up to this is copied behind its header rather than sent by itself


def frame_buffers(
    kind: frames.FrameKind,
    method: int,
    tag: int,
    request_id: int,
    head: Buffer,
    body_parts: Sequence[memoryview],
) -> list[Buffer]:
    """A frame as the buffers to send one after the other. The parts are of single bytes."""
    body_bytes = sum(map(len, body_parts))
    start = frames.encode(kind, method, tag, request_id, head, body_bytes)
    if len(head) <= SMALL_BYTES:
        return [start + head, *body_parts]
    return [start, head, *body_parts]


class Output:
    """A queue of buffers; ``unsent_bytes`` of them are not with the kernel yet."""

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self._buffers: deque[Buffer] = deque()
        self._queued_bytes = 0  # since the beginning
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()
        self._rights: deque[tuple[int, Sequence[int]]] = deque()  # before which byte they go

    def put(
        self,
        buffers: Sequence[Buffer],
        on_sent: Callable[[], None] | None,
        rights: Sequence[int] = (),
    ) -> None:
        """Queue a frame. ``on_sent`` is called exactly once: when all is sent, or will never be.

        ``rights``: descriptors that travel with its first byte (unix sockets only).
        """
        if rights:
            self._rights.append((self._queued_bytes, rights))
        self._buffers.extend(buffers)
        length = sum(map(len, buffers))
        self.unsent_bytes += length
        self._queued_bytes += length
        if on_sent is not None:
            self._marks.append((self._queued_bytes, on_sent))

    def send(self, connection: socket.socket) -> None:
        """As much as the kernel takes now. Raises what sendmsg raises, BlockingIOError excepted."""
        while self.unsent_bytes:
            try:
                # More buffers than one call takes go in the next.
                sent = (
                    self._send_rights(connection)
                    if self._rights
                    else connection.sendmsg(
                        self._buffers
                        if len(self._buffers) <= _BUFFERS_PER_CALL
                        else list(islice(self._buffers, _BUFFERS_PER_CALL))
                    )
                )
            except BlockingIOError:
                return
            self._drop(sent)

    def _send_rights(self, connection: socket.socket) -> int:
        """Descriptors with the buffer that they belong to, or what comes before it."""
        place_bytes, rights = self._rights[0]
        left_bytes = place_bytes - (self._queued_bytes - self.unsent_bytes)
        if not left_bytes:
            while not len(self._buffers[0]):  # what has no byte cannot carry them
                self._buffers.popleft()
            packed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", rights))
            sent = connection.sendmsg([self._buffers[0]], [packed])
            self._rights.popleft()
            return sent
        before: list[Buffer] = []
        for buffer in islice(self._buffers, _BUFFERS_PER_CALL):
            if not left_bytes:
                break
            before.append(buffer)
            left_bytes -= len(buffer)
        return connection.sendmsg(before)

    def abandon(self) -> None:
        """Nothing more will be sent: let go of everything."""
        self._buffers.clear()
        self._rights.clear()
        self.unsent_bytes = 0
        marks, self._marks = self._marks, deque()
        for _, on_sent in marks:
            on_sent()

    def _drop(self, sent: int) -> None:
        self.unsent_bytes -= sent
        buffers = self._buffers
        if not self.unsent_bytes:
            buffers.clear()
        while sent and buffers:
            first = buffers.popleft()
            if len(first) > sent:
                buffers.appendleft(memoryview(first)[sent:])
                break
            sent -= len(first)
        done_bytes = self._queued_bytes - self.unsent_bytes
        while self._marks and self._marks[0][0] <= done_bytes:
            self._marks.popleft()[1]()
