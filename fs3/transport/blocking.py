"""One blocking TCP connection that exchanges frames without bodies, one at a time.

This is what a calling thread uses for control calls. Bulk data travels through
:mod:`fs3.transport.client`, which does not block.

What a failure means is decided here, because only here is known how far a frame got:

* before the last byte of the request was handed to the kernel, the peer cannot have acted on it:
  ``NotSent``, and the caller may try elsewhere;
* afterwards it may have acted: Fs3Error MAYBE_APPLIED.

After either, and after any frame that cannot be trusted, ``closed`` is true: a late reply can
never be taken for that of a later request.
"""

from __future__ import annotations

import select
import socket
import time

from fs3 import frames
from fs3.errors import Code, Fs3Error
from fs3.transport.address import open_socket, resolve

_RECEIVE_BYTES = 64 << 10


class NotSent(Exception):
    """The request did not leave, or not whole: trying again elsewhere is safe."""


class BlockingConnection:
    """Used by one thread at a time."""

    def __init__(self, address: str, deadline_s: float) -> None:
        """Connect before ``deadline_s`` (``time.monotonic``), or raise NotSent."""
        self.address = address
        self._socket = _connect(address, deadline_s)
        self._idle = select.poll()
        self._idle.register(self._socket, select.POLLIN)
        self._buffer = bytearray(_RECEIVE_BYTES)
        self.busy = False  # a round trip is under way

    def __del__(self) -> None:
        # A thread's connection goes with the thread that owned it.
        if hasattr(self, "_socket"):
            self._socket.close()

    @property
    def closed(self) -> bool:
        """True once nothing more can be asked."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def interrupt(self) -> None:
        """Make a call that another thread has in progress fail now."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more: then there is nothing to interrupt

    def is_stale(self) -> bool:
        """True if the peer closed while nothing was asked, or said something unasked."""
        return bool(self._idle.poll(0))

    def round_trip(
        self, method: int, cluster_id: str, request_id: int, head: bytes, deadline_s: float
    ) -> bytes:
        """Send one request and return the head of its reply; an ERROR frame is raised."""
        tag = frames.cluster_tag(cluster_id)
        start = frames.encode(frames.FrameKind.REQUEST, method, tag, request_id, head, 0)
        self.busy = True
        try:
            self._send(start + head, deadline_s)
            header, reply = self._receive(deadline_s)
        except OSError as error:
            self.close()
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise Fs3Error(
                Code.MAYBE_APPLIED, f"{self.address}: {reason}; the request may have been applied"
            ) from error
        except BaseException:  # Ctrl-C, too: the answer would be taken for that of the next request
            self.close()
            raise
        finally:
            self.busy = False
        return self._check(header, reply, cluster_id, request_id)

    def _check(
        self, header: frames.Header, reply: bytes, cluster_id: str, request_id: int
    ) -> bytes:
        if header.kind == frames.FrameKind.ERROR:
            if header.request_id != request_id:
                self.close()  # about the connection, not about this request
            raise frames.decode_error(reply)
        try:
            frames.check_peer(header, cluster_id)
        except Fs3Error:
            self.close()
            raise
        if header.kind != frames.FrameKind.REPLY or header.request_id != request_id:
            self.close()
            raise Fs3Error(
                Code.PROTOCOL,
                f"{self.address}: frame of kind {header.kind} for request {header.request_id};"
                f" a reply to {request_id} expected",
            )
        return reply

    def _send(self, data: bytes, deadline_s: float) -> None:
        try:
            self._socket.settimeout(_left(deadline_s))
            self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise NotSent(f"{self.address}: {error}") from error

    def _receive(self, deadline_s: float) -> tuple[frames.Header, bytes]:
        have = self._receive_until(0, frames.HEADER_BYTES, deadline_s)
        header = frames.decode(self._buffer)
        if header.body_bytes:
            raise Fs3Error(
                Code.PROTOCOL,
                f"{self.address}: control reply with a body of {header.body_bytes} bytes;"
                " none is allowed",
            )
        whole = frames.HEADER_BYTES + header.head_bytes
        if whole > len(self._buffer):
            self._buffer.extend(bytes(whole - len(self._buffer)))
        have = self._receive_until(have, whole, deadline_s)
        if have > whole:
            raise Fs3Error(Code.PROTOCOL, f"{self.address}: {have - whole} bytes after the reply")
        with memoryview(self._buffer) as view:
            head = bytes(view[frames.HEADER_BYTES : whole])
        frames.check_head(header, head)
        if whole > _RECEIVE_BYTES:
            self._buffer = bytearray(_RECEIVE_BYTES)  # an exceptional reply's memory is not kept
        return header, head

    def _receive_until(self, have: int, want: int, deadline_s: float) -> int:
        with memoryview(self._buffer) as view:
            while have < want:
                self._socket.settimeout(_left(deadline_s))
                count = self._socket.recv_into(view[have:])
                if not count:
                    raise ConnectionResetError("peer closed the connection")
                have += count
        return have


def _left(deadline_s: float) -> float:
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _connect(address: str, deadline_s: float) -> socket.socket:
    reason = f"{address}: no address"
    try:
        candidates = resolve(address)
    except Fs3Error as error:
        if error.code is not Code.UNREACHABLE:
            raise
        raise NotSent(error.detail) from error
    for family, target in candidates:
        try:
            made = open_socket(family)
        except Fs3Error as error:
            raise NotSent(f"{address}: {error.detail}") from error
        try:
            made.settimeout(_left(deadline_s))
            made.connect(target)
        except OSError as error:
            made.close()
            reason = f"{address}: {error}"
        else:
            return made
    raise NotSent(reason)
