"""A replica whose disk is full: ENOSPC to whoever writes, nothing lost, space that comes back."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounted import Logs, verify_replicas
from running_cluster import RunningCluster

from fs3.client import processes
from fs3.client.api import Client
from fs3.client.cluster_directory import Shape
from fs3.errors import Code, Fs3Error

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]

MIB = 1 << 20
ONE_CHAIN = Shape(nodes=3, targets_per_node=1)
CAPACITY_BYTES = 24 * MIB
FILE_BYTES = 3 * MIB + 1000
FILES_MAX = 200
PROMPT_GC = {"gc": {"interval_ms": 200}}


@pytest.fixture(params=[1, 2, 3], ids=["head", "middle", "tail"])
def limited(request, make_cluster: Callable[..., RunningCluster]) -> Iterator[RunningCluster]:
    """A cluster of one chain, one replica of which may hold no more than CAPACITY_BYTES."""
    cluster = make_cluster(ONE_CHAIN, PROMPT_GC)
    (chain,) = cluster.status().chains
    node = chain.replicas[request.param - 1].node
    config = cluster.dir / f"node-{node}" / "config.toml"
    text = config.read_text()
    config.write_text(re.sub(r"capacity_bytes = \d+", f"capacity_bytes = {CAPACITY_BYTES}", text))
    cluster.kill(node)
    cluster.wait_healthy()
    with Unharmed(cluster):
        yield cluster


@pytest.fixture
def on_tmpfs(
    tmp_path: Path, make_cluster: Callable[..., RunningCluster]
) -> Iterator[RunningCluster]:
    """A cluster of one chain, one replica of which is on a small file system of its own."""
    target = tmp_path / "cluster-0" / "node-2" / "target-201"
    target.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320m", "fs3-test", target],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr!r}")
    try:
        cluster = make_cluster(ONE_CHAIN, PROMPT_GC)
        with Unharmed(cluster):
            yield cluster
        cluster.local.down()
    finally:
        subprocess.run(["umount", "-l", target], check=True)


class Unharmed:
    """Every daemon stays the same process, and nothing unexpected is logged."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster

    def _pids(self) -> dict[str, object]:
        daemons = ["metaserver", "node-1", "node-2", "node-3"]
        return {name: processes.living(self._cluster.dir / name / "pid") for name in daemons}

    def __enter__(self) -> None:
        self._logs, self._before = Logs(self._cluster), self._pids()
        self._logs.expect('"error": "NO_SPACE: ')  # the mount tells what it could not write

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            assert self._pids() == self._before
            assert self._logs.unexpected() == []


def fill(write: Callable[[str, bytes], object]) -> tuple[dict[str, bytes], OSError]:
    """Write files until there is no room: those that were acknowledged, and the error."""
    rng, written = random.Random(41), {}
    for number in range(FILES_MAX):
        name, content = f"f{number}", rng.randbytes(FILE_BYTES)
        try:
            write(name, content)
        except OSError as error:
            return written, error
        written[name] = content
    pytest.fail(f"{FILES_MAX} files of {FILE_BYTES} bytes found room")


def write_when_there_is_room(write: Callable[[], object]) -> None:
    """Removed files are freed in the background."""
    pause = threading.Event()
    for _ in range(300):
        try:
            write()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            pause.wait(0.1)
        else:
            return
    pytest.fail("deleting freed no space")


def check_full_and_free(cluster: RunningCluster, client: Client) -> None:
    written, error = fill(lambda name, content: client.write(f"/{name}", content))
    assert isinstance(error, Fs3Error)
    assert error.code is Code.NO_SPACE, error
    assert error.errno == errno.ENOSPC
    assert len(written) >= 3
    for target in cluster.status().targets:
        assert target.used_bytes <= target.capacity_bytes
    # Full is not broken: everything acknowledged is read, and can be named, listed, removed.
    assert {name: client.read(f"/{name}") for name in written} == written
    client.mkdir("/folder")
    client.rename("/f0", "/folder/f0")
    written["folder/f0"] = written.pop("f0")
    with pytest.raises(Fs3Error) as caught:
        client.write("/more", os.urandom(2 * FILE_BYTES))
    assert caught.value.code is Code.NO_SPACE
    for name in ("more", f"f{len(written)}"):
        if client.exists(f"/{name}"):
            client.unlink(f"/{name}")
    verify_replicas(cluster)
    cluster.wait_healthy()
    for name in sorted(written)[:-1]:
        client.unlink(f"/{name}")
        del written[name]
    content = os.urandom(FILE_BYTES)
    write_when_there_is_room(lambda: client.write("/again", content))
    assert client.read("/again") == content
    assert {name: client.read(f"/{name}") for name in written} == written
    verify_replicas(cluster)


def test_a_full_replica_refuses_and_recovers(limited):
    check_full_and_free(limited, limited.client())


def test_a_full_file_system_refuses_and_recovers(on_tmpfs):
    check_full_and_free(on_tmpfs, on_tmpfs.client())


def test_what_is_there_survives_overwrites_that_find_no_room(limited):
    client = limited.client()
    written, _ = fill(lambda name, content: client.write(f"/{name}", content))
    for name, old in written.items():
        new = os.urandom(len(old))
        with client.open_file(f"/{name}", "r+b") as file:
            try:
                file.pwrite(new[:1000], 500)
                file.fsync()
                written[name] = old[:500] + new[:1000] + old[1500:]
            except Fs3Error as error:
                if error.code is not Code.NO_SPACE:
                    raise
    assert {name: client.read(f"/{name}") for name in written} == written
    verify_replicas(limited)


@pytest.mark.fuse
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_programs_on_a_mount_are_told_that_the_disk_is_full(limited):
    mount = limited.mount()

    def write(name: str, content: bytes) -> None:
        with (mount / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    written, error = fill(write)
    assert error.errno == errno.ENOSPC, error
    copied = subprocess.run(
        ["cp", mount / "f0", mount / "copy"], capture_output=True, text=True, check=False
    )
    assert copied.returncode == 1
    assert "No space left on device" in copied.stderr
    assert {name: (mount / name).read_bytes() for name in written} == written
    for path in list(mount.iterdir())[2:]:
        path.unlink()
    write_when_there_is_room(lambda: write("again", b"x" * FILE_BYTES))
    assert (mount / "again").read_bytes() == b"x" * FILE_BYTES
    verify_replicas(limited)
