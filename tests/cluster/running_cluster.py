"""A running local cluster as tests see it, with everything they open on it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from signal import Signals

from fs3.client import mounts, processes
from fs3.client.administration import ClusterStatus
from fs3.client.api import Client, connect
from fs3.client.cluster_directory import Shape
from fs3.client.daemon_configs import Extra
from fs3.client.local_cluster import LocalCluster

LOG_LINES = 30


# The guest for RDMA is one process of a machine that may be busy: Python starts slowly in it.
HEALTHY_S = 300.0 if "RDMA_VM" in os.environ else 60.0


class RunningCluster:
    """A local cluster and whatever a test opens on it. Use as a context manager."""

    def __init__(
        self,
        directory: Path,
        shape: Shape | None = None,
        metaserver_settings: Extra | None = None,
        storageserver_settings: Extra | None = None,
    ) -> None:
        self.local = LocalCluster(directory)
        self._shape = shape
        self._settings = metaserver_settings, storageserver_settings
        self._opened = ExitStack()

    @property
    def dir(self) -> Path:
        """The cluster's directory."""
        return self.local.directory

    @property
    def address(self) -> str:
        """``host:port`` of the metaserver's frame port."""
        return self.local.specification.metaserver_frame_address

    @property
    def cluster_id(self) -> str:
        """The cluster's name."""
        return self.local.specification.cluster_id

    def client(self, **options: object) -> Client:
        """A native client; closed with the cluster."""
        return self._opened.enter_context(connect(self.dir, **options))

    def mount(self, name: str = "mnt", *options: str) -> Path:
        """Mount it on a new directory; unmounted with the cluster."""
        mountpoint = self.dir.parent / f"{self.dir.name}-{name}"
        self.run("mount", str(mountpoint), *options, check=True)
        files = mounts.MountFiles(self.local.files.mounts, mounts.absolute(mountpoint))
        self._opened.callback(mounts.force_unmount, files)
        return mountpoint

    def run(
        self, *arguments: str, check: bool = False, text: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``fs3 ARGUMENTS`` with this cluster as the default, and environment variables."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FS3_")}
        return subprocess.run(
            [sys.executable, "-m", "fs3.client.cli.main", *arguments],
            env={**environ, "FS3_DIR": str(self.dir), "COLUMNS": "200", **variables},
            capture_output=True,
            text=text,
            timeout=90,
            check=check,
        )

    def kill(self, node: int) -> None:
        """SIGKILL; the supervisor starts it again unless it is held."""
        self.local.kill(node)

    def hold(self, node: int) -> None:
        """Keep a node down once it is."""
        self.local.hold(node)

    def release(self, node: int) -> None:
        """Let a held node return."""
        self.local.release(node)

    def signal(self, daemon: str, number: Signals) -> None:
        """Send a signal to ``node-N`` or ``metaserver``."""
        process = processes.living(self.dir / daemon / "pid")
        assert process is not None, daemon
        process.signal(number)

    def restart_metaserver(self) -> None:
        """End the metaserver in good order; the supervisor starts a new one."""
        self.local.restart_metaserver()

    def wait_healthy(self, timeout_s: float = HEALTHY_S) -> None:
        """Return when every target serves."""
        self.local.wait_healthy(timeout_s)

    def status(self) -> ClusterStatus:
        """What the manager knows now."""
        return self.local.status()

    def print_logs(self) -> None:
        """Onto standard output, which pytest shows if the test failed."""
        for log in sorted([*self.dir.glob("*/log"), *self.dir.glob("*.log")]):
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            print(f"--- {log}", *lines, sep="\n")

    def __enter__(self) -> RunningCluster:
        metaserver, storageserver = self._settings
        self.local.up(
            self._shape,
            timeout_s=HEALTHY_S,
            metaserver_settings=metaserver,
            storageserver_settings=storageserver,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._opened.close()
        finally:
            self.local.down()
        left = processes_naming(self.dir)
        assert left == [], "processes were left running"


def processes_naming(directory: Path) -> list[str]:
    """Command lines of running processes that name ``directory``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if f"{directory}/" in command or f"{directory} " in command:
            found.append(command)
    return found
