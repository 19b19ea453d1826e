"""The loops that a C extension does, where a profile showed that Python itself was the bound.

CRC32C, the CRCs of many blocks, reading many pieces of files and verifying them, and the lengths of
many buffers. The extension is optional: without it (no compiler at installation, an unknown CPU)
:mod:`plain` does the same in Python, only slower. FS3_COMPILED=0 in the environment chooses that,
too. Why and what it gained: docs/decisions/0013-compiled-loops.md.
"""

from __future__ import annotations

import os

from . import plain
from .plain import EDGE_BYTES_MAX, IN_MEMORY, PIECE, PIECE_OF_PARTS, Buffer, Failure, ReadPieces

__all__ = [
    "COMPILED",
    "EDGE_BYTES_MAX",
    "IN_MEMORY",
    "PIECE",
    "PIECE_OF_PARTS",
    "WHICH",
    "Buffer",
    "Failure",
    "ReadPieces",
    "block_crcs",
    "crc32c",
    "plain_lengths",
    "read_pieces",
]

COMPILED = False
WHICH = "Python loops, as FS3_COMPILED=0 asks for"
crc32c, block_crcs, plain_lengths = plain.crc32c, plain.block_crcs, plain.plain_lengths
read_pieces: ReadPieces = plain.read_pieces
if os.environ.get("FS3_COMPILED") != "0":
    try:
        import fs3.compiled._loops as _loops
    except ModuleNotFoundError:
        WHICH = "Python loops: the extension is not built"
    except ImportError as _error:  # this CPU, or another Python
        WHICH = f"Python loops: {_error}"
    else:
        COMPILED, WHICH = True, "compiled loops"
        crc32c, block_crcs, read_pieces = _loops.crc32c, _loops.block_crcs, _loops.read_pieces
        plain_lengths = _loops.plain_lengths
