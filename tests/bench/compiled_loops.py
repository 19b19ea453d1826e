"""Compiled loops beside those in Python: ``python tests/bench/compiled_loops.py [--json FILE]``.

One process, no cluster. Every line is measured in each round, and told in microseconds, wall time,
the median of the rounds; beside it its ratio to the line it is compared with, round by round. The
helper thread needs a second core that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c as package

from fs3.compiled import PIECE, plain

try:
    from fs3.compiled import _loops
except ImportError as error:
    raise SystemExit(f"there is nothing to measure: {error}") from None

MIB, BLOCK = 1 << 20, 16 << 10
FILE_MIB, DEPTH, FILES, FILE_BYTES, PIECES, PIECE_BYTES = 64, 8, 1000, 64 << 10, 256, 4096
ROUNDS = 5


def checksum_lines() -> dict[str, tuple[Callable[[], object], int, str]]:
    """Name: what to do, how often, and the line it is compared with."""
    lines: dict[str, tuple[Callable[[], object], int, str]] = {}
    content = memoryview(bytearray(os.urandom(MIB)))
    for name, size in (("36 bytes", 36), ("4 KiB", 4096), ("16 KiB", BLOCK), ("1 MiB", MIB)):
        part, times = content[:size], 50 if size == MIB else 2000
        base = f"crc32c package, {name}"
        lines[base] = lambda part=part: package(part), times, base
        for way in range(1, _loops.WAYS + 1):

            def run(part: memoryview = part, way: int = way) -> object:
                _loops.use_way(way)
                return _loops.crc32c(part)

            lines[f"compiled, way {way}, {name}"] = run, times, base
    base = "CRCs of 64 blocks, Python"
    lines[base] = lambda: plain.block_crcs(content, BLOCK), 20, base
    lines["CRCs of 64 blocks, compiled"] = lambda: _loops.block_crcs(content, BLOCK), 20, base
    return lines


def large_lines(folder: Path) -> dict[str, tuple[Callable[[], object], int, str]]:
    """Reads of 1 MiB of one file, ``DEPTH`` per call."""
    content = os.urandom(FILE_MIB * MIB)
    (folder / "large").write_bytes(content)
    file = os.open(folder / "large", os.O_RDONLY)
    buffers = [memoryview(bytearray(os.urandom(MIB))) for _ in range(DEPTH)]
    calls = [
        b"".join(
            PIECE.pack(file, package(content[at : at + MIB]), at, 0, MIB, 0)
            for at in range(first, first + DEPTH * MIB, MIB)
        )
        for first in range(0, len(content), DEPTH * MIB)
    ]

    def bare() -> None:
        for at in range(FILE_MIB):
            os.preadv(file, (buffers[at % DEPTH],), at * MIB)

    return read_lines("64 x 1 MiB", bare, calls, buffers)


def small_lines(folder: Path) -> dict[str, tuple[Callable[[], object], int, str]]:
    """Random 4 KiB pieces of many files, each verified by the 16 KiB around it."""
    chance = random.Random(3)
    files, contents = [], []
    for number in range(FILES):
        content = os.urandom(FILE_BYTES)
        (folder / f"{number}").write_bytes(content)
        files.append(os.open(folder / f"{number}", os.O_RDONLY))
        contents.append(content)
    buffers = [memoryview(bytearray(PIECE_BYTES)) for _ in range(PIECES)]
    wanted = [
        (chance.randrange(FILES), chance.randrange(FILE_BYTES // PIECE_BYTES) * PIECE_BYTES)
        for _ in range(PIECES)
    ]
    records = []
    for number, offset in wanted:
        start, before = offset - offset % BLOCK, offset % BLOCK
        crc = package(contents[number][start : start + BLOCK])
        after = BLOCK - before - PIECE_BYTES
        records.append(PIECE.pack(files[number], crc, start, before, PIECE_BYTES, after))

    def bare() -> None:
        for (number, offset), buffer in zip(wanted, buffers, strict=True):
            os.preadv(files[number], (buffer,), offset)

    return read_lines("256 x 4 KiB", bare, [b"".join(records)], buffers)


def read_lines(
    name: str, bare: Callable[[], None], calls: list[bytes], buffers: list[memoryview]
) -> dict[str, tuple[Callable[[], object], int, str]]:
    """A bare loop of preadv, and the same bytes read and verified in three ways."""

    def reader(read_pieces: Callable[..., object], *arguments: object) -> Callable[[], None]:
        def read() -> None:
            for call in calls:
                assert read_pieces(call, buffers, *arguments) == []

        return read

    base = f"{name}, bare preadv"
    return {
        base: (bare, 5, base),
        f"{name}, verified, Python": (reader(plain.read_pieces), 5, base),
        f"{name}, verified, compiled": (reader(_loops.read_pieces), 5, base),
        f"{name}, verified, compiled, two threads": (reader(_loops.read_pieces, True), 5, base),
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = checksum_lines() | large_lines(Path(folder)) | small_lines(Path(folder))
        rounds: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(options.rounds + 1):
            for name, (work, times, _) in lines.items():
                begun_s = time.perf_counter()
                for _ in range(times):
                    work()
                rounds[name].append((time.perf_counter() - begun_s) / times * 1e6)
    told = {}
    for name, (_, _, base) in lines.items():
        found, limits = rounds[name][1:], rounds[base][1:]  # the first warmed up
        told[name] = {
            "us": round(statistics.median(found), 3),
            "ratio": round(statistics.median(f / b for f, b in zip(found, limits, strict=True)), 3),
        }
        print(f"{name:45} {told[name]['us']:10.2f} us  {told[name]['ratio']:6.2f} x")
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
