"""What the tests on mounts share: a node that dies at a point of a workload, trees, logs."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from running_cluster import RunningCluster

WORKLOAD_S = 300.0  # for one program on a loaded machine; a hang, not slowness, is a failure
_POLL_S = 0.05
_MIB = 1 << 20
_UNEXPECTED = re.compile(
    r"callback_failed|handler_failed|Traceback|target_failed|chunk_corrupt|read_corrupt|"
    r"write_failed|accusation_failed|thread_died|fuse_\w+_(failed|malformed|unreadable|refused)|"
    r'"level": "(error|critical)"'
)


class Death:
    """Kills a storageserver when a workload has come to one point, lets it return at another.

    ``with Death(cluster, 2, at=100, until=200) as death: ... death.reached(n)``: progress decides,
    not time. Leaving the block waits until every target serves.
    """

    def __init__(self, cluster: RunningCluster, node: int, *, at: int, until: int) -> None:
        self._cluster = cluster
        self._node = node
        self._at, self._until = at, until
        self._state = "alive"

    def reached(self, progress: int) -> None:
        """Tell how far the workload is."""
        if self._state == "alive" and progress >= self._at:
            self._state = "dead"
            self._cluster.hold(self._node)
            self._cluster.kill(self._node)
        if self._state == "dead" and progress >= self._until:
            self._state = "returned"
            self._cluster.release(self._node)

    def __enter__(self) -> Death:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._state == "dead":
            self._cluster.release(self._node)
        self._cluster.wait_healthy(120.0)
        assert kind or self._state == "returned", f"the workload ended before {self._until}"


def verify_replicas(cluster: RunningCluster) -> None:
    """Every replica of every chunk holds the same."""
    verified = cluster.run("verify", "--patience", "30")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> str:
    """Run a program that must succeed; its output."""
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=WORKLOAD_S,
        check=False,
    )
    assert ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def run_watched(
    command: Sequence[str | Path], measure: Callable[[], int], reached: Callable[[int], None]
) -> None:
    """Run a program that must succeed, telling ``reached`` meanwhile what ``measure`` finds.

    It stands still while it is looked at, so that it does not end before it was found half-way.
    """
    pause = threading.Event()
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        output: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: output.extend(process.stdout or ()))
        reader.start()
        ran_s, slice_s = 0.0, _POLL_S
        while ran_s < WORKLOAD_S:
            pause.wait(slice_s)
            os.killpg(process.pid, signal.SIGSTOP)
            try:
                if process.poll() is not None:
                    break
                began_s = time.monotonic()
                progress = measure()
                ran_s += slice_s
                slice_s = max(_POLL_S, time.monotonic() - began_s)  # for half of the time it runs
                reached(progress)
            finally:
                with suppress(ProcessLookupError):  # all of it has ended
                    os.killpg(process.pid, signal.SIGCONT)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        reader.join()
    assert process.returncode == 0, f"{command}: {process.returncode}\n{''.join(output)}"


def count_files(top: Path) -> int:
    """How many files are below ``top`` now; it may be growing."""
    return sum(len(files) for _, _, files in os.walk(top))


def tree(top: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything below ``top``: kind and permissions, mtime, content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            mtime_ns = status.st_mtime_ns if times else 0
            found[str(path.relative_to(top))] = (oct(status.st_mode), mtime_ns, content)
    return found


class Twins:
    """One file on the mount and one on a local disk, to which the same is done."""

    def __init__(self, mounted: Path, local: Path) -> None:
        self.paths = (mounted, local)
        for path in self.paths:
            path.touch()
        self._open()

    def _open(self) -> None:
        self.files = [os.open(path, os.O_RDWR) for path in self.paths]

    def close(self) -> None:
        for file in self.files:
            os.close(file)

    def both(self, action: Callable[[int], object]) -> None:
        mounted, local = (action(file) for file in self.files)
        assert mounted == local

    def step(self, rng: random.Random) -> None:
        """Something at random."""
        offset, length = rng.randrange(3 * _MIB), rng.choice([1, 100, 4096, 70_000, _MIB])
        match rng.randrange(8):
            case 0 | 1 | 2:
                data = rng.randbytes(length)
                self.both(lambda file: os.pwrite(file, data, offset))
            case 3 | 4:
                self.both(lambda file: os.pread(file, length, offset))
            case 5:
                self.both(lambda file: os.ftruncate(file, offset))
            case 6:
                self.both(lambda file: os.fstat(file).st_size)
            case 7:
                self.close()
                self._open()


class Logs:
    """The logs of a cluster's daemons, supervisor and mounts, from a moment on."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._directory = cluster.dir
        self._expected: list[str] = []
        self._start = {path: path.stat().st_size for path in self._paths()}

    def _paths(self) -> list[Path]:
        patterns = ("*/log", "*.log", "mounts/*.log")
        return sorted({path for pattern in patterns for path in self._directory.glob(pattern)})

    def lines(self) -> list[str]:
        """What has been logged since."""
        found = []
        for path in self._paths():
            with path.open("rb") as file:
                file.seek(self._start.get(path, 0))
                text = file.read().decode(errors="replace")
            found += [f"{path.parent.name}: {line}" for line in text.splitlines()]
        return found

    def expect(self, text: str) -> None:
        """Lines with ``text`` are what the test provokes."""
        self._expected.append(text)

    def unexpected(self) -> list[str]:
        """Lines that tell of a failure, but for those that are expected."""
        return [
            line
            for line in self.lines()
            if _UNEXPECTED.search(line) and not any(text in line for text in self._expected)
        ]
