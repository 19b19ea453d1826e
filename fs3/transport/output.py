"""What a connection still has to send: frames as lists of parts, gathered by sendmsg.

Sans-policy: it neither watches the socket nor decides when to send. Used by both ends.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeAlias

from fs3 import frames
from fs3.frames import Buffer
from fs3.transport.sources import Source, Window

_BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")
SMALL_BYTES = 4 << 10  # a head up to this is copied behind its header rather than sent by itself
_BYTES_PER_TURN = 4 << 20  # that one connection sends before others have a turn

Part: TypeAlias = memoryview | Source
_BUFFERS = (memoryview, bytes, bytearray)  # what is sent as it stands


def frame_buffers(
    kind: frames.FrameKind,
    method: int,
    tag: int,
    request_id: int,
    head: Buffer,
    body_parts: Sequence[Part],
) -> list[Buffer | Source]:
    """A frame as the parts to send one after the other. Those of memory are of single bytes."""
    body_bytes = sum(map(len, body_parts))
    start = frames.encode(kind, method, tag, request_id, head, body_bytes)
    if len(head) <= SMALL_BYTES:
        return [start + head, *body_parts]
    return [start, head, *body_parts]


class Output:
    """A queue of parts; ``unsent_bytes`` of them are not with the kernel yet."""

    def __init__(self, window: Window | None = None) -> None:
        """``window``: what sources go through; without one there must be none."""
        self.unsent_bytes = 0
        self.queued_bytes = 0  # since the beginning
        self._window = window
        # What is queued; so many are sources, and of the first of those so much is sent.
        self._parts: deque[Buffer | Source] = deque()
        self._sources = 0
        self._source_sent = 0
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()
        self._rights: deque[tuple[int, Sequence[int]]] = deque()  # before which byte they go

    @property
    def has_window(self) -> bool:
        """Sources may be put."""
        return self._window is not None

    def put(
        self,
        parts: Sequence[Buffer | Source],
        on_sent: Callable[[], None] | None,
        rights: Sequence[int] = (),
    ) -> None:
        """Queue a frame. ``on_sent`` is called exactly once: when all is sent, or will never be.

        ``rights``: descriptors that travel with its first byte (unix sockets only).
        """
        if rights:
            self._rights.append((self.queued_bytes, rights))
        self._parts.extend(parts)
        length = sum(map(len, parts))
        self.unsent_bytes += length
        self.queued_bytes += length
        for part in parts:
            if not isinstance(part, _BUFFERS):
                assert len(part), "a source of nothing would never end"
                self._sources += 1
        if on_sent is not None:
            self._marks.append((self.queued_bytes, on_sent))

    def send(self, connection: socket.socket) -> None:
        """As much as the kernel takes now, but no more than about one turn's share.

        Raises what sendmsg raises, BlockingIOError excepted, and what sources raise.
        """
        begun_bytes = self.unsent_bytes
        while self.unsent_bytes and begun_bytes - self.unsent_bytes < _BYTES_PER_TURN:
            buffers = self._gathered() if self._sources else self._first_buffers()
            try:
                if self._rights:
                    sent = self._send_rights(connection, buffers)
                else:
                    sent = connection.sendmsg(buffers)
            except BlockingIOError:
                return
            self._drop(sent)

    def _first_buffers(self) -> Sequence[Buffer]:
        """No more than one call takes."""
        if len(self._parts) <= _BUFFERS_PER_CALL:
            return self._parts  # type: ignore[return-value]
        return list(islice(self._parts, _BUFFERS_PER_CALL))  # type: ignore[arg-type]

    def _gathered(self) -> list[Buffer]:
        """Up to the first source, and a window full of that."""
        gathered: list[Buffer] = []
        for part in islice(self._parts, _BUFFERS_PER_CALL):
            if not isinstance(part, _BUFFERS):
                assert self._window is not None, "who sends sources has a window"
                gathered.append(self._window.of(part, self._source_sent))
                break
            gathered.append(part)
        return gathered

    def _send_rights(self, connection: socket.socket, buffers: Sequence[Buffer]) -> int:
        """Descriptors with the buffer that they belong to, or what comes before it."""
        place_bytes, rights = self._rights[0]
        left_bytes = place_bytes - (self.queued_bytes - self.unsent_bytes)
        if not left_bytes:
            first = next(buffer for buffer in buffers if len(buffer))  # nothing carries nothing
            packed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", rights))
            sent = connection.sendmsg([first], [packed])
            self._rights.popleft()
            return sent
        before: list[Buffer] = []
        for buffer in buffers:
            if left_bytes <= 0:
                break
            before.append(memoryview(buffer)[:left_bytes])
            left_bytes -= len(buffer)
        return connection.sendmsg(before)

    def abandon(self) -> None:
        """Nothing more will be sent: let go of everything."""
        if self._sources and self._window is not None:
            for part in self._parts:
                if not isinstance(part, _BUFFERS):
                    self._window.forget(part)
        self._parts.clear()
        self._rights.clear()
        self.unsent_bytes = self._sources = self._source_sent = 0
        marks, self._marks = self._marks, deque()
        for _, on_sent in marks:
            on_sent()

    def _drop(self, sent: int) -> None:
        self.unsent_bytes -= sent
        parts = self._parts
        if not self.unsent_bytes and not self._sources:
            parts.clear()
        while sent and parts:
            first = parts.popleft()
            if not isinstance(first, _BUFFERS):
                left = len(first) - self._source_sent
                if left > sent:
                    self._source_sent += sent
                    parts.appendleft(first)
                    break
                self._end_source(first)
            else:
                left = len(first)
                if left > sent:
                    parts.appendleft(memoryview(first)[sent:])
                    break
            sent -= left
        done_bytes = self.queued_bytes - self.unsent_bytes
        while self._marks and self._marks[0][0] <= done_bytes:
            self._marks.popleft()[1]()

    def _end_source(self, source: Source) -> None:
        self._sources -= 1
        self._source_sent = 0
        if self._window is not None:
            self._window.forget(source)
