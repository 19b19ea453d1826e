"""All the work that goes on while something fails, and the judgement at its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .ledger import Bookkeeper, MountBookkeeper, NativeBookkeeper
from .networked_cluster import NetworkedCluster, wait_for
from .registers import LocalReader, MountWorker, NativeWorker, Registers, Worker

_REGISTERS = 6
_CHUNK_BYTES = 65536


class Work:
    """Seven workers at five places: registers and files, natively and through two mounts.

    Two are beside a storageserver and read its files by themselves, whatever its network does.
    """

    def __init__(
        self, cluster: NetworkedCluster, mountpoints: tuple[Path, Path], name: str
    ) -> None:
        self._cluster = cluster
        self._mountpoints = mountpoints
        self.registers = Registers(name, _REGISTERS, _CHUNK_BYTES)
        self._folder = f"{name}-files"
        first, second = mountpoints
        self._workers: list[Worker] = [
            NativeWorker(1, self.registers, cluster, "client-1"),
            NativeWorker(2, self.registers, cluster, "client-2"),
            MountWorker(3, self.registers, first),
            LocalReader(6, self.registers, cluster, cluster.nodes[0]),
            LocalReader(7, self.registers, cluster, cluster.nodes[1]),
        ]
        self._bookkeepers: list[Bookkeeper] = [
            NativeBookkeeper(4, self._folder, cluster, "client-1"),
            MountBookkeeper(5, self._folder, second),
        ]
        self._running: list[Future[None]] = []

    @contextmanager
    def going_on(self) -> Iterator[Work]:
        """Workers work inside; behind it everything has been repaired, read back and judged."""
        with self._cluster.client("client-1") as client:
            client.mkdir(f"/{self._folder}")
            self.registers.make(client)
        stop = threading.Event()
        everybody = [*self._workers, *self._bookkeepers]
        with ThreadPoolExecutor(len(everybody)) as pool:
            self._running = [pool.submit(worker.run, stop) for worker in everybody]
            try:
                self.progress(50)
                yield self
                self._cluster.repair()
                self.progress(50)
            finally:
                self._cluster.repair()
                stop.set()
            for running in self._running:
                running.result()
        self._judge()

    @property
    def failures(self) -> int:
        """Operations on registers that failed, or of which nothing was heard."""
        return self.registers.counts[1]

    def progress(self, operations: int, *, files: bool = True) -> None:
        """Return when so many more operations on registers, and ``files``, went well."""
        goal = self.registers.counts[0] + operations
        made = [len(keeper.present) + len(keeper.gone) for keeper in self._bookkeepers]

        def complaint() -> str | None:
            for running in self._running:
                if running.done():
                    running.result()
            done = self.registers.counts[0]
            if done < goal:
                return f"{done} operations on registers went well, not {goal}"
            now = [len(keeper.present) + len(keeper.gone) for keeper in self._bookkeepers]
            still = [a for a, b in zip(made, now, strict=True) if b <= a]
            return "a bookkeeper makes no files" if still and files else None

        wait_for(complaint)

    def _judge(self) -> None:
        self._cluster.wait_healthy()
        with self._cluster.client("client-2") as client:
            for keeper in self._bookkeepers:
                for mountpoint in self._mountpoints:
                    keeper.check(client, mountpoint)
        self._cluster.verify()
        self.registers.check()
