"""Local reads beside bare preadv: ``python tests/bench/local_reads.py [--json FILE]``.

A cluster on this machine, three replicas. Each line is measured in the same round as its limit, and
the medians of the rounds are told: wall time and this process's CPU time, per MiB or per batch;
beside them the best round, which other programs disturbed least.
The limit of the 1 MiB reads is preadv of the data file that holds the chunks, with the same
buffers; that of the batches a plain loop of preadv over 1,000 files of the same size. As many
pieces are also read one at a time through a mount, with O_DIRECT.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fs3.client import mounts
from fs3.client.api import Client, connect
from fs3.client.file import File
from fs3.client.local_cluster import LocalCluster

MIB = 1 << 20
DEPTH, BIG_MIB = 8, 256
FILES, FILE_BYTES, PIECES, PIECE_BYTES, BATCHES = 1000, 64 << 10, 256, 4096, 20
ROUNDS = 5


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Microseconds per unit that ``work`` did: of wall time, of CPU time."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    count = work()
    return (
        (time.perf_counter() - wall_s) / count * 1e6,
        (time.process_time() - cpu_s) / count * 1e6,
    )


class Big:
    """1 MiB reads of one file, ``DEPTH`` in a batch, and one by one."""

    def __init__(self, client: Client, cluster: Path) -> None:
        client.write("/big", os.urandom(BIG_MIB * MIB))
        self._client = client
        self._file = client.open_file("/big")
        self._buffers = [memoryview(bytearray(os.urandom(MIB))) for _ in range(DEPTH)]
        data_files = sorted(cluster.rglob("blocks.04"), key=lambda path: path.stat().st_size)
        self._fd = os.open(data_files[-1], os.O_RDONLY)

    def bare(self) -> int:
        count = min(BIG_MIB, os.fstat(self._fd).st_size // MIB)
        for at in range(count):
            os.preadv(self._fd, (self._buffers[at % DEPTH],), at * MIB)
        return count

    def deep(self) -> int:
        for at in range(0, BIG_MIB, DEPTH):
            self._client.read_batch(
                [(self._file, (at + i) * MIB, self._buffers[i]) for i in range(DEPTH)]
            )
        return BIG_MIB

    def single(self) -> int:
        for at in range(BIG_MIB):
            self._client.read_batch([(self._file, at * MIB, self._buffers[at % DEPTH])])
        return BIG_MIB


class Small:
    """Batches of random 4 KiB pieces of many files."""

    def __init__(self, client: Client, folder: Path) -> None:
        client.mkdir("/small")
        rng = random.Random(3)
        memory = np.zeros((PIECES, PIECE_BYTES), np.uint8)
        self._buffers = [memoryview(row) for row in memory]
        self._client = client
        self._batches = [
            [(rng.randrange(FILES), rng.randrange(16) * PIECE_BYTES) for _ in range(PIECES)]
            for _ in range(BATCHES)
        ]
        self._fds, self._files = [], []
        for number in range(FILES):
            content = os.urandom(FILE_BYTES)
            client.write(f"/small/{number}", content)
            (folder / f"{number}").write_bytes(content)
            self._fds.append(os.open(folder / f"{number}", os.O_RDONLY))
            self._files.append(client.open_file(f"/small/{number}"))

    def bare(self) -> int:
        fds, buffers, preadv = self._fds, self._buffers, os.preadv
        for batch in self._batches:
            for (file, offset), buffer in zip(batch, buffers, strict=True):
                preadv(fds[file], (buffer,), offset)
        return BATCHES

    def _ask(self, keys: list[File] | list[str]) -> int:
        for batch in self._batches:
            self._client.read_batch(
                [
                    (keys[file], offset, buffer)
                    for (file, offset), buffer in zip(batch, self._buffers, strict=True)
                ]
            )
        return BATCHES

    def opened(self) -> int:
        return self._ask(self._files)

    def by_path(self) -> int:
        return self._ask([f"/small/{number}" for number in range(FILES)])


class Mounted:
    """The pieces of :class:`Small`, one by one, from files that are open on a mount."""

    def __init__(self, stack: ExitStack, cluster: LocalCluster, mountpoint: Path) -> None:
        command = [sys.executable, "-m", "fs3.client.cli.main", "mount", str(mountpoint)]
        environ = {**os.environ, "FS3_DIR": str(cluster.directory)}
        subprocess.run(command, env=environ, check=True, capture_output=True)
        files = mounts.MountFiles(cluster.files.mounts, mounts.absolute(mountpoint))
        stack.callback(mounts.force_unmount, files)
        self._fds = []
        for number in range(FILES):
            fd = os.open(mountpoint / "small" / str(number), os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, fd)
            self._fds.append(fd)
        self._buffer = mmap.mmap(-1, PIECE_BYTES)
        rng = random.Random(4)
        self._pieces = [
            (rng.randrange(FILES), rng.randrange(16) * PIECE_BYTES) for _ in range(10 * PIECES)
        ]

    def singly(self) -> int:
        for file, offset in self._pieces:
            os.preadv(self._fds[file], [self._buffer], offset)
        return len(self._pieces) // PIECES


def run(stack: ExitStack, count: int) -> dict[str, object]:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    cluster = LocalCluster(scratch / "cluster")
    stack.callback(cluster.down)
    cluster.up()
    client = stack.enter_context(connect(scratch / "cluster"))
    (scratch / "bare").mkdir()
    small = Small(client, scratch / "bare")
    big = Big(client, scratch / "cluster")
    mounted = Mounted(stack, cluster, scratch / "mnt")
    lines = {
        "bare preadv 1 MiB": big.bare,
        "local 1 MiB, depth 8": big.deep,
        "local 1 MiB, depth 1": big.single,
        "bare preadv loop, 256 x 4 KiB": small.bare,
        "local batch of 256 x 4 KiB, open files": small.opened,
        "local batch of 256 x 4 KiB, paths": small.by_path,
        "mount, 256 x 4 KiB one at a time": mounted.singly,
    }
    for _ in range(4):  # every replica has been asked where everything lies
        for work in lines.values():
            work()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    for _ in range(count):
        for name, work in lines.items():
            rounds[name].append(measured(work))
    return {
        name: {
            "wall_us": round(statistics.median(wall for wall, _ in found), 1),
            "cpu_us": round(statistics.median(cpu for _, cpu in found), 1),
            "best_wall_us": round(min(wall for wall, _ in found), 1),
            "best_cpu_us": round(min(cpu for _, cpu in found), 1),
            "of_limit": round(
                statistics.median(
                    limit[0] / mine[0] for limit, mine in zip(rounds[bare], found, strict=True)
                ),
                3,
            ),
        }
        for name, found in rounds.items()
        for bare in ["bare preadv 1 MiB" if "1 MiB" in name else "bare preadv loop, 256 x 4 KiB"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write the result there, too")
    said = parser.parse_args()
    with ExitStack() as stack:
        result = run(stack, said.rounds)
    for name, line in result.items():
        print(f"{name:42} {line}")
    if said.json:
        said.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
