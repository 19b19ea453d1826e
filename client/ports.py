"""Free ports on the loopback that stay free until their daemons have bound them, and afterwards."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from fs3.errors import Code, Fs3Error

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PORTS_BELOW = 12_768  # how far below the kernel's own range we look


class PortReservation:
    """Ports picked at random and held; a context manager that lets them go.

    They lie below the range from which the kernel serves outgoing connections, so that nobody's
    connection sits on a daemon's port while it restarts. A held port is bound but does not listen:
    another reservation's plain bind fails on it, while a daemon, whose socket has SO_REUSEADDR, may
    bind and listen.
    """

    def __init__(self, count: int) -> None:
        self._sockets: list[socket.socket] = []
        try:
            top = int(_RANGE_FILE.read_text().split()[0])
        except FileNotFoundError:
            top = 32_768
        top = max(top, 20_000)
        candidates = random.SystemRandom().sample(range(top - _PORTS_BELOW, top), _PORTS_BELOW)
        for port in candidates:
            if len(self._sockets) == count:
                return
            self._try(port)
        self.release()
        raise Fs3Error(Code.BUSY, f"{count} free ports were not found below {top}")

    def _try(self, port: int) -> None:
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
            return
        # Only now: with it, the bind above would have succeeded beside another reservation's.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets.append(held)

    @property
    def ports(self) -> list[int]:
        """The ports held."""
        return [held.getsockname()[1] for held in self._sockets]

    def release(self) -> None:
        """Let them go."""
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> PortReservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class KeptPorts:
    """The ports of a daemon, which nobody else is given while it is down.

    To be held by whoever starts it again. As above: bound beside its own sockets, never listening.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._held = {port: socket.socket() for port in ports}
        self._bound: set[int] = set()
        for held in self._held.values():
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def keep(self) -> None:
        """To be called when the daemon is down: what is not held yet is, unless somebody has it."""
        for port in self._held.keys() - self._bound:
            try:
                self._held[port].bind(("127.0.0.1", port))
            except OSError:  # the daemon will say so
                continue
            self._bound.add(port)

    def close(self) -> None:
        """Let them go."""
        for held in self._held.values():
            held.close()
