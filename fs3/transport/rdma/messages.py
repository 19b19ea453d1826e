"""What is in a message of a link: a prefix, segments, and a frame or a part of one.

    prefix    24 bytes   little-endian, below
    segments  16 bytes each: first those of the request's body, then those of the reply's room
    frame     header, head and perhaps body, as on TCP (fs3/frames.py)

    offset size field
    0      1    kind            MessageKind
    1      1    flags           MORE, PLACED, GO, ONE_WAY
    2      2    credits         receives that the sender of this has posted anew
    4      2    body_segments   where the request's body lies in the memory of who sends this
    6      2    room_segments   where the reply's body may be written to
    8      8    request_id
    16     8    length_bytes    of READY: how much is to be written

Segments and frame may be longer than a receive: then they go on in the messages that follow, whose
prefix is the same but for credits and MORE. A frame's ``body_bytes`` is its whole body's length,
also where the body is not behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from fs3 import frames
from fs3.errors import Code, Fs3Error

PREFIX_BYTES = 24
INLINE_BYTES = 8 << 10  # a body up to this is behind its head, and copied at both ends
SEGMENTS_MAX = 0xFFFF
SEGMENT = np.dtype([("address", "<u8"), ("length", "<u4"), ("key", "<u4")])
_PREFIX = struct.Struct("<BBHHHQQ")

MORE = 1  # the content goes on in the next message
PLACED = 2  # the reply's body has been written into the request's room
GO = 4  # the reply's body may be written without asking
ONE_WAY = 8  # a request without a reply: PULLED when its body has been read


class MessageKind(IntEnum):
    """What a message is."""

    FRAME = 1
    CREDIT = 2  # nothing but the credits
    READY = 3  # a reply's body of length_bytes waits: may it come?
    GO_ON = 4  # it may
    PULLED = 5  # the body of a request that has no reply has been read
    CANCEL = 6  # the request is given up: let go of its memory
    CANCELLED = 7  # done; no reply follows


class Prefix(NamedTuple):
    """A message's prefix."""

    kind: int
    flags: int = 0
    credits: int = 0
    body_segments: int = 0
    room_segments: int = 0
    request_id: int = 0
    length_bytes: int = 0


class Segment(NamedTuple):
    """Registered memory of the peer."""

    address: int
    length: int
    key: int


def encode_prefix(prefix: Prefix) -> bytes:
    """The first bytes of a message."""
    return _PREFIX.pack(*prefix)


def decode_prefix(data: memoryview) -> Prefix:
    """Fs3Error PROTOCOL if it is none."""
    if len(data) < PREFIX_BYTES:
        raise Fs3Error(
            Code.PROTOCOL, f"a message of {len(data)} bytes; at least {PREFIX_BYTES} are needed"
        )
    prefix = Prefix(*_PREFIX.unpack_from(data))
    if prefix.kind not in MessageKind._value2member_map_:
        raise Fs3Error(Code.PROTOCOL, f"a message of kind {prefix.kind}")
    return prefix


def encode_segments(segments: Sequence[Segment]) -> bytes:
    """As they stand behind the prefix."""
    return np.array(segments, SEGMENT).tobytes() if segments else b""


def decode_segments(
    prefix: Prefix, content: memoryview
) -> tuple[list[Segment], list[Segment], int]:
    """Body and room segments, and where the frame begins. Fs3Error PROTOCOL if they are cut off."""
    count = prefix.body_segments + prefix.room_segments
    size = count * SEGMENT.itemsize
    if size > len(content):
        raise Fs3Error(Code.PROTOCOL, f"{count} segments announced, {len(content)} bytes are there")
    if not count:
        return [], [], 0
    found = [Segment(*one) for one in np.frombuffer(content, SEGMENT, count).tolist()]
    return found[: prefix.body_segments], found[prefix.body_segments :], size


class Piece(NamedTuple):
    """A run of bytes of one part, and where it goes, or comes from, in the peer's memory."""

    part: int
    offset: int
    length: int
    address: int
    key: int


def map_parts(
    lengths: Sequence[int], places: Sequence[int], segments: Sequence[Segment]
) -> list[Piece]:
    """Cut parts so that each piece lies in one segment.

    Part i, of ``lengths[i]`` bytes, belongs ``places[i]`` bytes into the segments taken as one.
    Fs3Error PROTOCOL if that is beyond their end. Places must ascend.
    """
    pieces: list[Piece] = []
    index, start = 0, 0  # the segment, and where it starts in all of them
    for part, (length, place) in enumerate(zip(lengths, places, strict=True)):
        offset = 0
        while offset < length:
            at = place + offset
            while index < len(segments) and at >= start + segments[index].length:
                start += segments[index].length
                index += 1
            if index == len(segments):
                raise Fs3Error(
                    Code.PROTOCOL, f"{place + length} bytes do not fit into a room of {start}"
                )
            segment = segments[index]
            within = at - start
            count = min(length - offset, segment.length - within)
            pieces.append(Piece(part, offset, count, segment.address + within, segment.key))
            offset += count
    return pieces


def split_frame(content: memoryview) -> tuple[frames.Header, bytes, memoryview]:
    """Header, head and what follows of a frame that is here whole. Fs3Error if it is none."""
    if len(content) < frames.HEADER_BYTES:
        raise Fs3Error(Code.PROTOCOL, f"a frame of {len(content)} bytes")
    header = frames.decode(content)
    end = frames.HEADER_BYTES + header.head_bytes
    if len(content) < end:
        raise Fs3Error(
            Code.PROTOCOL, f"a head of {header.head_bytes} bytes announced, {len(content)} came"
        )
    head = bytes(content[frames.HEADER_BYTES : end])
    frames.check_head(header, head)
    return header, head, content[end:]
