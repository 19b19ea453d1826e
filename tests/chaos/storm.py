"""One fault after another, drawn by chance from a seed, for as long as wanted.

A round has registers and files of its own, one to three faults on top of each other, and the
judgement that every test of chaos ends with. What is drawn depends on the seed alone; when things
happen does not.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from .networked_cluster import NetworkedCluster
from .work import Work

_FAULT_S_MAX = 6.0  # longer than any lease


class Storm:
    """Breaks a cluster again and again."""

    def __init__(
        self, cluster: NetworkedCluster, mountpoints: tuple[Path, Path], seed: int
    ) -> None:
        self._cluster = cluster
        self._mountpoints = mountpoints
        self._random = random.Random(seed)
        self._faults: list[Callable[[], str]] = [
            self._kill,
            self._stop,
            self._unplug,
            self._cut_one_way,
            self._cut_both_ways,
        ]

    def round(self, number: int) -> str:
        """One round; says what was done. AssertionError if a promise was broken."""
        chance = self._random
        work = Work(self._cluster, self._mountpoints, f"round-{number}")
        told = []
        with work.going_on():
            for _ in range(chance.randint(1, 3)):
                told.append(chance.choice(self._faults)())
                time.sleep(chance.uniform(0.0, _FAULT_S_MAX))  # how long it lasts is the fault
            if chance.random() < 0.5:
                self._cluster.repair()
                self._cluster.wait_healthy()
        well, failed = work.registers.counts
        return f"{'; '.join(told)}: {well} operations well, {failed} not"

    def _kill(self) -> str:
        daemon = self._random.choice(self._cluster.daemons)
        self._cluster.kill(daemon)
        time.sleep(self._random.uniform(0.0, _FAULT_S_MAX))
        self._cluster.start(daemon)
        return f"kill {daemon}"

    def _stop(self) -> str:
        daemon = self._random.choice(self._cluster.daemons)
        self._cluster.signal(daemon, signal.SIGSTOP)
        time.sleep(self._random.uniform(0.0, _FAULT_S_MAX))
        self._cluster.signal(daemon, signal.SIGCONT)
        return f"stop {daemon}"

    def _unplug(self) -> str:
        place = self._random.choice(self._cluster.daemons)
        self._cluster.network.unplug(place)
        return f"unplug {place}"

    def _pair(self) -> tuple[str, str]:
        one, other = self._random.sample(self._cluster.network.places, 2)
        return one, other

    def _cut_one_way(self) -> str:
        one, other = self._pair()
        self._cluster.network.cut(one, other)
        return f"cut {one} -> {other}"

    def _cut_both_ways(self) -> str:
        one, other = self._pair()
        self._cluster.network.cut(one, other)
        self._cluster.network.cut(other, one)
        return f"cut {one} <-> {other}"
