"""Processes are known by pid and start time: the right one is stopped, and nobody else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fs3 import durable
from fs3.client import mounts, processes
from fs3.errors import Code, Fs3Error

STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(1000)"
)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = processes.spawn(
        ["sleep", "1000"], record=tmp_path / "pid", log=tmp_path / "log", environ=os.environ
    )
    yield process
    process.kill()
    process.wait()


def test_spawned_process_has_recorded_itself(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    record = processes.living(tmp_path / "pid")
    assert record is not None
    assert record.pid == sleeper.pid
    assert record.command_line() == "sleep 1000"


def test_stop_ends_the_process_and_removes_its_record(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert processes.stop([tmp_path / "pid"], grace_s=10) == []
    assert sleeper.wait(10) == -signal.SIGTERM
    assert not (tmp_path / "pid").exists()


def test_a_process_that_got_a_recorded_pid_is_left_alone(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    record = processes.read_record(tmp_path / "pid")
    assert record is not None
    for stranger in (
        replace(record, start_ticks=record.start_ticks - 1),
        replace(record, boot_id="of an earlier boot"),
    ):
        assert not stranger.is_alive()
        assert not stranger.signal(signal.SIGKILL)
        assert stranger.wait_gone(0)
    assert sleeper.poll() is None


def test_another_users_process_is_named(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    record = processes.read_record(tmp_path / "pid")
    assert record is not None
    monkeypatch.setattr(signal, "pidfd_send_signal", refused)
    with pytest.raises(Fs3Error, match=f"process {sleeper.pid} is another user's") as caught:
        record.signal(signal.SIGKILL)
    assert caught.value.code is Code.ACCESS


def test_a_mount_that_cannot_be_recorded_says_how_else_to_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, text: str) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(durable, "write_file", refused)
    with pytest.raises(Fs3Error, match="--address and --cluster-id") as caught:
        mounts.start(tmp_path / "mounts", str(tmp_path / "mnt"), [])
    assert caught.value.code is Code.ACCESS


def test_a_dead_mount_in_the_way_is_to_be_unmounted_first(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "mounted_devices", lambda mountpoint: ["0:99"])
    with pytest.raises(Fs3Error, match=r"mounted already.*`fs3 umount` it first") as caught:
        mounts.start(tmp_path, "/mnt/fs3", [])
    assert caught.value.code is Code.EXISTS
    record = (tmp_path / "pid").read_text()
    mounts.MountFiles(tmp_path, "/mnt/fs3").path("pid").write_text(record)
    with pytest.raises(Fs3Error, match=r"mounted already$"):
        mounts.start(tmp_path, "/mnt/fs3", [])


def test_a_zombie_counts_as_ended(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    record = processes.read_record(tmp_path / "pid")
    assert record is not None
    assert record.signal(signal.SIGKILL)
    assert record.wait_gone(10)  # nobody has reaped it
    assert not record.is_alive()
    assert processes.living(tmp_path / "pid") is None


def test_what_ignores_sigterm_is_killed_and_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUBBORN]
    log = tmp_path / "log"
    process = processes.spawn(command, record=tmp_path / "pid", log=log, environ=os.environ)
    while b"ready" not in log.read_bytes():
        assert process.poll() is None
        os.sched_yield()
    killed = processes.stop([tmp_path / "pid"], grace_s=0.05)
    assert len(killed) == 1
    assert sys.executable in killed[0]
    assert process.wait(10) == -signal.SIGKILL


def test_a_stopped_process_ends_too(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    assert processes.stop([tmp_path / "pid"], grace_s=10) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_an_illegible_record_names_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    assert processes.living(tmp_path / "pid") is None
    assert processes.stop([tmp_path / "pid"], grace_s=1) == []


DETACHING = """
import os, sys, time
from pathlib import Path
from fs3.client import processes
ready = processes.detach(Path(sys.argv[1], "pid"), Path(sys.argv[1], "log"))
if sys.argv[2] == "fail":
    raise SystemExit("the disk is full")
if sys.argv[2] == "fail slowly":
    os.closerange(3, 64)
    time.sleep(0.3)
    raise SystemExit("the disk is full")
ready()
sys.stdin.read()
time.sleep(1000)
"""


def _detaching(directory: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DETACHING, str(directory), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_starter_returns_when_the_detached_process_is_ready(tmp_path: Path) -> None:
    result = _detaching(tmp_path, "succeed")
    assert (result.returncode, result.stderr) == (0, "")
    record = processes.living(tmp_path / "pid")
    assert record is not None
    processes.stop([tmp_path / "pid"], grace_s=10)
    assert not record.is_alive()


@pytest.mark.parametrize("how", ["fail", "fail slowly"])
def test_starter_says_why_the_detached_process_failed(tmp_path: Path, how: str) -> None:
    result = _detaching(tmp_path, how)
    assert result.returncode == 1
    assert result.stderr.strip() == "the disk is full"
    assert processes.living(tmp_path / "pid") is None
