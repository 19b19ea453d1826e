"""Addresses as people write them: ``host:port``, ``1.2.3.4:7000``, ``[::1]:7000``.

And of sockets of one machine: ``unix:/PATH``, or ``unix:@NAME`` for an abstract one, which has no
file and is found in its network namespace only.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple, TypeAlias, cast

from fs3.errors import Code, Fs3Error

_InternetAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
UNIX = "unix:"
_UNIX_NAME_BYTES_MAX = 107


class SocketAddress(NamedTuple):
    """What the socket module needs to connect or listen."""

    family: int
    address: _InternetAddress | str


def parse(text: str) -> tuple[str, int]:
    """Host and port of ``text``; Fs3Error INVALID says what is wrong with it."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    wrong = not colon or not host or (":" in host and not bracketed)
    if wrong or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise Fs3Error(
            Code.INVALID,
            f"address {text!r} is not allowed: host:port or [IPv6 address]:port is,"
            " with a port from 0 to 65535",
        )
    return host, int(port)


def render(host: str, port: int) -> str:
    """The inverse of :func:`parse`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(text: str, *, listen: bool = False, numeric: bool = False) -> list[SocketAddress]:
    """Every socket address that ``text`` stands for, in the resolver's order.

    Looking a name up may block, unless only ``numeric`` ones are taken. Fs3Error UNREACHABLE if
    there is none.
    """
    if text.startswith(UNIX):
        return [SocketAddress(socket.AF_UNIX, _unix_name(text))]
    host, port = parse(text)
    flags = (socket.AI_PASSIVE if listen else 0) | (socket.AI_NUMERICHOST if numeric else 0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        raise Fs3Error(Code.UNREACHABLE, f"address {text!r}: {error.strerror}") from error
    return [
        SocketAddress(family, cast(_InternetAddress, address))
        for family, _, _, _, address in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


def _unix_name(text: str) -> str:
    name = text[len(UNIX) :]
    if name[:1] not in ("@", "/") or not 1 < len(name.encode()) <= _UNIX_NAME_BYTES_MAX:
        raise Fs3Error(
            Code.INVALID,
            f"address {text!r} is not allowed: unix:@NAME or unix:/PATH is, of at most"
            f" {_UNIX_NAME_BYTES_MAX} bytes",
        )
    return "\0" + name[1:] if name[0] == "@" else name


def open_socket(family: int) -> socket.socket:
    """A stream socket that does not block, tuned. Fs3Error UNREACHABLE if no descriptor is left."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        made = socket.socket(family, kind)
    except OSError as error:
        raise Fs3Error(Code.UNREACHABLE, f"no socket: {error.strerror}") from error
    tune(made)
    return made


class PeerCredentials(NamedTuple):
    """Who made the other end of a unix socket, as this process's namespaces name them."""

    pid: int
    uid: int
    gid: int


_CREDENTIALS = struct.Struct("iII")  # struct ucred


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """What the kernel vouches for; of a unix socket."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return PeerCredentials(*_CREDENTIALS.unpack(packed))


def tune(connection: socket.socket) -> None:
    """No delay for small frames; a peer that vanished is noticed within about half a minute."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
