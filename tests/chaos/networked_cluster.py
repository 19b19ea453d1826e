"""A cluster whose daemons and clients each have a network of their own.

The directory is that of a local cluster (``fs3 verify --dir`` and clients read it), but nobody
supervises the daemons: the test starts, kills, stops and restarts them.

    metaserver, node-1 ... node-N     the daemons
    client-1 ... client-M             where clients and mounts run
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fs3.client import mounts
from fs3.client.administration import Administration, ClusterStatus
from fs3.client.api import Client, connect
from fs3.client.cluster_directory import (
    ClusterDirectory,
    NodeSpecification,
    Specification,
    target_ids,
)
from fs3.client.daemon_configs import Extra, metaserver_config, storageserver_config
from fs3.core.types import PublicState
from fs3.errors import Code, Fs3Error

from .keeper import Keeper
from .namespaces import Network

WAIT_S = 120.0  # for anything that must happen, on a loaded machine
PATIENCE_S = 6.0  # of a client at work, for one operation; longer than any lease
_POLL_S = 0.1
_LOG_LINES = 40
_NOT_YET = frozenset({Code.UNREACHABLE, Code.MAYBE_APPLIED, Code.NOT_READY, Code.BUSY})

METASERVER: Extra = {
    "chunk_bytes": 65536,
    "manager": {"lease_ms": 1500, "heartbeat_ms": 250, "tick_ms": 50},
}
STORAGESERVER: Extra = {"unreachable_ms": 1500}


def wait_for(condition: Callable[[], str | None], timeout_s: float = WAIT_S) -> None:
    """Until ``condition`` has no complaint any more; AssertionError with the last one."""
    deadline_s = time.monotonic() + timeout_s
    while complaint := condition():
        assert time.monotonic() < deadline_s, f"after {timeout_s} s still: {complaint}"
        time.sleep(_POLL_S)


class NetworkedCluster:
    """Use as a context manager: whole inside, nothing left behind."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        targets_per_node: int = 2,
        clients: int = 3,
        metaserver_settings: Extra | None = None,
        disks: Mapping[str, Path] | None = None,
    ) -> None:
        """``disks``: where the targets of a node are, if not in its directory."""
        self.files = ClusterDirectory.at(directory)
        self.nodes = tuple(f"node-{n}" for n in range(1, nodes + 1))
        self.daemons = ("metaserver", *self.nodes)
        self.clients = tuple(f"client-{n}" for n in range(1, clients + 1))
        self._keeper = Keeper()
        self.network = Network((*self.daemons, *self.clients), self._keeper)
        self._targets_per_node = targets_per_node
        self._settings = {**METASERVER, **(metaserver_settings or {})}
        self._disks = disks or {}
        self._started_s: dict[str, float] = {}
        self._opened = ExitStack()

    # -- life -------------------------------------------------------------------------------------

    def __enter__(self) -> NetworkedCluster:
        try:
            self._opened.enter_context(self._keeper)
            self._opened.enter_context(self.network)
            self._lay_out()
            for daemon in self.daemons:
                self.start(daemon)
            wait_for(self._make_chains)
            self.wait_healthy()
        except BaseException:
            self.print_logs()
            self._opened.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.print_logs()
        self._opened.close()

    def _lay_out(self) -> None:
        address = self.network.address
        specification = Specification(
            cluster_id="chaos",
            replicas=len(self.nodes),
            metaserver_frame_address=f"{address('metaserver')}:7450",
            metaserver_grpc_address=f"{address('metaserver')}:7451",
            nodes=tuple(
                NodeSpecification(
                    node=number,
                    host=name,
                    data_address=f"{address(name)}:7460",
                    control_address=f"{address(name)}:7461",
                    targets=target_ids(number, self._targets_per_node),
                )
                for number, name in enumerate(self.nodes, 1)
            ),
        )
        self.files.metaserver.mkdir(parents=True)
        text = metaserver_config(self.files, specification, self._settings)
        (self.files.metaserver / "config.toml").write_text(text)
        for node in specification.nodes:
            directory = self.files.node(node.node)
            disk = self._disks.get(f"node-{node.node}", directory)
            directory.mkdir(parents=True)
            for target in node.targets:
                (disk / f"target-{target}").mkdir()
                if disk != directory:
                    (directory / f"target-{target}").symlink_to(disk / f"target-{target}")
            text = storageserver_config(self.files, specification, node, 1 << 30, STORAGESERVER)
            (directory / "config.toml").write_text(text)
        self.files.write(specification)

    # -- daemons ----------------------------------------------------------------------------------

    def start(self, daemon: str) -> None:
        """Start it, in its own network."""
        module = "metaserver" if daemon == "metaserver" else "storageserver"
        directory = self.files.root / daemon
        command = [sys.executable, "-m", f"fs3.{module}", "--config", "config.toml"]
        self._keeper.start(
            daemon, command, directory, directory / "log", self.network.namespace(daemon)
        )
        self._started_s[daemon] = time.monotonic()

    def kill(self, daemon: str) -> None:
        """SIGKILL; returns when it is gone."""
        self._keeper.kill(daemon)

    def signal(self, daemon: str, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT, ..."""
        self._keeper.signal(daemon, number)

    def repair(self) -> None:
        """Every cut is healed, every daemon runs."""
        self.network.heal()
        for daemon in self.daemons:
            if self._keeper.poll(daemon) is None:
                self._keeper.signal(daemon, signal.SIGCONT)
            else:
                self.start(daemon)

    # -- health -----------------------------------------------------------------------------------

    @contextmanager
    def administration(self, place: str = "client-1") -> Iterator[Administration]:
        """Calls to the manager."""
        with self.network.inside(place):
            address = self.files.read().metaserver_frame_address
            with Administration([address], "chaos", 5.0) as calls:
                yield calls

    def status(self) -> ClusterStatus:
        """What the manager knows now; one that is slow or starting is waited for."""
        found: list[ClusterStatus] = []

        def complaint() -> str | None:
            try:
                with self.administration() as calls:
                    found.append(calls.status())
            except Fs3Error as error:
                if error.code not in _NOT_YET:
                    raise
                return f"the metaserver does not answer ({error.detail})"
            return None

        wait_for(complaint)
        return found[0]

    def members(self) -> list[str]:
        """The nodes of the first chain, head first; one that just had its lease late is waited for.

        On a loaded machine a node may be out for a moment, and is the tail when it has returned.
        """
        nodes: list[str] = []

        def complaint() -> str | None:
            nodes[:] = [f"node-{replica.node}" for replica in self.status().chains[0].serving]
            return None if len(nodes) == len(self.nodes) else f"only {nodes} serve"

        wait_for(complaint)
        return nodes

    def _make_chains(self) -> str | None:
        try:
            with self.administration() as calls:
                if len(calls.status().nodes) < len(self.nodes):
                    return "not every node has registered"
                if not calls.routing().chains:
                    # Of all of them: chains of those that are open by now would be all there are.
                    calls.create_chains(len(self.nodes), targets=self._targets())
        except Fs3Error as error:
            if error.code not in _NOT_YET:
                raise
            return error.detail
        return None

    def _targets(self) -> list[int]:
        return [int(target) for node in self.files.read().nodes for target in node.targets]

    def problem(self) -> str | None:
        """What keeps the cluster from being whole."""
        # Before the manager is asked: what it heard of a daemon before must be older than this.
        now_s = time.monotonic()
        for daemon in self.daemons:
            ended = self._keeper.poll(daemon)
            if ended is not None:
                return f"{daemon} has ended with {ended}"
        try:
            with self.administration() as calls:
                status = calls.status()
        except Fs3Error as error:
            if error.code not in _NOT_YET:
                raise
            return f"the metaserver does not answer ({error.detail})"
        found = status.problems
        for node in status.nodes:
            age_s = now_s - self._started_s[f"node-{node.info.node}"]
            if node.heartbeat_age_ms >= age_s * 1000:
                found.append(f"node {node.info.node} was not heard since its start")
        serving = [t for t in status.targets if t.public_state is PublicState.SERVING]
        if len(serving) < len(self.nodes) * self._targets_per_node:
            found.append(f"only {len(serving)} targets serve")
        return "; ".join(found) or None

    def wait_healthy(self) -> None:
        """Return when every target serves."""
        wait_for(self.problem)

    def verify(self) -> None:
        """Every replica of every chunk holds the same."""
        status, said = self.fs3("verify", "--patience", "30")
        assert status == 0, said

    # -- clients ----------------------------------------------------------------------------------

    @contextmanager
    def client(self, place: str, timeout_s: float = 20.0) -> Iterator[Client]:
        """A native client, for the calling thread, which is at ``place`` meanwhile."""
        with (
            self.network.inside(place),
            connect(
                self.files.root,
                timeout_s=timeout_s,
                metadata_timeout_s=timeout_s,
                connect_timeout_s=60,
            ) as client,
        ):
            yield client

    def mount(self, place: str) -> Path:
        """A FUSE mount whose process is at ``place``; unmounted with the cluster."""
        mountpoint = self.files.root / f"mount-{place}"
        mountpoint.mkdir()
        status, said = self.fs3("mount", str(mountpoint), place=place)
        assert status == 0, said
        files = mounts.MountFiles(self.files.mounts, mounts.absolute(mountpoint))
        self._opened.callback(mounts.force_unmount, files)
        return mountpoint

    def fs3(self, *arguments: str, place: str = "client-1") -> tuple[int, str]:
        """Run the command at ``place``: its exit status, and what it says."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FS3_")}
        status, output, errors = self._keeper.run(
            [sys.executable, "-m", "fs3.client.cli.main", *arguments],
            environ={**environ, "FS3_DIR": str(self.files.root), "COLUMNS": "200"},
            namespace=self.network.namespace(place),
            timeout_s=WAIT_S,
        )
        return status, output + errors

    def print_logs(self) -> None:
        """Onto standard output, which pytest shows if the test failed."""
        root = self.files.root
        for log in sorted([*root.glob("*/log"), *root.glob("mounts/*.log")]):
            lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            print(f"--- {log}", *lines, sep="\n")


def wait_until_out(cluster: NetworkedCluster, node: str) -> None:
    """Until the manager has taken every target of a node out of its chains."""
    number = int(node.removeprefix("node-"))

    def complaint() -> str | None:
        chains = cluster.status().chains
        serves = [c.chain for c in chains for r in c.serving if r.node == number]
        return f"node {number} still serves chains {serves}" if serves else None

    wait_for(complaint)
