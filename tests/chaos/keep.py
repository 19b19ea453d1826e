"""Starts, signals and ends processes for a test: a process of its own, which :mod:`keeper` starts.

A line of JSON on standard input, ``[method, {arguments}]``, is a call of :class:`Keep`, answered by
a line. At the end of the input everything that was started and still runs is killed: so nothing
outlives its test. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str) -> None:
    """The calling thread goes into the network namespace that this path names."""
    with open(namespace) as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, f"{namespace}: {os.strerror(error)}")


@contextmanager
def inside(namespace: str | None) -> Iterator[None]:
    """The calling thread is there meanwhile; None: where it is."""
    if namespace is None:
        yield
        return
    with open("/proc/thread-self/ns/net") as before:
        enter(namespace)
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")


class Keep:
    """What may be called."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, command: list[str], directory: str, log: str, namespace: str
    ) -> None:
        """Start a process, in a directory and a network namespace."""
        with inside(namespace), open(log, "ab") as output:
            self._processes[name] = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def poll(self, name: str) -> int | None:
        """How it has ended; None while it runs."""
        return self._processes[name].poll()

    def signal(self, name: str, number: int) -> None:
        """Send a signal, if it still runs."""
        self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL; returns when it is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def run(
        self,
        command: list[str],
        text: str = "",
        environ: dict[str, str] | None = None,
        namespace: str | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, str, str]:
        """Exit status and output of a command that was given ``text`` as its input."""
        with inside(namespace):
            ended = subprocess.run(
                command,
                input=text,
                env=environ,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        return ended.returncode, ended.stdout, ended.stderr

    def end(self) -> None:
        """Kill what is left."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


def main() -> None:
    keep = Keep()
    try:
        for line in sys.stdin:
            method, arguments = json.loads(line)
            try:
                answer = True, getattr(keep, method)(**arguments)
            except (OSError, subprocess.SubprocessError) as error:
                answer = False, repr(error)
            print(json.dumps(answer), flush=True)
    finally:
        keep.end()


if __name__ == "__main__":
    main()
