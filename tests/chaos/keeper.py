"""The test's end of :mod:`keep`, the process that starts all others.

A test that has files open on a mount must not start processes itself. Its child closes what it has
inherited before it becomes another program, the kernel has the mount flush each such file, and the
mount may just be waiting for the daemon that the child is to become.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_KEEP = Path(__file__).with_name("keep.py")


class Keeper:
    """Any thread may call; calls are made one after the other. Use it as a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(_KEEP)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that was started and still runs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _call(self, method: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the keeper has ended"
        done, value = json.loads(answer)
        assert done, f"{method}: {value}"
        return value

    def start(
        self, name: str, command: Sequence[str], directory: Path, log: Path, namespace: Path
    ) -> None:
        """Start a process under a name; the one before it under that name must be gone."""
        where = {"directory": str(directory), "log": str(log), "namespace": str(namespace)}
        self._call("start", name=name, command=list(command), **where)

    def poll(self, name: str) -> int | None:
        """How it has ended; None while it runs."""
        found: int | None = self._call("poll", name=name)
        return found

    def signal(self, name: str, number: int) -> None:
        """Send a signal, if it still runs."""
        self._call("signal", name=name, number=int(number))

    def kill(self, name: str) -> None:
        """SIGKILL; returns when it is gone."""
        self._call("kill", name=name)

    def run(
        self,
        command: Sequence[str],
        text: str = "",
        environ: dict[str, str] | None = None,
        namespace: Path | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, str, str]:
        """Exit status and output of a command that is given ``text`` as its input."""
        where = None if namespace is None else str(namespace)
        status, output, errors = self._call(
            "run",
            command=list(command),
            text=text,
            environ=environ,
            namespace=where,
            timeout_s=timeout_s,
        )
        return status, output, errors
