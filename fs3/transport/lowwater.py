"""How much of a large body must have come before its receiver is woken.

Whoever is told of every segment is woken, and wakes, five to ten times per megabyte, and each time
sender and receiver disturb each other: on a loopback that costs both of them half as much again. So
while a large body is under way, its socket counts as readable only when a good piece of it, or all
that is left, is there (SO_RCVLOWAT; the kernel lets it count as readable earlier if its own buffers
are full, and when the peer is gone).
"""

from __future__ import annotations

import socket

_BYTES_MAX = 512 << 10
_BYTES_MIN = 64 << 10  # fewer are not worth the call


class LowWater:
    """Of one TCP socket."""

    def __init__(self) -> None:
        self._bytes = 1

    def expect(self, connection: socket.socket, left_bytes: int) -> None:
        """So much of a body is still to come; 0: no body, or nobody knows."""
        large = left_bytes >= _BYTES_MIN or (left_bytes and self._bytes > 1)
        wanted = min(left_bytes, _BYTES_MAX) if large else 1
        if wanted != self._bytes and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            self._bytes = wanted
