"""A real cluster on one machine: one metaserver, some storageservers, each a process of its own.

``fs3 up`` and ``fs3 down`` are this module with words around it; tests use it as a library. What is
on disk is in :mod:`fs3.client.cluster_directory`; who restarts daemons in
:mod:`fs3.client.supervisor`. Everything binds the loopback only.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fs3 import durable
from fs3.core.types import NodeId, PublicState
from fs3.errors import Code, Fs3Error
from fs3.types import Credentials

from . import processes, supervisor
from .administration import Administration, ClusterStatus
from .cluster_directory import (
    ClusterDirectory,
    NodeSpecification,
    Shape,
    Specification,
    check_against,
    complete_shape,
    kv_targets_of,
    target_ids,
)
from .daemon_configs import Extra, metaserver_config, storageserver_config
from .ports import PortReservation

START_TIMEOUT_S = 60.0
KV_TABLE = 2  # of chains with one replica each
_POLL_S = 0.05
_FAILURES_MAX = 3  # starts in a row: a daemon that ends so often will not come up
_NOT_YET = frozenset({Code.UNREACHABLE, Code.MAYBE_APPLIED, Code.NOT_READY, Code.BUSY})

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    """Progress that nobody watches."""


class LocalCluster:
    """The cluster in ``directory``; nothing is read or started before a method is called."""

    def __init__(self, directory: Path) -> None:
        self.files = ClusterDirectory.at(directory)

    @property
    def directory(self) -> Path:
        """Where it lives, absolute."""
        return self.files.root

    @property
    def specification(self) -> Specification:
        """What it is made of; Fs3Error NOT_FOUND if it was never made."""
        return self.files.read()

    # -- up and down -------------------------------------------------------------------------------

    def up(
        self,
        shape: Shape | None = None,
        *,
        timeout_s: float = START_TIMEOUT_S,
        progress: Progress = _silent,
        metaserver_settings: Extra | None = None,
        storageserver_settings: Extra | None = None,
    ) -> bool:
        """Make the cluster if it is new, start what does not run, return when it is healthy.

        False if it ran already. The settings are written into the configuration of a new cluster.
        Fs3Error INVALID if ``shape`` contradicts what is there, NOT_READY if it does not get
        healthy in time; what was started runs on then, for a look at its logs.
        """
        shape = shape or Shape()
        reservation = None
        durable.make_directory(self.directory)
        with self.files.lock("operation"):
            if self.files.exists():
                check_against(shape, self.specification)
            else:
                reservation = self._make(
                    shape, metaserver_settings or {}, storageserver_settings or {}
                )
            try:
                return self._start(timeout_s, progress)
            finally:
                if reservation is not None:
                    reservation.release()

    def _make(
        self, shape: Shape, metaserver_settings: Extra, storageserver_settings: Extra
    ) -> PortReservation:
        """Lay the directory out; the ports stay reserved until the daemons have them."""
        nodes, per_node, replicas, cluster_id = complete_shape(shape)
        kv_targets = kv_targets_of(shape, per_node)
        reservation = PortReservation(2 + 2 * nodes)
        addresses = iter([f"127.0.0.1:{port}" for port in reservation.ports])
        specification = Specification(
            cluster_id=cluster_id,
            replicas=replicas,
            metaserver_frame_address=next(addresses),
            metaserver_grpc_address=next(addresses),
            nodes=tuple(
                NodeSpecification(
                    node=node,
                    host=f"local-{node}",
                    data_address=next(addresses),
                    control_address=next(addresses),
                    targets=target_ids(node, per_node),
                    kv_targets=target_ids(node, kv_targets, per_node + 1),
                )
                for node in range(1, nodes + 1)
            ),
        )
        durable.make_directory(self.files.metaserver)
        text = metaserver_config(self.files, specification, metaserver_settings)
        durable.write_file(self.files.metaserver / "config.toml", text)
        # All targets share one disk: each may have its part of what is free, so that sums are true.
        capacity_bytes = shutil.disk_usage(self.directory).free
        capacity_bytes //= nodes * (per_node + kv_targets)
        for node in specification.nodes:
            directory = self.files.node(node.node)
            for target in (*node.targets, *node.kv_targets):
                durable.make_directory(directory / f"target-{target}")
            text = storageserver_config(
                self.files, specification, node, capacity_bytes, storageserver_settings
            )
            durable.write_file(directory / "config.toml", text)
        self.files.write(specification)  # last: a directory with it is complete
        return reservation

    def _start(self, timeout_s: float, progress: Progress) -> bool:
        deadline_s = time.monotonic() + timeout_s
        started = not self.is_running()
        if started:
            progress("starting the supervisor and the daemons")
            for directory in self.files.daemon_directories(self.specification):
                (directory / supervisor.FAILURES_FILE).unlink(missing_ok=True)
            supervisor.start(self.files)
        progress("waiting for the storageservers to register")
        self._wait(deadline_s, self._all_registered)
        progress("making chains")
        self._wait(deadline_s, self._make_chains)
        progress("waiting for every target to serve")
        self._wait(deadline_s, self.problems)
        self._give_root_directory()
        return started

    def _give_root_directory(self) -> None:
        """To whoever runs the cluster: root owns it at first, and nobody else could write there."""
        from .api import connect  # loads much; only an ordinary user needs it

        if os.geteuid() == 0:
            return
        root = Credentials(uid=0, gid=0)
        with connect(self.directory, credentials=root) as client:
            if client.stat("/").st_uid == 0:
                client.chown("/", os.geteuid(), os.getegid())

    def down(self) -> list[str]:
        """End everything that runs; data stays. Returns what had to be killed. Idempotent."""
        if not self.directory.is_dir():
            return []
        with self.files.lock("operation"):
            supervisor.stop(self.files)
            return supervisor.stop_everything(self.files)

    # -- health ------------------------------------------------------------------------------------

    def administration(self, timeout_s: float = 10.0) -> Administration:
        """Calls to this cluster's manager; close it after use."""
        found = self.specification
        return Administration([found.metaserver_frame_address], found.cluster_id, timeout_s)

    def status(self) -> ClusterStatus:
        """What the manager knows now; Fs3Error UNREACHABLE if it does not run."""
        with self.administration() as cluster:
            return cluster.status()

    def is_running(self) -> bool:
        """Whether the supervisor runs, and with it, sooner or later, every daemon."""
        return processes.living(self.files.supervisor_file("pid")) is not None

    def problems(self) -> list[str]:
        """What keeps the cluster from being whole; empty if it is healthy."""
        ages_ms = self._ages_ms()
        try:
            status = self.status()
        except Fs3Error as error:
            if error.code not in _NOT_YET:
                raise
            return [f"the metaserver does not answer ({error.detail})"]
        problems = self._unregistered(ages_ms, status) + status.problems
        expected = sum(len(n.targets) + len(n.kv_targets) for n in self.specification.nodes)
        serving = sum(
            target.public_state is PublicState.SERVING or not target.chain
            for target in status.targets
        )
        if serving < expected and not problems:
            problems = [f"{serving} of {expected} targets serve"]
        return problems

    def _all_registered(self) -> list[str]:
        ages_ms = self._ages_ms()
        try:
            return self._unregistered(ages_ms, self.status())
        except Fs3Error as error:
            if error.code not in _NOT_YET:
                raise
            return [f"the metaserver does not answer ({error.detail})"]

    def _make_chains(self) -> list[str]:
        try:
            with self.administration() as cluster:
                made = cluster.routing().tables
                if not made:
                    only = [t for node in self.specification.nodes for t in node.targets]
                    cluster.create_chains(self.specification.replicas, targets=only)
                only = [t for node in self.specification.nodes for t in node.kv_targets]
                if only and KV_TABLE not in made:
                    cluster.create_chains(1, KV_TABLE, targets=only)
        except Fs3Error as error:
            if error.code not in _NOT_YET:
                raise
            return [error.detail]
        return []

    def _ages_ms(self) -> dict[NodeId, int]:
        """How long the process of each node runs; nothing of a node that has none."""
        found = {
            NodeId(node.node): processes.living(self.files.node(node.node) / "pid")
            for node in self.specification.nodes
        }
        return {node: process.age_ms() for node, process in found.items() if process is not None}

    def _unregistered(self, ages_ms: Mapping[NodeId, int], status: ClusterStatus) -> list[str]:
        """Nodes that the manager has not heard of, or not since their process was started.

        Without the latter, a node that has just been killed would look alive for a lease's time.
        ``ages_ms`` must have been taken before the manager was asked: taken behind, by as much as
        its answer was late, they make the last heartbeat of the process before look like one of
        the process that runs.
        """
        heard = {n.info.node: n.heartbeat_age_ms for n in status.nodes if n.info.alive}
        missing = []
        for node in self.specification.nodes:
            age_ms = ages_ms.get(NodeId(node.node))
            if age_ms is None:
                missing.append(f"node {node.node} does not run")
            elif heard.get(NodeId(node.node), age_ms) >= age_ms:
                missing.append(f"node {node.node} has not registered")
        return missing

    def wait_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when every node is alive and every target serves; Fs3Error NOT_READY if late."""
        self._wait(time.monotonic() + timeout_s, self.problems)

    def _wait(self, deadline_s: float, problems: Callable[[], list[str]]) -> None:
        """Poll until there are no problems; at the deadline, say which there are."""
        while found := problems():
            for directory in self.files.daemon_directories(self.specification):
                if failures := _failures(directory):
                    what = f"{directory.name} ended {failures} times right after its start"
                    raise Fs3Error(Code.NOT_READY, f"{what}: {_last_line(directory / 'log')}")
            if time.monotonic() > deadline_s:
                logs = f"see the log files in {self.directory}/*/log"
                raise Fs3Error(Code.NOT_READY, f"not healthy: {'; '.join(found)} ({logs})")
            time.sleep(_POLL_S)

    # -- single daemons ----------------------------------------------------------------------------

    def node_directory(self, node: int) -> Path:
        """Where storageserver ``node`` lives; Fs3Error INVALID if there is none."""
        numbers = [known.node for known in self.specification.nodes]
        if node not in numbers:
            raise Fs3Error(Code.INVALID, f"there is no node {node}; {numbers[0]}-{numbers[-1]} are")
        return self.files.node(node)

    def hold(self, node: int) -> None:
        """From now on the supervisor does not start this node; one that runs stays."""
        directory = self.node_directory(node)
        with self.files.lock("spawn"):
            (directory / "hold").touch()

    def release(self, node: int) -> None:
        """Let the supervisor start it again, now."""
        (self.node_directory(node) / "hold").unlink(missing_ok=True)
        if process := processes.living(self.files.supervisor_file("pid")):
            process.signal(signal.SIGHUP)

    def kill(self, node: int) -> None:
        """SIGKILL to a storageserver; returns when it is gone. The supervisor starts a new one."""
        _end(self.node_directory(node) / "pid", signal.SIGKILL)

    def stop_node(self, node: int) -> None:
        """Hold it, and end it in good order."""
        self.hold(node)
        processes.stop([self.node_directory(node) / "pid"], supervisor.STOP_GRACE_S)

    def is_held(self, node: int) -> bool:
        """Whether the supervisor leaves it down."""
        return (self.node_directory(node) / "hold").exists()

    def restart_metaserver(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the metaserver; the supervisor starts a new one. Returns when the old one is gone."""
        _end(self.files.metaserver / "pid", number)


def _failures(directory: Path) -> int:
    """How often a daemon failed to come up, if that is too often; else 0."""
    try:
        count = int((directory / supervisor.FAILURES_FILE).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: it is being written
        return 0
    return count if count >= _FAILURES_MAX else 0


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2048))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return f"{lines[-1]} ({log})" if lines else f"see {log}"


def _end(pid_file: Path, number: signal.Signals) -> None:
    process = processes.living(pid_file)
    if process is None:
        raise Fs3Error(Code.NOT_FOUND, f"{pid_file.parent.name} does not run")
    process.signal(number)
    if not process.wait_gone(30):
        raise Fs3Error(Code.BUSY, f"{pid_file.parent.name} does not end")
