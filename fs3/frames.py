"""The frame codec: a header, a head, a body. Sans-IO: bytes in, frames out.

    header  40 bytes   little-endian, below
    head    head_bytes what the method says: a protobuf message, or structured arrays
    body    body_bytes payload, never looked at here

    offset size field
    0      4    magic          b"fs3f"
    4      2    protocol       PROTOCOL_VERSION of the sender
    6      1    kind           1 request, 2 reply, 3 error (head: code u32, then UTF-8 detail)
    7      1    flags          0
    8      4    method         number of the method (proto/common.proto)
    12     4    cluster_tag    crc32c of the cluster id
    16     8    request_id     a reply repeats it
    24     4    head_bytes     at most HEAD_BYTES_MAX
    28     4    reserved       0
    32     4    body_bytes     at most BODY_BYTES_MAX
    36     4    crc            crc32c of the 36 bytes before it, continued over the head

The body has no checksum of its own: its pieces carry theirs, end to end (fs3/dataplane.py).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from fs3.compiled import crc32c
from fs3.errors import Code, Fs3Error, code_of

PROTOCOL_VERSION = 1
HEADER_BYTES = 40
HEAD_BYTES_MAX = 16 << 20
BODY_BYTES_MAX = 256 << 20

_MAGIC = b"fs3f"
_HEADER = struct.Struct("<4sHBBIIQIII")  # all but the crc
_CRC = struct.Struct("<I")
_ERROR = struct.Struct("<I")
_CHECKED_BYTES = HEADER_BYTES - 4

Buffer = bytes | bytearray | memoryview


class FrameKind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3


class Header(NamedTuple):
    """A decoded header. ``crc`` is checked by :func:`check_head`, when the head is there."""

    protocol: int
    kind: int
    method: int
    cluster_tag: int
    request_id: int
    head_bytes: int
    body_bytes: int
    crc: int
    crc_so_far: int


def cluster_tag(cluster_id: str) -> int:
    """The four bytes that stand for a cluster's name in every frame."""
    return crc32c(cluster_id.encode())


def encode(
    kind: FrameKind, method: int, tag: int, request_id: int, head: Buffer, body_bytes: int
) -> bytes:
    """Header of a frame with this head and body length. Send it, then the head, then the body."""
    start = _HEADER.pack(
        _MAGIC, PROTOCOL_VERSION, kind, 0, method, tag, request_id, len(head), 0, body_bytes
    )
    return start + _CRC.pack(crc32c(head, crc32c(start)))


def decode(data: Buffer) -> Header:
    """The header in the first 40 bytes of ``data``.

    Raises Fs3Error PROTOCOL if it is no header of ours, TOO_LARGE if it announces more than is
    allowed. After either the stream has no known frame border: the connection must be closed.
    """
    magic, protocol, kind, _, method, tag, request_id, head_bytes, _, body_bytes = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC:
        hint = "; that is gRPC, which has another port" if _is_grpc(magic) else ""
        raise Fs3Error(Code.PROTOCOL, f"frame starts with {magic!r}, expected {_MAGIC!r}{hint}")
    if head_bytes > HEAD_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE,
            f"frame announces a head of {head_bytes} and a body of {body_bytes} bytes;"
            f" at most {HEAD_BYTES_MAX} and {BODY_BYTES_MAX} are allowed",
        )
    (crc,) = _CRC.unpack_from(data, _CHECKED_BYTES)
    so_far = crc32c(memoryview(data)[:_CHECKED_BYTES])
    return Header(protocol, kind, method, tag, request_id, head_bytes, body_bytes, crc, so_far)


def _is_grpc(magic: bytes) -> bool:
    """Whether HTTP/2 begins so: a client's preface, or a server's SETTINGS (RFC 9113, 3.4)."""
    return magic == b"PRI " or (magic[:2] == b"\0\0" and magic[3:] == b"\x04")


def check_head(header: Header, head: Buffer) -> None:
    """Raises Fs3Error PROTOCOL if header or head were damaged on the way."""
    found = crc32c(head, header.crc_so_far)
    if found != header.crc:
        raise Fs3Error(
            Code.PROTOCOL, f"frame checksum is {found:#010x}, its header says {header.crc:#010x}"
        )


def check_peer(header: Header, cluster_id: str) -> None:
    """Raises Fs3Error if the sender speaks another protocol or belongs to another cluster."""
    if header.protocol != PROTOCOL_VERSION:
        raise Fs3Error(
            Code.PROTOCOL,
            f"frame is of protocol version {header.protocol}; this is version {PROTOCOL_VERSION}",
        )
    if header.cluster_tag != cluster_tag(cluster_id):
        raise Fs3Error(
            Code.WRONG_CLUSTER,
            f"this is cluster {cluster_id!r}, and the frame is for another one; who means this one"
            f" says cluster_id {cluster_id!r} (--cluster-id, FS3_CLUSTER_ID)",
        )


def encode_error(error: Fs3Error) -> bytes:
    """The head of an ERROR frame."""
    return _ERROR.pack(error.code) + error.detail.encode(errors="replace")[:4096]


def decode_error(head: Buffer) -> Fs3Error:
    """The error that an ERROR frame's head carries."""
    if len(head) < _ERROR.size:
        return Fs3Error(Code.PROTOCOL, f"error frame with a head of {len(head)} bytes; at least 4")
    (number,) = _ERROR.unpack_from(head)
    detail = bytes(head[_ERROR.size :]).decode(errors="replace")
    return Fs3Error(code_of(number) or Code.BUG, detail)  # an error that says OK is one of the peer
