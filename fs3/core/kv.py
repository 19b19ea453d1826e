"""The KV cache's names and format: what client and storageserver agree on. Pure.

A value lives in one chunk: owner = the namespace's id, slot = the key's 128-bit BLAKE2b digest. Its
chain follows from the digest and the namespace's chains, so nobody has to be asked where it is. The
chunk carries the key itself, before the value:

    offset size field
    0      4    magic      b"fs3v"
    4      1    format     1
    5      1    flags      0
    6      2    key_bytes
    8      4    value_bytes, little-endian as all numbers here
    12     4    reserved   0
    16          key, then the value

A reader who knows the key knows where the value begins, and a digest that two keys share is a miss,
never somebody else's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

from fs3.core.types import CHUNK_BYTES_MAX, CHUNK_ROOM_BYTES, ChainId, ChunkId

NamespaceId = NewType("NamespaceId", int)

NAMESPACE_FIRST = NamespaceId(1 << 63)  # inode ids stay below
OWNER_BYTE = NAMESPACE_FIRST >> 56  # a chunk id begins with this or more: a value of the KV cache
FORMAT = 1
HEADER_BYTES = 16
KEY_BYTES_MAX = 4096
VALUE_BYTES_MAX = CHUNK_BYTES_MAX
DIGEST_BYTES = 16

_MAGIC = b"fs3v"
_HEADER = struct.Struct("<4sBBHII")
assert HEADER_BYTES + KEY_BYTES_MAX <= CHUNK_ROOM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class KvNamespace:
    """A set of keys with its own limits. The id is never given out again."""

    namespace: NamespaceId
    name: str
    table: int  # the chain table that its chains were taken from
    chains: tuple[ChainId, ...]  # in this order, for ever: a key's chain must not move
    replicas: int
    capacity_bytes: int = 0  # 0: what the disks have
    ttl_s: int = 0  # 0: values do not age
    value_bytes_max: int = VALUE_BYTES_MAX
    uid: int = 0  # the owner
    gid: int = 0


def is_value(chunk: ChunkId) -> bool:
    """Whether a chunk is a value of the KV cache, and not a part of a file."""
    return chunk[0] >= OWNER_BYTE


def digests(keys: Sequence[bytes]) -> bytes:
    """The digests of ``keys``, one behind the other."""
    return b"".join([blake2b(key, digest_size=DIGEST_BYTES).digest() for key in keys])


def slots_and_chains(
    namespace: KvNamespace, keys: Sequence[bytes]
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """The chunk ids (dtype V24) and chains of ``keys``."""
    if len(keys) == 1:
        digest = digests(keys)
        chunk = namespace.namespace.to_bytes(8, "big") + digest
        place = int.from_bytes(digest[:8], "big") % len(namespace.chains)
        return np.frombuffer(chunk, "V24"), np.array(namespace.chains[place : place + 1], np.uint32)
    raw = np.frombuffer(digests(keys), np.uint8).reshape(len(keys), DIGEST_BYTES)
    chunks = np.empty((len(keys), 8 + DIGEST_BYTES), np.uint8)
    chunks[:, :8] = np.frombuffer(namespace.namespace.to_bytes(8, "big"), np.uint8)
    chunks[:, 8:] = raw
    table = np.array(namespace.chains, np.uint32)
    numbers = raw[:, :8].copy().view(">u8")[:, 0]
    return chunks.view("V24")[:, 0], table[(numbers % len(table)).astype(np.intp)]


def header(key: bytes, value_bytes: int) -> bytes:
    """What stands before a value in its chunk, the key included."""
    return _HEADER.pack(_MAGIC, FORMAT, 0, len(key), value_bytes, 0) + key


def value_length(found: bytes | bytearray | memoryview, key: bytes) -> int:
    """The length of the value behind header ``found`` if it is that of ``key``; -1 if not."""
    if len(found) < HEADER_BYTES + len(key):
        return -1
    magic, form, flags, key_bytes, value_bytes, _ = _HEADER.unpack_from(found)
    if magic != _MAGIC or form != FORMAT or flags or key_bytes != len(key):
        return -1
    if found[HEADER_BYTES : HEADER_BYTES + key_bytes] != key:
        return -1
    return int(value_bytes)
