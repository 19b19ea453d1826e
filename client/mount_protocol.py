"""What a mount offers to programs that go past it for the bytes of its files (client/ring).

- The attribute ``user.fs3.mount`` of every file and directory says, as JSON, which cluster it is:
  ``{"addresses": ["host:port", ...], "cluster_id": "..."}``. It is not stored, listed or settable.
  The answer to ATTACH says it too, and so needs no permission but the descriptor.
- ``ATTACH``, an ioctl on an open file: its bytes are going to be read and written past the mount.
  What the mount had gathered of it is sent first, and from now on nothing of it is gathered.
- ``WROTE``: bytes were written past the mount. From its answer on reads through the mount see them,
  and the next flush, fsync or close of the file settles its length and syncs its chunks, as if
  they had been written through the mount.
- ``DETACH``: an ATTACH is over. So it is when the file is closed.

All are answered by the process behind the mount; only its direct front has ioctls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from struct import Struct, error
from typing import NamedTuple

from fs3.errors import Code, Fs3Error

MOUNT_ATTRIBUTE = "user.fs3.mount"
RUNS_MAX = 254  # of chunks, in one WROTE
CHUNKS_MAX = 1 << 16  # in one WROTE
_ANSWER_BYTES = 4096

_ATTACHED = Struct("=QQQI4x")
_WROTE = Struct("=QQQI4x")
_RUN = Struct("=QQ")
_TRIMMED = Struct("=Q")
_READS, _WRITES = 2, 1  # of _IOC in <asm-generic/ioctl.h>, by the program


def _ioctl(direction: int, size: int, number: int) -> int:
    return direction << 30 | size << 16 | 0xF3 << 8 | number


ATTACH = _ioctl(_READS, _ANSWER_BYTES, 1)
WROTE = _ioctl(_READS | _WRITES, _ANSWER_BYTES, 2)
DETACH = _ioctl(0, 0, 3)


class Attached(NamedTuple):
    """The answer to ATTACH."""

    inode: int
    length_bytes: int
    trimmed_version: int  # for the next WROTE; see OpenInode.trimmed_version
    description: bytes

    def encode(self) -> bytes:
        """As the program gets it; as much of the description as there is room for."""
        numbers = _ATTACHED.pack(*self[:3], len(self.description))
        return (numbers + self.description).ljust(_ANSWER_BYTES, b"\0")

    @staticmethod
    def decode(data: bytes | bytearray) -> Attached:
        """What :meth:`encode` made."""
        inode, length_bytes, version, size = _ATTACHED.unpack_from(data)
        description = bytes(data[_ATTACHED.size : _ATTACHED.size + size])
        return Attached(inode, length_bytes, version, description)


def answer_room() -> bytearray:
    """Where the answer to ATTACH goes."""
    return bytearray(_ANSWER_BYTES)


class Wrote(NamedTuple):
    """The argument of WROTE: chunks that were written, and how far; 0: not beyond the end."""

    inode: int  # of which the program believes that it is
    end: int
    trimmed_version: int  # as answered before the first byte left
    runs: Sequence[tuple[int, int]]  # first chunk and how many, in order

    def encode(self) -> bytearray:
        """At most RUNS_MAX runs; the answer comes in the same memory."""
        data = bytearray(_ANSWER_BYTES)
        _WROTE.pack_into(data, 0, self.inode, self.end, self.trimmed_version, len(self.runs))
        for place, run in enumerate(self.runs):
            _RUN.pack_into(data, _WROTE.size + place * _RUN.size, *run)
        return data

    @staticmethod
    def decode(data: bytes) -> Wrote:
        """Fs3Error INVALID if it makes no sense."""
        try:
            inode, end, trimmed_version, count = _WROTE.unpack_from(data)
            runs = [_RUN.unpack_from(data, _WROTE.size + i * _RUN.size) for i in range(count)]
        except error as reason:
            raise Fs3Error(Code.INVALID, f"WROTE of {len(data)} bytes: {reason}") from reason
        chunks = sum(count for _, count in runs)
        if chunks > CHUNKS_MAX:
            raise Fs3Error(
                Code.INVALID, f"WROTE of {chunks} chunks; at most {CHUNKS_MAX} are allowed"
            )
        return Wrote(inode, end, trimmed_version, runs)


def encode_trimmed(version: int) -> bytes:
    """The answer to WROTE: for the next one."""
    return _TRIMMED.pack(version).ljust(_ANSWER_BYTES, b"\0")


def decode_trimmed(data: bytes | bytearray) -> int:
    """What :func:`encode_trimmed` made."""
    version: int = _TRIMMED.unpack_from(data)[0]
    return version


def describe(addresses: Sequence[str], cluster_id: str) -> bytes:
    """The value of MOUNT_ATTRIBUTE."""
    return json.dumps({"addresses": list(addresses), "cluster_id": cluster_id}).encode()


def decode_description(value: bytes) -> tuple[tuple[str, ...], str]:
    """What :func:`describe` made."""
    told = json.loads(value)
    return tuple(told["addresses"]), told["cluster_id"]
