"""``fs3 mount`` and ``umount`` on a real cluster: mounts come, serve, and go without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from running_cluster import RunningCluster, processes_naming

from fs3.client import mounts, processes
from fs3.client.cluster_directory import Shape

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.fuse,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root; this is an ordinary user"),
]
SMALL = Shape(nodes=1, targets_per_node=1)


def pid_file(cluster: RunningCluster, mountpoint: Path) -> Path:
    return mounts.MountFiles(cluster.local.files.mounts, str(mountpoint)).path("pid")


@contextmanager
def held_open(path: Path) -> Iterator[int]:
    """A new file that a program keeps open, whatever happens to its file system meanwhile."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # closing says that the mount is gone
            os.close(descriptor)


@pytest.mark.parametrize("front", ["direct", "fusepy"])
def test_what_is_written_through_one_mount_is_read_through_another(
    cluster: RunningCluster, front: str
) -> None:
    if front == "fusepy":
        pytest.importorskip("mfusepy", exc_type=(ImportError, OSError))
    one = cluster.mount(f"one-{front}", "--front", front)
    two = cluster.mount(f"two-{front}", "--front", front)
    data = os.urandom(3_000_000)
    (one / f"file-{front}").write_bytes(data)
    assert (two / f"file-{front}").read_bytes() == data
    assert cluster.client().read(f"/file-{front}") == data


def test_unmounting_stores_what_was_written_and_ends_the_process(cluster: RunningCluster) -> None:
    mountpoint = cluster.mount("ends")
    process = processes.living(pid_file(cluster, mountpoint))
    assert process is not None
    (mountpoint / "stored").write_bytes(b"stored" * 100_000)
    cluster.run("umount", str(mountpoint), check=True)
    assert not process.is_alive()
    assert mounts.mounted_devices(str(mountpoint)) == []
    assert os.listdir(mountpoint) == []
    assert cluster.client().read("/stored") == b"stored" * 100_000
    again = cluster.run("umount", str(mountpoint))
    assert (again.returncode, "not an fs3 mount" in again.stderr) == (1, True)


def test_a_mount_in_use_is_unmounted_only_by_force(cluster: RunningCluster) -> None:
    mountpoint = cluster.mount("busy")
    with held_open(mountpoint / "held") as file:
        refused = cluster.run("umount", str(mountpoint))
        assert refused.returncode == 1
        assert "--force" in refused.stderr
        assert os.write(file, b"still works") == 11
        cluster.run("umount", "--force", str(mountpoint), check=True)
        assert mounts.mounted_devices(str(mountpoint)) == []
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.fstatvfs(file)
    assert processes.living(pid_file(cluster, mountpoint)) is None


def test_a_directory_is_mounted_once(cluster: RunningCluster) -> None:
    mountpoint = cluster.mount("once")
    second = cluster.run("mount", str(mountpoint))
    assert second.returncode == 1
    assert "is mounted already" in second.stderr
    assert len(mounts.mounted_devices(str(mountpoint))) == 1


def test_a_read_only_mount_refuses_changes(cluster: RunningCluster) -> None:
    cluster.client().write("/read-me", b"1")
    mountpoint = cluster.mount("read-only", "--read-only")
    assert (mountpoint / "read-me").read_bytes() == b"1"
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "new").touch()


def test_a_mount_without_a_cluster_fails_with_one_line(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    address = ("--address", "127.0.0.1:1", "--cluster-id", "none")
    result = cluster.run("mount", str(tmp_path / "mnt"), *address)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "UNREACHABLE" in result.stderr
    assert mounts.mounted_devices(str(tmp_path / "mnt")) == []


def test_a_foreground_mount_ends_with_its_terminal(cluster: RunningCluster, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    command = [sys.executable, "-m", "fs3.client.cli.main", "mount", "-f", str(mountpoint)]
    with subprocess.Popen([*command, "--dir", str(cluster.dir)], stdout=subprocess.PIPE) as process:
        while not mounts.mounted_devices(str(mountpoint)):
            assert process.poll() is None
            os.sched_yield()
        (mountpoint / "from-the-foreground").write_bytes(b"1")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert mounts.mounted_devices(str(mountpoint)) == []
    assert cluster.client().read("/from-the-foreground") == b"1"


@pytest.mark.parametrize("killed_before", [False, True])
def test_down_takes_mounts_in_use_along(make_cluster, killed_before: bool) -> None:
    cluster = make_cluster(SMALL)
    mountpoint = cluster.mount("used")
    with held_open(mountpoint / "open"):
        if killed_before:  # leaves a mount point that answers nobody
            process = processes.living(pid_file(cluster, mountpoint))
            assert process is not None
            process.signal(signal.SIGKILL)
            assert process.wait_gone(10)
        cluster.local.down()
        assert mounts.mounted_devices(str(mountpoint)) == []
        assert processes_naming(cluster.dir) == []
