"""What reads and writes of a real cluster cost: ``python tests/bench/datapath.py [LINE ...]``.

Prints one JSON object. A cluster of one metaserver and three storageservers runs on this machine;
each line is measured in rounds, and in each round beside its limit: bare sockets between two
processes, a bare loop of preadv over as many bytes, a mount whose file system answers from memory.
With ``--transport tcp`` clients do not read the servers' files by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import fs3
from fs3.client import mounts
from fs3.client.api import Client
from fs3.client.cluster_directory import Shape
from fs3.client.local_cluster import LocalCluster

KIB, MIB = 1 << 10, 1 << 20
FILE_BYTES = 256 * MIB
SMALL_FILES, SMALL_BYTES = 1000, 64 * KIB
SERVE_MEMORY = Path(__file__).parents[1] / "posix" / "serve_memory.py"
Figures = dict[str, float]


def memory(size: int) -> memoryview:
    """Pages that are there: first touches would be measured otherwise."""
    view = memoryview(mmap.mmap(-1, size))
    for at in range(0, size, 4096):
        view[at] = 1
    return view


def rate(work: Callable[[], int], seconds: float) -> float:
    """What ``work`` returns, summed, per second."""
    return measured(work, seconds, ".")[0]


def measured(work: Callable[[], int], seconds: float, directory: str) -> tuple[float, float]:
    """The same, and the CPU time that one of it takes here and in the daemons, in seconds."""
    work()
    done, start, spent = 0, time.perf_counter(), cpu_s(directory)
    while time.perf_counter() - start < seconds:
        done += work()
    taken = time.perf_counter() - start
    return done / taken, (cpu_s(directory) - spent) / done


def cpu_s(directory: str) -> float:
    """CPU time spent by this process, its children, and what has ``directory`` as an argument."""
    ticks, mine = 0, str(os.getpid())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            named = directory in (process / "cmdline").read_text()
        except OSError:
            continue  # it has ended
        if named or process.name == mine or fields[1] == mine:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def latencies_us(work: Callable[[], object], count: int) -> list[float]:
    """How long each of ``count`` calls took."""
    clock = time.perf_counter
    taken = []
    for _ in range(count + 50):
        start = clock()
        work()
        taken.append((clock() - start) * 1e6)
    return taken[50:]


def percentile(values: list[float], percent: int) -> float:
    """Of the values, sorted."""
    return sorted(values)[len(values) * percent // 100]


# -- limits ----------------------------------------------------------------------------------------


def bare_peer(ready: Pipe) -> None:
    """A process that sends 1 MiB over and over to whoever connects and says s, and answers p."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    data = memory(MIB)
    while True:
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with accepted, contextlib.suppress(OSError):
            while accepted.recv(1) == b"s":
                while True:
                    accepted.sendall(data)
            while True:
                accepted.sendall(b"p")
                if not accepted.recv(1):
                    break


class Bare:
    """Bare sockets, to a process of its own."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        near, far = context.Pipe()
        self._process = context.Process(target=bare_peer, args=(far,), daemon=True)
        self._process.start()
        self._port = near.recv()
        self._memory = memory(MIB)

    def stream(self, seconds: float) -> Figures:
        """One sender, one receiver into 1 MiB of memory; with the CPU time of both."""
        with socket.create_connection(("127.0.0.1", self._port)) as receiver:
            receiver.sendall(b"s")
            speed, cpu = measured(lambda: receiver.recv_into(self._memory), seconds, "\0none")
        return {"bare_GB_s": speed / 1e9, "bare_cpu_us_per_MiB": cpu * MIB * 1e6}

    def ping_us(self, count: int = 2000) -> float:
        """The median of a byte there and back."""
        with socket.create_connection(("127.0.0.1", self._port)) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def ping() -> None:
                peer.send(b"p")
                peer.recv(1)

            return percentile(latencies_us(ping, count), 50)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def empty_mount(mountpoint: Path) -> Iterator[Path]:
    """Our front with a file system that answers from memory."""
    mountpoint.mkdir()
    command = [sys.executable, str(SERVE_MEMORY), str(mountpoint), "--constant"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield mountpoint
        finally:
            server.terminate()
            server.wait(30)


# -- the cluster -----------------------------------------------------------------------------------


class Rig:
    """A cluster with files on it, and the limits beside it."""

    def __init__(self, directory: Path, transport: str, stack: contextlib.ExitStack) -> None:
        self.local = LocalCluster(directory / "cluster")
        stack.callback(self.local.down)
        own_reads = {"local": {"enabled": transport == "local"}}
        self.local.up(Shape(nodes=3), storageserver_settings=own_reads)
        self.directory = directory
        self.client: Client = stack.enter_context(fs3.connect(str(self.local.directory)))
        self.bare = Bare()
        stack.callback(self.bare.close)
        self._stack = stack
        self.big = self._local_copy("/big", 1, FILE_BYTES)
        self._small: list[Path] = []
        self._mounts: tuple[Path, Path] | None = None

    def _local_copy(self, name: str, seed: int, length: int) -> Path:
        chance = random.Random(seed)
        content = b"".join(chance.randbytes(min(MIB, length)) for _ in range(-(-length // MIB)))
        self.client.write(name, content)
        path = self.directory / name.strip("/")
        path.write_bytes(content)
        return path

    @property
    def small(self) -> list[Path]:
        """The plain twins of /small0, /small1, ..."""
        if not self._small:
            self._small = [
                self._local_copy(f"/small{n}", n, SMALL_BYTES) for n in range(SMALL_FILES)
            ]
        return self._small

    def mounted(self) -> tuple[Path, Path]:
        """The cluster's mount and the empty one."""
        if self._mounts is None:
            mountpoint = self.directory / "mnt"
            command = [sys.executable, "-m", "fs3.client.cli.main", "mount", str(mountpoint)]
            environ = {**os.environ, "FS3_DIR": str(self.local.directory)}
            subprocess.run(command, env=environ, check=True, capture_output=True)
            files = mounts.MountFiles(self.local.files.mounts, mounts.absolute(mountpoint))
            self._stack.callback(mounts.force_unmount, files)
            empty = self._stack.enter_context(empty_mount(self.directory / "empty"))
            with (empty / "big").open("wb") as file:
                file.truncate(FILE_BYTES)
            self._mounts = mountpoint, empty
        return self._mounts


# -- the lines -------------------------------------------------------------------------------------


def line_read(rig: Rig, seconds: float) -> Figures:
    """Native, 1 MiB, 8 in flight, servers' page cache warm."""
    room = memory(8 * MIB)
    buffers = [room[at : at + MIB] for at in range(0, len(room), MIB)]
    batches = FILE_BYTES // len(room)
    turn = 0
    with rig.client.open("/big", "rb", buffering=0) as file:

        def batch() -> int:
            nonlocal turn
            turn = (turn + 1) % batches
            rig.client.read_batch(
                [(file, turn * len(room) + i * MIB, buffer) for i, buffer in enumerate(buffers)]
            )
            return len(room)

        def single() -> int:
            nonlocal turn
            turn = (turn + 1) % (FILE_BYTES // MIB)
            return file.readinto_at(buffers[0], turn * MIB)

        figures = rig.bare.stream(seconds)
        bare = figures["bare_GB_s"]
        for name, work in (("depth8", batch), ("depth1", single)):
            speed, cpu = measured(work, seconds, str(rig.directory))
            figures |= {f"{name}_GB_s": speed / 1e9, f"{name}_cpu_us_per_MiB": cpu * MIB * 1e6}
        file.seek(0)

        def stream() -> int:
            count = file.readinto(buffers[0])
            if not count:
                file.seek(0)
            return count

        speed, cpu = measured(stream, seconds, str(rig.directory))
        figures |= {"stream_GB_s": speed / 1e9, "stream_cpu_us_per_MiB": cpu * MIB * 1e6}
    for name in ("depth8", "depth1", "stream"):
        figures[f"{name}_ratio"] = figures[f"{name}_GB_s"] / bare
    return figures


def line_batch(rig: Rig, seconds: float) -> Figures:
    """256 random 4 KiB over 1,000 files in one batch."""
    paths, chance = rig.small, random.Random(1)
    room = memory(256 * 4 * KIB)
    buffers = [room[at : at + 4 * KIB] for at in range(0, len(room), 4 * KIB)]
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(rig.client.open(f"/small{n}", "rb", buffering=0))
            for n in range(len(paths))
        ]
        plain = [os.open(path, os.O_RDONLY) for path in paths]
        for fd in plain:
            stack.callback(os.close, fd)

        def places() -> list[tuple[int, int]]:
            return [
                (chance.randrange(SMALL_FILES), chance.randrange(SMALL_BYTES // 4096) * 4096)
                for _ in buffers
            ]

        drawn = [places() for _ in range(50)]
        asked = [
            [(files[n], at, buffer) for (n, at), buffer in zip(draw, buffers, strict=True)]
            for draw in drawn
        ]
        turn = 0

        def batch() -> int:
            nonlocal turn
            turn = (turn + 1) % len(asked)
            rig.client.read_batch(asked[turn])
            return len(buffers)

        def bare() -> int:
            nonlocal turn
            turn = (turn + 1) % len(drawn)
            for (n, at), buffer in zip(drawn[turn], buffers, strict=True):
                os.preadv(plain[n], [buffer], at)
            return len(buffers)

        limit, limit_cpu = measured(bare, seconds, "\0none")
        ours, cpu = measured(batch, seconds, str(rig.directory))
    return {
        "preadv_per_s": limit,
        "preadv_cpu_us": limit_cpu * 1e6,
        "per_s": ours,
        "cpu_us": cpu * 1e6,
        "ratio": ours / limit,
    }


def line_fuse(rig: Rig, seconds: float) -> Figures:
    """Sequential reads of 1 MiB through a mount whose pages are dropped, and with O_DIRECT."""
    real, empty = rig.mounted()
    buffer = memory(MIB)
    figures = rig.bare.stream(seconds)
    for name, flags in (("buffered", 0), ("direct", os.O_DIRECT)):
        for kind, path in (("empty", empty), ("ours", real)):
            fd = os.open(path / "big", os.O_RDONLY | flags)

            def whole(fd: int = fd) -> int:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.lseek(fd, 0, os.SEEK_SET)
                total = 0
                while count := os.readv(fd, [buffer]):
                    total += count
                return total

            speed, cpu = measured(whole, seconds, str(path if path == empty else rig.directory))
            figures[f"{name}_{kind}_GB_s"] = speed / 1e9
            figures[f"{name}_{kind}_cpu_us_per_MiB"] = cpu * MIB * 1e6
            os.close(fd)
        figures[f"{name}_ratio"] = figures[f"{name}_ours_GB_s"] / figures[f"{name}_empty_GB_s"]
    return figures


def line_direct(rig: Rig, seconds: float) -> Figures:
    """4 KiB with O_DIRECT, one at a time, at random."""
    real, empty = rig.mounted()
    buffer, chance = memory(4 * KIB), random.Random(2)
    figures: Figures = {"ping_us": rig.bare.ping_us()}
    for kind, path in (("empty", empty), ("ours", real)):
        fd = os.open(path / "big", os.O_RDONLY | os.O_DIRECT)

        def one(fd: int = fd) -> None:
            os.preadv(fd, [buffer], chance.randrange(FILE_BYTES // 4096) * 4096)

        taken = latencies_us(one, max(200, int(2000 * seconds)))
        figures[f"{kind}_p50_us"] = percentile(taken, 50)
        figures[f"{kind}_p95_us"] = percentile(taken, 95)
        os.close(fd)
    with rig.client.open("/big", "rb", buffering=0) as file:
        native = latencies_us(
            lambda: file.readinto_at(buffer, chance.randrange(FILE_BYTES // 4096) * 4096), 2000
        )
    figures["native_p50_us"] = percentile(native, 50)
    figures["allowed_us"] = 3 * figures["empty_p50_us"] + figures["ping_us"]
    figures["of_allowed"] = figures["ours_p50_us"] / figures["allowed_us"]
    return figures


def line_write(rig: Rig, seconds: float) -> Figures:
    """1 MiB writes in order, three replicas, and how fast this disk takes three such files."""
    data = memory(MIB)
    figures = rig.bare.stream(seconds)
    with rig.client.open("/written", "wb", buffering=0) as file:

        def write() -> int:
            if file.tell() >= 128 * MIB:
                file.flush()
                file.seek(0)
            file.write(data)
            return len(data)

        ours, cpu = measured(write, seconds, str(rig.directory))
    figures |= {"GB_s": ours / 1e9, "cpu_us_per_MiB": cpu * MIB * 1e6}
    figures["ratio"] = 3 * figures["GB_s"] / figures["bare_GB_s"]
    for name, span in (("fresh", 0), ("again", 128 * MIB)):
        fds = [os.open(rig.directory / f"copy{n}", os.O_WRONLY | os.O_CREAT) for n in range(3)]
        position = 0

        def copies(fds: list[int] = fds, span: int = span) -> int:
            nonlocal position
            for fd in fds:
                os.pwrite(fd, data, position)
            position += MIB
            if span and position >= span:
                position = 0
            return MIB

        speed, cpu = measured(copies, seconds / 2, "\0none")
        figures[f"three_pwrites_{name}_GB_s"] = speed / 1e9
        figures[f"three_pwrites_{name}_cpu_us_per_MiB"] = cpu * MIB * 1e6
        for n, fd in enumerate(fds):
            os.close(fd)
            if name == "again":
                (rig.directory / f"copy{n}").unlink()
    return figures


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def line_memory(rig: Rig, _seconds: float) -> Figures:
    """Growth over 10,000 reads of 1 MiB, half at random, half in order."""
    buffer, chance = memory(MIB), random.Random(3)
    with rig.client.open("/big", "rb", buffering=0) as file:
        before = rss_bytes()
        for turn in range(10_000):
            if turn % 2:
                file.readinto_at(buffer, chance.randrange(FILE_BYTES - MIB))
            elif not file.readinto(buffer):
                file.seek(0)
        grown = rss_bytes() - before
    return {"rss_grown_MiB": grown / MIB}


LINES = {
    "read": line_read,
    "batch": line_batch,
    "fuse": line_fuse,
    "direct": line_direct,
    "write": line_write,
    "memory": line_memory,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("lines", nargs="*", choices=[*LINES, []], metavar="|".join(LINES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--transport", choices=["tcp", "local"], default="tcp")
    parser.add_argument("--directory", default=None)
    options = parser.parse_args()
    report: dict[str, Figures] = {}
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
        rig = Rig(Path(root), options.transport, stack)
        for name in options.lines or LINES:
            rounds = 1 if name == "memory" else options.rounds
            found = [LINES[name](rig, options.seconds) for _ in range(rounds)]
            report[name] = {
                key: float(f"{statistics.median(figures[key] for figures in found):.4g}")
                for key in found[0]
            }
            print(name, json.dumps(report[name]), file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
