"""The extension: module.c. What its functions mean is said in plain.py."""

from collections.abc import Sequence

from .plain import Buffer, Failure

WAYS: int

def crc32c(buffer: Buffer, crc: int = 0, /) -> int: ...
def block_crcs(buffer: Buffer, block_bytes: int, /) -> bytes: ...
def read_pieces(
    pieces: Buffer,
    buffers: Sequence[memoryview],
    split: bool = False,
    crcs: memoryview | None = None,
    /,
) -> list[Failure]: ...
def plain_lengths(buffers: tuple[object, ...], /) -> bytes | None: ...
def use_way(way: int, /) -> None: ...
