"""Messages between chain neighbours on the wire: many in one PEER frame (docs/formats.md).

A frame's head is records one after another, each ``RECORD`` and then what its type adds; the body
is the payload of the Forwards that carry data, in order.

    Forward   RECORD, flags SYNC, TAG          payload: ``length`` bytes (WRITE and REPLACE);
                                               how far ``settled`` is behind ``number`` in code
    Ack       RECORD, then the detail: u16 length, UTF-8
    Query, Answer, SyncDone, Join, Welcome     RECORD
    SyncRequest   RECORD                       round in ``version``, limit, done and total
    SyncPage      RECORD, then PAGE_ROW*       flag LAST
    SyncChannels  RECORD, then CHANNEL_ROW*
    Used          RECORD, then chunk ids       how many in ``number``
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag, UpdateKind
from fs3.core.codes import Code, code_of
from fs3.core.messages import (
    Ack,
    Answer,
    Forward,
    Join,
    Message,
    Query,
    Route,
    SyncChannels,
    SyncDone,
    SyncPage,
    SyncRequest,
    Used,
    Welcome,
)
from fs3.core.types import ChainId, ChainVersion, ChunkId, ChunkVersion, TargetId
from fs3.errors import Fs3Error

# type, kind, flags, 0, source, destination, chain, chain version, chunk, version, number,
# offset, length, checksum, code, tag: client, channel, sequence
_RECORD = struct.Struct("<BBBxIIII24sQQIIIIQIQ")
_PAGE_ROW = struct.Struct("<24sQIIIQIIB")
_CHANNEL_ROW = struct.Struct("<QIQ24sQII?")
_CHUNK_ROW = struct.Struct("24s")
_COUNT = struct.Struct("<H")

_FORWARD, _ACK, _QUERY, _ANSWER, _REQUEST, _PAGE, _CHANNELS, _DONE, _JOIN, _WELCOME, _USED = range(
    1, 12
)
_SYNC, _TAG, _LAST = 1, 2, 4
_NO_CHUNK = bytes(24)
_WITH_PAYLOAD = (UpdateKind.WRITE, UpdateKind.REPLACE)


def encode(message: Message) -> bytes:
    """The record of one message. A Forward's data is not in it: it goes into the frame's body."""
    match message:
        case Forward():
            return _encode_forward(message)
        case Ack():
            record = _pack(
                _ACK,
                message.route,
                number=message.link_sequence,
                chunk=message.chunk,
                version=message.version,
                length=message.length,
                checksum=message.checksum,
                code=message.code,
            )
            detail = message.detail.encode()[:1024]
            return record + _COUNT.pack(len(detail)) + detail
        case Query():
            return _pack(_QUERY, message.route, chunk=message.chunk, number=message.number)
        case Answer():
            return _pack(
                _ANSWER,
                message.route,
                chunk=message.chunk,
                number=message.number,
                version=message.version,
            )
        case SyncRequest():
            return _pack(
                _REQUEST,
                message.route,
                chunk=message.after,
                version=message.round,
                offset=message.limit,
                number=message.done,
                sequence=message.total,
                flags=_LAST if message.after == b"" else 0,
            )
        case SyncPage():
            return _encode_page(message)
        case SyncChannels():
            return _encode_channels(message)
        case SyncDone():
            return _pack(_DONE, message.route)
        case Join():
            return _pack(_JOIN, message.route)
        case Welcome():
            return _pack(_WELCOME, message.route)
        case Used():
            head = _pack(_USED, message.route, number=len(message.chunks))
            return head + b"".join(message.chunks)


def _pack(
    kind: int,
    route: Route,
    *,
    update: int = 0,
    flags: int = 0,
    chunk: bytes = _NO_CHUNK,
    version: int = 0,
    number: int = 0,
    offset: int = 0,
    length: int = 0,
    checksum: int = 0,
    code: int = 0,
    client: int = 0,
    channel: int = 0,
    sequence: int = 0,
) -> bytes:
    return _RECORD.pack(
        kind,
        update,
        flags,
        *route,
        chunk,
        version,
        number,
        offset,
        length,
        checksum,
        code,
        client,
        channel,
        sequence,
    )


def _encode_forward(message: Forward) -> bytes:
    tag = message.tag
    client, channel, sequence = tag if tag is not None else (0, 0, 0)
    return _pack(
        _FORWARD,
        message.route,
        update=message.kind,
        flags=(_SYNC if message.sync else 0) | (_TAG if tag is not None else 0),
        chunk=message.chunk,
        version=message.version,
        number=message.link_sequence,
        code=message.link_sequence - message.settled,
        offset=message.offset,
        length=message.length,
        checksum=message.checksum,
        client=client,
        channel=channel,
        sequence=sequence,
    )


def _encode_page(message: SyncPage) -> bytes:
    flags = (_LAST if message.last else 0) | (_SYNC if message.after == b"" else 0)
    head = _pack(
        _PAGE,
        message.route,
        flags=flags,
        chunk=message.after,
        version=message.round,
        number=len(message.records),
    )
    rows = [_PAGE_ROW.pack(chunk, *meta) for chunk, meta in message.records]
    return head + b"".join(rows)


def _encode_channels(message: SyncChannels) -> bytes:
    head = _pack(
        _CHANNELS,
        message.route,
        number=len(message.channels),
        client=message.after[0],
        channel=message.after[1],
    )
    rows = [_CHANNEL_ROW.pack(client, channel, *rec) for client, channel, rec in message.channels]
    return head + b"".join(rows)


def payload_bytes(message: Message) -> int:
    """How many bytes of the frame's body belong to ``message``."""
    if isinstance(message, Forward) and message.kind in _WITH_PAYLOAD:
        return message.length
    return 0


def decode(head: memoryview) -> Iterator[Message]:
    """The messages of a frame's head; Forwards without their data.

    Raises Fs3Error PROTOCOL if the head is cut short or of an unknown kind.
    """
    at = 0
    while at < len(head):
        try:
            fields = _RECORD.unpack_from(head, at)
            message, at = _decode_one(fields, head, at + _RECORD.size)
        except (struct.error, ValueError) as error:
            raise Fs3Error(Code.PROTOCOL, f"a peer's message at byte {at}: {error}") from error
        yield message


def _decode_one(fields: Sequence[Any], head: memoryview, at: int) -> tuple[Message, int]:
    kind, update, flags, source, destination, chain, chain_version = fields[:7]
    chunk, version, number, offset, length, checksum, code = fields[7:14]
    client, channel, sequence = fields[14:]
    route = Route(
        TargetId(source), TargetId(destination), ChainId(chain), ChainVersion(chain_version)
    )
    name, ver = ChunkId(chunk), ChunkVersion(version)
    if kind == _FORWARD:
        tag = Tag(client, channel, sequence) if flags & _TAG else None
        what = UpdateKind(update)
        sync = bool(flags & _SYNC)
        return Forward(
            route, number, number - code, name, what, ver, offset, length, checksum, tag, sync, None
        ), at
    if kind == _ACK:
        (size,) = _COUNT.unpack_from(head, at)
        detail = bytes(head[at + 2 : at + 2 + size]).decode(errors="replace")
        return Ack(route, number, name, ver, code_of(code), length, checksum, detail), at + 2 + size
    if kind == _QUERY:
        return Query(route, name, number), at
    if kind == _ANSWER:
        return Answer(route, name, number, ver), at
    if kind == _REQUEST:
        after = b"" if flags & _LAST else chunk
        return SyncRequest(route, version, after, offset, number, sequence), at
    if kind == _PAGE:
        after = b"" if flags & _SYNC else chunk
        rows, at = _rows(_PAGE_ROW, number, head, at)
        records = tuple((ChunkId(row[0]), _meta(row[1:])) for row in rows)
        return SyncPage(route, version, after, records, bool(flags & _LAST)), at
    if kind == _CHANNELS:
        rows, at = _rows(_CHANNEL_ROW, number, head, at)
        channels = tuple((row[0], row[1], ChannelRecord(*row[2:])) for row in rows)
        return SyncChannels(route, (client, channel), channels), at
    if kind == _DONE:
        return SyncDone(route), at
    if kind == _JOIN:
        return Join(route), at
    if kind == _WELCOME:
        return Welcome(route), at
    if kind == _USED:
        rows, at = _rows(_CHUNK_ROW, number, head, at)
        return Used(route, tuple(ChunkId(row[0]) for row in rows)), at
    raise ValueError(f"type {kind} is unknown")


def _rows(
    row: struct.Struct, count: int, head: memoryview, at: int
) -> tuple[list[tuple[Any, ...]], int]:
    end = at + count * row.size
    if end > len(head):
        raise ValueError(f"{count} rows announced, {len(head) - at} bytes left")
    return list(row.iter_unpack(head[at:end])), end


def _meta(row: Sequence[Any]) -> ChunkMeta:
    return ChunkMeta._make((*row[:-1], bool(row[-1])))
