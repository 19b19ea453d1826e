"""A real cluster whose disk loses power, and work on it that knows what must be there afterwards.

The whole directory of the cluster is on a faulty disk: RocksDB and data files, and also its
description, records and logs. :meth:`PoweredCluster.lose_power` kills every process of the machine
in one moment of the disk's life, drops what was not synced, and starts everything again. Clients
are on another machine: they live on.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from random import Random

from faulty_disk import Disk
from running_cluster import LOG_LINES, RunningCluster

from fs3.client import processes
from fs3.client.cluster_directory import Shape
from fs3.client.daemon_configs import Extra
from fs3.client.local_cluster import LocalCluster

WAIT_S = 60.0  # for what must happen, on a loaded machine
CHUNK_BYTES = 65536
METASERVER: Extra = {"chunk_bytes": CHUNK_BYTES}


class PoweredCluster:
    """A cluster on a disk with a power switch."""

    def __init__(
        self, disk: Disk, cluster: RunningCluster, boot_id: Path, starter: Executor
    ) -> None:
        self.disk = disk
        self.cluster = cluster
        self._boot_id = boot_id
        self._starter = starter
        self._pause = threading.Event()

    def lose_power(self, seed: int, *, after_changes: int, keep_some: bool = True) -> None:
        """Cut the power so many changes of the disk from now on, and bring everything up again."""
        local = self.cluster.local
        records = [local.files.supervisor_file("pid"), *sorted(local.directory.glob("*/pid"))]
        running = [found for path in records if (found := processes.read_record(path))]
        for log in local.directory.glob("*/log"):  # they will be lost, and may be wanted
            with (self.disk.path.parent / f"log-{log.parent.name}").open("ab") as kept:
                kept.write(log.read_bytes())
        # From now on nothing of ours looks into the disk: on a frozen one, even listing a directory
        # waits for whoever is changing a name there, for ever.
        self.disk.freeze_after(after_changes)
        self.wait_until("the disk is frozen", self.disk.is_frozen)
        for process in running:  # the supervisor first: it would start others
            process.signal(signal.SIGKILL)
        self.disk.cut_power(seed, keep_some=keep_some)
        self.disk.clear_rules()
        self._boot_id.write_text(secrets.token_hex(16))
        self._starter.submit(_bring_up, local.directory).result()

    def wait_until(self, what: str, true: object) -> None:
        """Return when ``true()`` is."""
        assert callable(true)
        for _ in range(int(WAIT_S / 0.02)):
            if true():
                return
            self._pause.wait(0.02)
        raise AssertionError(f"never: {what}")

    def check_offline(self) -> None:
        """Stop the cluster: ``fs3-storageserver --check`` finds nothing wrong."""
        self.cluster.local.down()
        for config in sorted(self.cluster.dir.glob("node-*/config.toml")):
            command = [sys.executable, "-m", "fs3.storageserver", "--config", str(config)]
            checked = subprocess.run(
                [*command, "--check"], capture_output=True, text=True, timeout=WAIT_S, check=False
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
            assert "PROBLEMS" not in checked.stdout

    def scrub_finds_nothing(self) -> None:
        """Read everything on every target once: no bad chunk, now or since the start."""
        with self.cluster.local.administration() as calls:
            routing = calls.routing()
            before = {t: calls.set_scrub(routing, t, start=True) for t in routing.targets}

            def ended() -> bool:
                found = {t: calls.scrub_status(routing, t) for t in routing.targets}
                return all(
                    not now.running and now.started_ns >= before[t].started_ns
                    for t, now in found.items()
                )

            self.wait_until("a pass ends", ended)
            found = [calls.scrub_status(routing, t) for t in routing.targets]
        assert [(s.bad_in_pass, s.bad_waiting, s.repaired) for s in found] == [(0, 0, 0)] * len(
            found
        )


def _bring_up(directory: Path) -> None:
    LocalCluster(directory).up(timeout_s=WAIT_S)


@contextmanager
def powered_cluster(directory: Path, shape: Shape) -> Iterator[PoweredCluster]:
    """A healthy cluster on a disk of its own, in ``directory``."""
    boot_id = directory / "boot_id"
    boot_id.write_text(secrets.token_hex(16))
    with ExitStack() as stack:
        disk = stack.enter_context(Disk(directory / "disk", capacity_bytes=64 << 30))
        settings: Extra = {
            "boot_id_file": str(boot_id),
            "scrub": {"bytes_per_s": 1 << 30},
            "local": {"enabled": False},  # clients on another machine hold no file of this disk
        }
        cluster = RunningCluster(disk.path / "cluster", shape, METASERVER, settings)
        stack.callback(cluster.local.down)
        stack.enter_context(cluster)
        # A process that has files of a mount open cannot start another one while that mount hangs:
        # the child closes what it inherits, which asks the mount. So a third one starts daemons.
        starter = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        starter.submit(_bring_up, cluster.dir).result()
        yield PoweredCluster(disk, cluster, boot_id, starter)
        for log in sorted(directory.glob("log-*")):
            print(
                f"--- {log}", *log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n"
            )
        cluster.print_logs()


def content(file: str, chunk: int, version: int) -> bytes:
    """What a version of a chunk holds: no part of it fits into another."""
    head = b"%s %d %d\n" % (file.encode(), chunk, version)
    part = head + Random(f"{file} {chunk} {version}").randbytes(500)
    return (part * (CHUNK_BYTES // len(part) + 1))[:CHUNK_BYTES]
