"""Reads of 1 MiB by RDMA, beside a bare verbs loop of the same size and depth in the same machine.

    python tests/rdma/vm.py run --memory 3072 -- .venv/bin/python tests/bench/rdma.py [--profile]

The bare loop: one process writes to the memory of another, which sleeps: chains of ``--depth``
RDMA WRITEs of 1 MiB with the last one signaled, its completion polled for. fs3: a cluster of one
storageserver; the client reads ``--depth`` MiB at once into memory that it keeps, the server's page
cache being warm. Rounds alternate; medians and their ratio are printed, and as JSON.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fs3.client.api import connect
from fs3.client.cluster_directory import Shape
from fs3.client.local_cluster import LocalCluster
from fs3.transport.rdma.ports import open_ports
from fs3.transport.rdma.pyverbs_device import PyverbsDevice
from fs3.transport.rdma.verbs import Opcode, WorkRequest
from fs3.transport.rdma.verbs import Path as QueuePath

MIB = 1 << 20


class BareEnd:
    """One end of the bare loop."""

    def __init__(self, depth: int) -> None:
        (opened, *_), _ = open_ports()
        self.port = opened.port
        self.device = PyverbsDevice(opened.port)
        self.memory = mmap.mmap(-1, depth * MIB)
        self.memory.write(os.urandom(MIB) * depth)
        self.region = self.device.register(memoryview(self.memory), remote=True)
        self.queue = self.device.completion_queue(4 * depth)
        self.pair = self.device.queue_pair(self.queue, depth=4 * depth, slots=[])

    def describe(self) -> bytes:
        said = (self.pair.number, self.port.gid, self.device.sequence_number)
        return pickle.dumps((*said, self.region.address, self.region.remote_key))

    def connect(self, other: bytes) -> tuple[int, int]:
        number, gid, sequence, address, key = pickle.loads(other)
        self.pair.connect(
            QueuePath(
                queue_pair=number,
                gid=gid,
                lid=0,
                sequence_number=sequence,
                mtu_bytes=self.port.mtu_bytes,
                reads_in=8,
                reads_out=8,
            )
        )
        return address, key


def bare_target(control: socket.socket, depth: int) -> None:
    """The process whose memory is written to."""
    end = BareEnd(depth)
    control.sendall(end.describe())
    end.connect(control.recv(4096))
    control.sendall(b"ready")
    control.recv(1)  # until the other one has gone


class Bare:
    """The bare loop's active end."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._control, there = socket.socketpair()
        command = [sys.executable, __file__, "--target", str(there.fileno()), "--depth", str(depth)]
        self._process = subprocess.Popen(command, pass_fds=[there.fileno()])
        there.close()
        self._end = BareEnd(depth)
        address, key = self._end.connect(self._control.recv(4096))
        self._control.sendall(self._end.describe())
        assert self._control.recv(5) == b"ready"
        region = self._end.region
        self._chain = [
            WorkRequest(
                Opcode.WRITE,
                region.address + n * MIB,
                MIB,
                region.local_key,
                address + n * MIB,
                key,
            )
            for n in range(depth)
        ]

    def round(self, seconds: float) -> float:
        """Bytes per second."""
        done, began = 0, time.perf_counter()
        while (now := time.perf_counter()) - began < seconds or not done:
            self._end.pair.post(self._chain, 1)
            while not (found := self._end.queue.poll(1)):
                pass
            assert not found[0].error, found
            done += self._depth * MIB
        return done / (now - began)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


class Fs3:
    """The client of a cluster of one node."""

    def __init__(self, directory: Path, depth: int) -> None:
        self.cluster = LocalCluster(directory)
        self.cluster.up(
            Shape(nodes=1, targets_per_node=1, replicas=1),
            storageserver_settings={"local": {"enabled": False}},
        )
        self.cluster.wait_healthy(60)
        self._client = connect(directory)
        self._depth = depth
        self._total = 32 * MIB
        self._client.write("/f", os.urandom(MIB) * 32)
        self._file = self._client.open_file("/f")
        self._memory = memoryview(mmap.mmap(-1, depth * MIB))
        self.round(0.5)

    def round(self, seconds: float) -> float:
        """Bytes per second."""
        done, offset, began = 0, 0, time.perf_counter()
        size = self._depth * MIB
        while (now := time.perf_counter()) - began < seconds or not done:
            assert self._file.readinto_at(self._memory, offset) == size
            offset = (offset + size) % (self._total - size)
            done += size
        return done / (now - began)

    def close(self) -> None:
        self._file.close()
        self._client.close()
        self.cluster.down()


def nic_packets() -> int:
    counters = Path("/sys/class/infiniband").glob("*/ports/*/hw_counters/sent_pkts")
    return sum(int(counter.read_text()) for counter in counters)


def measure(depth: int, rounds: int, seconds: float, profile: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        fs3 = Fs3(Path(scratch, "cluster"), depth)
        bare = Bare(depth)
        try:
            before = nic_packets()
            pairs = [(bare.round(seconds), fs3.round(seconds)) for _ in range(rounds)]
            moved = nic_packets() - before
            if profile:
                print_profile(fs3, seconds)
        finally:
            bare.close()
            fs3.close()
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return {
        "size_bytes": MIB,
        "depth": depth,
        "bare_gb_s": round(medians[0] / 1e9, 3),
        "fs3_gb_s": round(medians[1] / 1e9, 3),
        "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        "nic_packets": moved,
    }


def print_profile(fs3: Fs3, seconds: float) -> None:
    """Where the client's time goes; the server's is what is left."""
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    profiler.enable()
    fs3.round(seconds)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--target", type=int, metavar="FD", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.target is not None:
        bare_target(socket.socket(fileno=said.target), said.depth[0])
        return
    for depth in said.depth or [1, 8]:
        print(json.dumps(measure(depth, said.rounds, said.seconds, said.profile)), flush=True)


if __name__ == "__main__":
    main()
