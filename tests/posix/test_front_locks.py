"""POSIX and flock locks on a mount of the memory file system, between processes."""

from __future__ import annotations

import fcntl
import struct
import subprocess
import sys
import threading

import pytest
from memory_mount import run, why_no_mount

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
]

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def hold(path, call):
    """A process that takes the lock, says so, and keeps it until its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), call],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_lock_excludes_another_process_until_it_ends(folder, call):
    path = folder / "lock"
    path.touch()
    take = getattr(fcntl, call)
    with hold(path, call) as holder, open(path, "r+b") as file:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.stdin.close()
        take(file, fcntl.LOCK_EX)  # waits for the other process to end
    assert holder.returncode == 0


def test_getlk_names_the_process_that_holds_the_range(folder):
    path = folder / "lock"
    path.touch()
    with hold(path, "lockf") as holder, open(path, "r+b") as file:
        holder.stdout.readline()
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        kind, _, start, length, pid = struct.unpack(
            "hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked)
        )
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 0, 0, holder.pid)
        holder.stdin.close()


INTERRUPTED = """
import fcntl, signal, sys
def stop(*_): raise TimeoutError
signal.signal(signal.SIGALRM, stop)
file = open(sys.argv[1], "r+b")
try:
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    fcntl.flock(file, fcntl.LOCK_EX)
except TimeoutError:
    print("interrupted")
"""


def test_signal_ends_a_blocked_lock_and_leaves_nothing_held(folder):
    path = folder / "lock"
    path.touch()
    with open(path, "r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert run(sys.executable, "-c", INTERRUPTED, path) == "interrupted\n"
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_more_waiters_than_workers_do_not_stop_the_mount(folder):
    path = folder / "lock"
    path.touch()
    taken = []

    def wait():
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            taken.append(1)

    with open(path, "r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        threads = [threading.Thread(target=wait) for _ in range(12)]
        for thread in threads:
            thread.start()
        (folder / "other").write_text("served")
        assert (folder / "other").read_text() == "served"
        assert taken == []
    for thread in threads:
        thread.join()
    assert len(taken) == 12
