"""How long clients stand still when a daemon dies: ``python tests/bench/recovery.py WHAT [COUNT]``.

Prints JSON. A cluster of one chain with three replicas, as ``fs3 up`` makes it and with its
defaults (lease 3 s), on this machine; one client reads and one writes 64 KiB again and again, a
third one makes, looks up and removes files. WHAT is one of

    head, middle, tail   kill -9 of the storageserver there; it stays away until all is seen
    two                  two of three in turn, the second when the chain goes on without the first
    stopped              SIGSTOP of the head's storageserver instead: its connections stay open
    metaserver           kill -9, and the supervisor starts a new one; a fresh cluster each time
    hot                  no death: COUNT s of one chunk written by one client and read by three

A stall is the longest time between two operations that ended well, from the kill until a second
after the chain has changed or the metaserver has answered again.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from fs3.client import processes
from fs3.client.api import Client, connect
from fs3.client.cluster_directory import Shape
from fs3.client.local_cluster import LocalCluster
from fs3.core.types import Chain
from fs3.errors import Fs3Error

PIECE = 64 << 10
CHUNKS = 64
PAUSE_S = 0.002  # between two operations: many a second, and some of the machine is left
WAIT_S = 60.0


class Loop:
    """One client that does the same again and again, and notes when each time ended well."""

    def __init__(
        self, directory: Path, name: str, act: Callable[[Client, int], object], pause_s: float = 0.0
    ) -> None:
        self.name = name
        self._pause_s = pause_s
        self.ended_s: list[float] = []
        self.took_s: list[float] = []
        self.failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(directory, act))
        self._thread.start()

    def _run(self, directory: Path, act: Callable[[Client, int], object]) -> None:
        with connect(directory) as client:
            number = 0
            while not self._stop.is_set():
                began_s = time.monotonic()
                try:
                    act(client, number)
                except Fs3Error:
                    self.failures += 1
                    continue
                finally:
                    number += 1
                self.ended_s.append(time.monotonic())
                self.took_s.append(self.ended_s[-1] - began_s)
                time.sleep(self._pause_s)

    def stall_s(self, since_s: float) -> float:
        """The longest pause between two ends, the second of which is after ``since_s``."""
        ends = list(self.ended_s)
        first = next((i for i, end_s in enumerate(ends) if end_s > since_s), len(ends))
        ends = [*ends[max(first - 1, 0) :], time.monotonic()]
        return max(after - before for before, after in pairwise(ends))

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()


def read(client: Client, number: int) -> object:
    """A piece, of another chunk each time."""
    return client.read_batch([("/load", number * 7 % CHUNKS * (1 << 20), PIECE)])


def write(client: Client, number: int) -> object:
    """The same."""
    data = bytes([number % 256]) * PIECE
    return client.write_batch([("/load", number * 5 % CHUNKS * (1 << 20) + PIECE, data)])


def names(client: Client, number: int) -> object:
    """A file comes, is looked up, and goes."""
    name = f"/name-{number}"
    client.open_file(name, "xb").close()
    client.stat(name)
    return client.unlink(name)


@contextmanager
def cluster() -> Iterator[LocalCluster]:
    """A whole cluster, ended behind."""
    with tempfile.TemporaryDirectory(prefix="fs3-recovery-") as directory:
        local = LocalCluster(Path(directory) / "data")
        try:
            local.up(Shape(nodes=3, targets_per_node=1))
            with connect(local.directory) as client:
                client.write("/load", bytes(CHUNKS << 20))
            yield local
        finally:
            local.down()


@contextmanager
def load(local: LocalCluster) -> Iterator[list[Loop]]:
    """Clients at work."""
    with ExitStack() as stack:
        loops = []
        for act in (read, write, names):
            loops.append(Loop(local.directory, act.__name__, act, PAUSE_S))
            stack.callback(loops[-1].stop)
        while any(len(loop.ended_s) < 20 for loop in loops):
            time.sleep(0.05)
        yield loops


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll; RuntimeError if it takes too long."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            if condition():
                return
        except Fs3Error:
            pass  # the metaserver is away
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"it did not happen within {WAIT_S} s")
        time.sleep(0.05)


def chain_of(local: LocalCluster) -> Chain:
    """The chain that the load is on."""
    return next(chain for chain in local.status().chains if len(chain.replicas) == 3)


def without(local: LocalCluster, node: int) -> bool:
    """Has the chain gone on without this node?"""
    return all(replica.node != node for replica in chain_of(local).serving)


def strike(local: LocalCluster, loops: list[Loop], place: int, *, stop: bool) -> dict[str, float]:
    """The storageserver at that place of the chain dies; stalls, by what stood still."""
    node = int(chain_of(local).serving[place].node)
    local.hold(node)
    since_s = time.monotonic()
    if stop:
        process = processes.living(local.node_directory(node) / "pid")
        assert process is not None
        process.signal(signal.SIGSTOP)
    else:
        local.kill(node)
    wait_until(lambda: without(local, node))
    seen = [len(loop.ended_s) for loop in loops]
    wait_until(lambda: all(len(lo.ended_s) > n for lo, n in zip(loops, seen, strict=True)))
    time.sleep(1.0)
    stalls = {loop.name: loop.stall_s(since_s) for loop in loops}
    if stop:
        process.signal(signal.SIGCONT)
    return stalls


def recover(local: LocalCluster) -> None:
    """Everybody returns."""
    for node in local.specification.nodes:
        local.release(node.node)
    local.wait_healthy()


def storageservers(what: str, count: int) -> tuple[list[dict[str, float]], int]:
    """Deaths in one cluster, one after the other."""
    place = {"head": 0, "middle": 1, "tail": 2, "two": 0, "stopped": 0}[what]
    found = []
    with cluster() as local, load(local) as loops:
        for _ in range(count):
            stalls = strike(local, loops, place, stop=what == "stopped")
            if what == "two":
                second = strike(local, loops, place, stop=False)
                stalls = {name: max(stalls[name], second[name]) for name in stalls}
            found.append(stalls)
            recover(local)
    return found, sum(loop.failures for loop in loops)


def metaservers(count: int) -> tuple[list[dict[str, float]], int]:
    """A supervisor that has started one lately waits longer: so a new cluster each time."""
    found, failures = [], 0
    for _ in range(count):
        with cluster() as local, load(local) as loops:
            since_s = time.monotonic()
            process = processes.living(local.files.metaserver / "pid")
            assert process is not None
            process.signal(signal.SIGKILL)
            seen = len(loops[2].ended_s)
            wait_until(lambda seen=seen, loops=loops: len(loops[2].ended_s) > seen + 20)
            time.sleep(1.0)
            found.append({loop.name: loop.stall_s(since_s) for loop in loops})
        failures += sum(loop.failures for loop in loops)
    return found, failures


def hot(seconds: int) -> dict[str, object]:
    """One chunk, written without a pause, and who reads it meanwhile."""

    def look(client: Client, _number: int) -> object:
        return client.read_batch([("/load", 0, PIECE)])

    def change(client: Client, number: int) -> object:
        return client.write_batch([("/load", 0, bytes([number % 256]) * PIECE)])

    with cluster() as local:
        loops = [Loop(local.directory, f"reader {n}", look) for n in (1, 2, 3)]
        loops.append(Loop(local.directory, "writer", change))
        time.sleep(seconds)
        for loop in loops:
            loop.stop()
    return {
        loop.name: {
            "operations": len(loop.took_s),
            "median_ms": round(statistics.median(loop.took_s) * 1000, 2),
            "p99_ms": round(sorted(loop.took_s)[len(loop.took_s) * 99 // 100] * 1000, 2),
            "worst_ms": round(max(loop.took_s) * 1000, 2),
            "failures": loop.failures,
        }
        for loop in loops
    }


def main() -> None:
    """Measure and print."""
    what, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
    result: dict[str, object] = {"what": what, "count": count}
    if what == "hot":
        result |= hot(count)
    else:
        found, failures = (
            metaservers(count) if what == "metaserver" else storageservers(what, count)
        )
        result["failures"] = failures
        for name in found[0]:
            spans_s = [stalls[name] for stalls in found]
            result[name] = {
                "median_s": round(statistics.median(spans_s), 2),
                "worst_s": round(max(spans_s), 2),
                "all_s": [round(span_s, 2) for span_s in spans_s],  # to join several runs
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
