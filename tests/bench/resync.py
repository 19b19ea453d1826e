"""How fast a returning target is brought up to date, and what clients notice of it.

    python tests/bench/resync.py [--bytes 2GiB] [--rounds 3] [--directory DIR]

A chain of two replicas on this machine is filled; then, in each round, the second one's directory
is emptied and filled again by resync:

- **copy**: the same bytes by a bare sender and receiver over the loopback, into a file, with one
  sync at the end. What the machine can do.
- **resync**: from the moment the target syncs to the moment it serves, without clients.
- **clients**: a client that reads and writes 1 MiB in turn: its throughput and its worst latency
  when both replicas serve, when the second is away, and during a resync.

Ratios within one round count; other processes on the machine disturb absolute numbers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from fs3.client.api import Client, connect
from fs3.client.cluster_directory import Shape
from fs3.client.local_cluster import LocalCluster
from fs3.core.types import PublicState
from fs3.settings import parse_size

MIB = 1 << 20
FILE_BYTES = 64 * MIB
BASELINE_S = 5.0
_POLL_S = 0.01


def plain_copy(source: list[Path], target: Path, length: int) -> float:
    """Seconds for ``length`` bytes of the files, by two processes."""
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    context = multiprocessing.get_context("fork")
    sender = context.Process(target=_send, args=(source, port, length))
    receiver = context.Process(target=_receive, args=(listener, target, theirs))
    began = time.perf_counter()
    receiver.start()
    sender.start()
    ours.recv(1)
    seconds = time.perf_counter() - began
    for process in (sender, receiver):
        process.join()
    for opened in (ours, theirs, listener):
        opened.close()
    target.unlink()
    return seconds


def _send(source: list[Path], port: int, length: int) -> None:
    buffer = memoryview(bytearray(MIB))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for path in source:
            with path.open("rb", buffering=0) as file:
                while length and (got := file.readinto(buffer[: min(MIB, length)])):
                    connection.sendall(buffer[:got])
                    length -= got


def _receive(listener: socket.socket, target: Path, done: socket.socket) -> None:
    buffer = memoryview(bytearray(MIB))
    connection, _ = listener.accept()
    with connection, target.open("wb", buffering=0) as file:
        while got := connection.recv_into(buffer):
            file.write(buffer[:got])
        os.fdatasync(file.fileno())
    done.send(b"x")


class Load:
    """A client at work: MiB moved and the latency of each operation. Use as a context manager."""

    def __init__(self, client: Client, files: int) -> None:
        self.latencies_s: list[float] = []
        self.seconds = 0.0
        self._client = client
        self._files = files
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    @property
    def mib_per_s(self) -> float:
        """Read and written."""
        return len(self.latencies_s) / self.seconds

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        random = Random(1)
        data = random.randbytes(MIB)
        began = time.perf_counter()
        with self._client.open_file("/load", "w+b") as mine:
            while not self._stop.is_set():
                file = f"/fill-{random.randrange(self._files)}"
                offset = random.randrange(FILE_BYTES // MIB) * MIB
                self._timed(lambda f=file, o=offset: self._client.read_batch([(f, o, MIB)]))
                at = random.randrange(64) * MIB
                self._timed(lambda o=at: self._client.write_batch([(mine, o, data)]))
        self.seconds = time.perf_counter() - began

    def _timed(self, work: object) -> None:
        assert callable(work)
        began = time.perf_counter()
        work()
        self.latencies_s.append(time.perf_counter() - began)


def state(cluster: LocalCluster) -> PublicState | None:
    """Of the second node's target."""
    return next(t for t in cluster.status().targets if t.node == 2).public_state


def empty(cluster: LocalCluster) -> None:
    """Take the second node down, with all it has."""
    cluster.stop_node(2)
    for directory in cluster.node_directory(2).glob("target-*"):
        shutil.rmtree(directory)
    while state(cluster) is not PublicState.OFFLINE:
        time.sleep(_POLL_S)


def resync(cluster: LocalCluster) -> float:
    """Let it return; seconds from syncing to serving."""
    cluster.release(2)
    while state(cluster) is not PublicState.SYNCING:
        time.sleep(_POLL_S)
    began = time.perf_counter()
    while state(cluster) is PublicState.SYNCING:
        time.sleep(_POLL_S)
    seconds = time.perf_counter() - began
    cluster.wait_healthy()
    return seconds


def run(directory: Path, length: int, rounds: int) -> None:
    """All rounds, and their medians."""
    cluster = LocalCluster(directory / "cluster")
    cluster.up(Shape(nodes=2, targets_per_node=1, replicas=2))
    files = length // FILE_BYTES
    found: dict[str, list[float]] = {}
    try:
        with connect(cluster.directory) as client:
            for number in range(files):
                client.write(f"/fill-{number}", Random(number).randbytes(FILE_BYTES))
            source = sorted(cluster.node_directory(1).glob("target-*/blocks.*"))
            for _ in range(rounds):
                one = measure(cluster, client, source, directory / "copy", length)
                print("  ".join(f"{name} {value:.3g}" for name, value in one.items()), flush=True)
                for name, value in one.items():
                    found.setdefault(name, []).append(value)
    finally:
        cluster.down()
    print("medians")
    for name, values in found.items():
        print(f"  {name:<32} {statistics.median(values):.3g}")


def measure(
    cluster: LocalCluster, client: Client, source: list[Path], scratch: Path, length: int
) -> dict[str, float]:
    """One round."""
    mib, files = length / MIB, length // FILE_BYTES
    copy_s = plain_copy(source, scratch, length)
    empty(cluster)
    alone_s = resync(cluster)
    with Load(client, files) as whole:
        time.sleep(BASELINE_S)
    empty(cluster)
    with Load(client, files) as away:
        time.sleep(BASELINE_S)
    with Load(client, files) as during:
        loaded_s = resync(cluster)
    return {
        "copy MiB/s": mib / copy_s,
        "resync MiB/s": mib / alone_s,
        "resync/copy": copy_s / alone_s,
        "resync with client MiB/s": mib / loaded_s,
        "client, both serve, MiB/s": whole.mib_per_s,
        "client, one away, MiB/s": away.mib_per_s,
        "client during MiB/s": during.mib_per_s,
        "client during/both serve": during.mib_per_s / whole.mib_per_s,
        "client during/one away": during.mib_per_s / away.mib_per_s,
        "worst ms, both serve": max(whole.latencies_s) * 1000,
        "worst ms, one away": max(away.latencies_s) * 1000,
        "worst ms during": max(during.latencies_s) * 1000,
        "median ms during": statistics.median(during.latencies_s) * 1000,
        "ms of one chunk's resync": 1000 * alone_s / mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=parse_size, default=parse_size("2GiB"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the cluster is made; default: /tmp")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as directory:
        run(Path(directory), chosen.bytes, chosen.rounds)


if __name__ == "__main__":
    main()
