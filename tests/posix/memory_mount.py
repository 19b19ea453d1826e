"""Runs a memory file system's server as a process of its own, mounted on a directory.

Of its own, because a process that serves a mount must not wait for that mount while it holds the
interpreter's lock, which starting a program does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("serve_memory.py")
STOP_TIMEOUT_S = 60


def why_no_mount() -> str | None:
    """What keeps this machine from mounting, or None."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not ours to open"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "neither root nor fusermount3"
    return None


@contextmanager
def memory_mount(mountpoint: Path, *options: str) -> Iterator[Path]:
    """Serve on ``mountpoint``; at the end the server must unmount, exit 0, log no error."""
    mountpoint.mkdir()
    log_path = mountpoint.with_suffix(".log")
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, str(SERVER), str(mountpoint), *options],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert server.stdout is not None
    with server.stdout:
        try:
            ready = server.stdout.readline()
            assert ready == b"ready\n", log_path.read_text()
            yield mountpoint
        finally:
            if os.path.ismount(mountpoint):  # else it is ending by itself
                server.terminate()
            code = server.wait(STOP_TIMEOUT_S)
    logged = log_path.read_text()
    assert code == 0, logged
    assert "ERROR" not in logged, logged
    assert not os.path.ismount(mountpoint)


def run(*command: object, **options: Any) -> str:
    """What a program says; it must succeed."""
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, **options
    ).stdout


def identical(left: Path, right: Path) -> bool:
    """Whether two trees have the same names and contents."""
    return run("diff", "-r", left, right) == ""
