"""The supervisor of a local cluster: starts its daemons, restarts one that dies, ends them.

``python -m fs3.client.supervisor DIR``, started by :mod:`fs3.client.local_cluster`. One thread that
waits for signals, children's deaths among them, with a timeout.

- A daemon that ends is started again: after 0.2 s, doubling to 5 s while it keeps ending, and from
  0.2 s again once it has run for 30 s.
- A daemon whose directory holds a file ``hold`` is not started until the file is gone. The file is
  made under ``spawn.lock``, under which daemons are started: after that, no new one comes up.
- The ports of one that is down are kept for it: else another cluster that is made meanwhile might
  be given them, and it would never come up again.
- How often in a row it ended by itself soon after its start is in its directory, in the file
  ``failures``: it does not come up. One that others end (SIGKILL, or in good order) does.
- What goes wrong here (no space left, no process to be had) is logged, and tried again.
- SIGTERM: no more restarts, then mounts and daemons are ended, then the supervisor itself.
- SIGHUP: look at the ``hold`` files now.
- If the supervisor is killed, daemons run on; a new one adopts them by their records, and
  ``fs3 down`` ends them by their records.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fs3.errors import Code, Fs3Error
from fs3.log import configure_logging, get_logger
from fs3.transport.address import parse

from . import mounts, processes
from .cluster_directory import ClusterDirectory, Specification
from .ports import KeptPorts

RESTART_S_MIN = 0.2
RESTART_S_MAX = 5.0
HEALTHY_AFTER_S = 30.0
START_S_MAX = 5.0  # one that ends sooner did not come up
STOP_GRACE_S = 8.0
_BY_OTHERS = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # 0: SIGTERM, in good order
_POLL_S = 0.5  # how late an adopted daemon's death, or a hold file, may be noticed

FAILURES_FILE = "failures"  # in a daemon's directory: how often it ended soon after its start

_log = get_logger("fs3.client.supervisor")


class Backoff:
    """When a daemon that ended may be started again. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self.failures = 0  # in a row: starts after which it did not come up
        self._wait_s = RESTART_S_MIN
        self._started_s: float | None = None
        self.not_before_s = 0.0

    def started(self, now_s: float) -> None:
        """The daemon was started."""
        self._started_s = now_s

    def runs(self, now_s: float) -> None:
        """The daemon was found alive."""
        if self._started_s is not None and now_s - self._started_s >= START_S_MAX:
            self.failures = 0

    def ended(self, now_s: float, *, by_itself: bool = True) -> None:
        """The daemon was found dead, or could not be started."""
        ran_s = 0.0 if self._started_s is None else now_s - self._started_s
        if ran_s >= HEALTHY_AFTER_S:
            self.forget()
        self.failures = self.failures + 1 if by_itself and ran_s < START_S_MAX else 0
        self.not_before_s = now_s + self._wait_s
        self._wait_s = min(self._wait_s * 2, RESTART_S_MAX)
        self._started_s = None

    def forget(self) -> None:
        """The daemon was ended on purpose: start it at once when it may run again."""
        self._wait_s = RESTART_S_MIN
        self.not_before_s = 0.0
        self.failures = 0


class Daemon:
    """One daemon of the cluster, run from its own directory."""

    def __init__(self, cluster: ClusterDirectory, directory: Path, ports: KeptPorts) -> None:
        self.name = directory.name
        self._ports = ports
        self._cluster = cluster
        self._directory = directory
        self._record = directory / "pid"
        module = "metaserver" if directory == cluster.metaserver else "storageserver"
        config = str(directory / "config.toml")
        self._command = [sys.executable, "-m", f"fs3.{module}", "--config", config]
        self._backoff = Backoff()
        self._child: subprocess.Popen[bytes] | None = None
        self._running: processes.ProcessRecord | None = None
        self._told_failures = 0  # that the file says

    def step(self, now_s: float) -> float:
        """Start it if it should run and does not. Returns when to look again, at the latest."""
        if self._running is not None and not self._running.is_alive():
            self._running = None
            status = self._reap()
            if self._held():
                self._backoff.forget()  # it was stopped by order, however soon after its start
            else:
                self._backoff.ended(now_s, by_itself=status not in _BY_OTHERS)
            _log.warning("daemon_ended", daemon=self.name, how=_how_it_ended(status))
        try:
            return self._keep(now_s)
        except (OSError, subprocess.SubprocessError) as error:  # the latter: of the child's start
            self._backoff.ended(now_s)
            _log.error("daemon_not_started", daemon=self.name, reason=str(error))
            return self._backoff.not_before_s

    def _keep(self, now_s: float) -> float:
        if self._running is None:
            self._running = processes.living(self._record)
            if self._running is not None:
                _log.info("daemon_adopted", daemon=self.name, pid=self._running.pid)
                self._backoff.started(now_s)
        else:
            self._backoff.runs(now_s)
        self._tell_failures()
        if self._running is not None:
            return now_s + _POLL_S
        self._ports.keep()
        if self._held():
            self._backoff.forget()
            return now_s + _POLL_S
        if now_s < self._backoff.not_before_s:
            return self._backoff.not_before_s
        self._start(now_s)
        return now_s + _POLL_S

    def _held(self) -> bool:
        return (self._directory / "hold").exists()

    def _start(self, now_s: float) -> None:
        with self._cluster.lock("spawn"):
            if self._held():
                return
            self._child = processes.spawn(
                self._command,
                record=self._record,
                log=self._directory / "log",
                environ=_daemon_environment(),
                directory=self._directory,
            )
        self._running = processes.read_record(self._record)
        self._backoff.started(now_s)
        _log.info("daemon_started", daemon=self.name, pid=self._child.pid)

    def _tell_failures(self) -> None:
        failures = self._backoff.failures
        if failures == self._told_failures:
            return
        self._told_failures = failures
        try:
            (self._directory / FAILURES_FILE).write_text(f"{failures}\n")
        except OSError as error:  # whoever waits for the daemon waits until his time is up
            _log.error("failures_not_told", daemon=self.name, reason=str(error))

    def _reap(self) -> int | None:
        """How it ended, as Popen says it; None if it was not our child."""
        child, self._child = self._child, None
        return None if child is None else child.wait()


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "unknown: adopted from an earlier supervisor"
    return f"exit code {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def ports_of(specification: Specification, daemon: str) -> list[int]:
    """Those of ``metaserver`` or ``node-N``."""
    if daemon == "metaserver":
        addresses = [
            specification.metaserver_frame_address,
            specification.metaserver_grpc_address,
        ]
    else:
        (node,) = (n for n in specification.nodes if f"node-{n.node}" == daemon)
        addresses = [node.data_address, node.control_address]
    return [parse(address)[1] for address in addresses]


def _daemon_environment() -> dict[str, str]:
    """Ours, without what would override every daemon's own configuration file."""
    return {key: value for key, value in os.environ.items() if not key.startswith("FS3_")}


def stop_everything(cluster: ClusterDirectory) -> list[str]:
    """End mounts, then daemons. Returns what had to be killed. No supervisor may run any more.

    Mounts go first: what they have not written yet needs the daemons.
    """
    killed = mounts.unmount_all(cluster.mounts)
    with cluster.lock("spawn"):
        records = [cluster.metaserver / "pid", *sorted(cluster.root.glob("node-*/pid"))]
    return killed + processes.stop(records, STOP_GRACE_S)


def supervise(cluster: ClusterDirectory) -> None:
    """Keep the daemons running until SIGTERM or SIGINT, then end everything."""
    specification = cluster.read()
    daemons = [
        Daemon(cluster, directory, KeptPorts(ports_of(specification, directory.name)))
        for directory in cluster.daemon_directories(specification)
    ]
    handled = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    # A blocked signal whose action is to be ignored would be dropped, not kept: name an action.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        now_s = time.monotonic()
        next_s = min(daemon.step(now_s) for daemon in daemons)
        received = signal.sigtimedwait(handled, max(0.0, next_s - time.monotonic()))
        if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
            break
    _log.info("supervisor_stopping")
    for command in stop_everything(cluster):
        _log.warning("daemon_killed", command=command)


def main() -> None:
    """Entry point of the process: detaches, so that the caller returns when it is recorded."""
    parser = argparse.ArgumentParser(prog="fs3.client.supervisor", description=__doc__)
    parser.add_argument("directory", type=Path, help="the local cluster's directory")
    cluster = ClusterDirectory.at(parser.parse_args().directory)
    with cluster.supervisor_file("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # one runs already
        ready = processes.detach(cluster.supervisor_file("pid"), cluster.supervisor_file("log"))
        configure_logging()
        _log.info("supervisor_started", directory=str(cluster.root))
        ready()
        supervise(cluster)
        cluster.supervisor_file("pid").unlink(missing_ok=True)
    _log.info("supervisor_stopped")


def start(cluster: ClusterDirectory) -> None:
    """Start a supervisor, unless one runs; returns when it is recorded."""
    command = [sys.executable, "-m", "fs3.client.supervisor", str(cluster.root)]
    result = subprocess.run(command, cwd=cluster.root, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise Fs3Error(Code.NOT_READY, f"the supervisor did not start: {last}")


def stop(cluster: ClusterDirectory, timeout_s: float = 30.0) -> None:
    """End the supervisor, and with it whatever it looks after; kill it if it takes too long."""
    processes.stop([cluster.supervisor_file("pid")], timeout_s)


if __name__ == "__main__":
    main()
