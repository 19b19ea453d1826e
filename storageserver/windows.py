"""The memory that clients of this machine put into what they write: see fs3/transport/window.py.

One window for a connection, made when it asks, gone with it. Reactor thread only.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from fs3 import dataplane
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.transport.connection import Connection
from fs3.transport.tcp import Caller, FrameServer, Request
from fs3.transport.window import PREFIX, REPLY, SLOT_BYTES, SLOTS

from .chunkstore.shared import sealed_memory
from .jobs import BufferOwner

WINDOWS_MAX = 32  # 36 MiB each, if all of it was ever used
_BYTES = SLOT_BYTES * SLOTS
_log = get_logger(__name__)

Write = Callable[[Caller, Request, BufferOwner | None], None]


class _Slot:
    """What a client has put into a slot, as the body of a request."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def release(self) -> None:
        """The client knows by the answer that the slot is free."""


class Windows:
    """Of one port."""

    def __init__(self, server: FrameServer, write: Write) -> None:
        """``write`` takes a WRITE_BATCH with its body."""
        self._write = write
        self._windows: dict[Connection, memoryview] = {}
        server.take([dataplane.WINDOW], self._on_window)
        server.take([dataplane.WRITE_WINDOW], self._on_write)

    def __len__(self) -> int:
        return len(self._windows)

    def _on_window(self, connection: Caller, request: Request) -> None:
        assert isinstance(connection, Connection), "taken from the unix socket's server only"
        if request.body is not None or request.head or connection in self._windows:
            connection.fail(request, Fs3Error(Code.PROTOCOL, "a WINDOW is asked for once, plainly"))
            return
        if len(self._windows) >= WINDOWS_MAX:
            detail = f"{WINDOWS_MAX} windows are open; no more are allowed here"
            connection.fail(request, Fs3Error(Code.BUSY, detail))
            return
        try:
            descriptor, memory = sealed_memory("fs3-window", _BYTES, others_write=True)
        except OSError as error:
            _log.warning("no_shared_memory", reason=str(error))
            connection.fail(request, Fs3Error(Code.BUSY, f"no memory for a window: {error}"))
            return
        self._windows[connection] = memory
        connection.closers.append(lambda: self._forget(connection))
        connection.reply(
            request.request_id,
            request.method,
            REPLY.pack(SLOT_BYTES, SLOTS),
            on_sent=lambda: os.close(descriptor),
            rights=[descriptor],
        )

    def _forget(self, connection: Connection) -> None:
        self._windows.pop(connection, None)

    def _on_write(self, connection: Caller, request: Request) -> None:
        """A WRITE_BATCH whose body lies in a slot."""
        try:
            body = BufferOwner(_Slot(self._slot_of(connection, request)))
            self._write(connection, request._replace(head=request.head[PREFIX.size :]), body)
        except Fs3Error as error:
            connection.fail(request, error)

    def _slot_of(self, connection: Caller, request: Request) -> memoryview:
        if request.body is not None:
            request.body.release()
            raise Fs3Error(Code.PROTOCOL, "a WRITE_WINDOW has no body")
        memory = self._windows.get(connection)  # type: ignore[call-overload]
        if memory is None or len(request.head) < PREFIX.size:
            raise Fs3Error(Code.PROTOCOL, f"a WRITE_WINDOW of {len(request.head)} bytes, no window")
        slot, length = PREFIX.unpack_from(request.head)
        if slot >= SLOTS or length > SLOT_BYTES:
            what = f"{length} bytes in slot {slot}: {SLOTS} slots of {SLOT_BYTES} are there"
            raise Fs3Error(Code.PROTOCOL, what)
        view: memoryview = memory[slot * SLOT_BYTES : slot * SLOT_BYTES + length]
        return view
