"""What bounds everything: copying memory, and a bare loopback TCP connection."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_WANT = struct.Struct("<qq")  # bytes to send back, bytes that follow
_SEND = 1 << 20


class BareTcp:
    """Bytes to and from another process over loopback TCP, in memory that was touched before."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fetch(self, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers``."""
        total = sum(map(len, buffers))
        self._connection.sendall(_WANT.pack(total, 0))
        for buffer in buffers:
            _receive(self._connection, buffer)

    def push(self, buffers: Sequence[memoryview]) -> None:
        """Send ``buffers``; returns when they have arrived."""
        self._connection.sendall(_WANT.pack(1, sum(map(len, buffers))))
        for buffer in buffers:
            self._connection.sendall(buffer)
        _receive(self._connection, memoryview(bytearray(1)))


@contextmanager
def bare_tcp(bytes_max: int) -> Iterator[BareTcp]:
    """A process at the other end, which ends with the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        _serve(listener, bytes_max)
    with listener, socket.create_connection(listener.getsockname()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            yield BareTcp(connection)
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            os.waitpid(child, 0)


def _serve(listener: socket.socket, bytes_max: int) -> None:
    """In the child: it never returns."""
    status = 1
    try:
        memory = memoryview(bytearray(os.urandom(4096) * -(-bytes_max // 4096)))
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = memoryview(bytearray(_WANT.size))
        while _receive(connection, head):
            wanted, coming = _WANT.unpack(head)
            _receive(connection, memory[:coming])
            for start in range(0, wanted, _SEND):
                connection.sendall(memory[start : min(start + _SEND, wanted)])
        status = 0
    finally:
        os._exit(status)


def _receive(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill ``buffer``; False at the end of the stream."""
    while buffer:
        count = connection.recv_into(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True
