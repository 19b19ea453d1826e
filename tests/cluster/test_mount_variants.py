"""Mounts with other options, and files of other chunk sizes, under the same strict work."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import random
from pathlib import Path

import pytest
from mounted import Death, Logs, Twins, run, tree, verify_replicas
from running_cluster import RunningCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

OPTIONS = {
    "writeback": ("--writeback-cache",),
    "one-worker": ("--workers", "1"),
    "fusepy": ("--front", "fusepy"),
}


@pytest.fixture(params=OPTIONS)
def variant(request, cluster: RunningCluster, logs: Logs) -> Path:
    """A directory on a mount with one of the options; the mount stays for the module."""
    if request.param == "fusepy" and not (
        importlib.util.find_spec("mfusepy") and ctypes.util.find_library("fuse3")
    ):
        pytest.skip("needs mfusepy and libfuse3")
    top = cluster.dir.parent / f"{cluster.dir.name}-{request.param}"
    if not top.exists():
        assert cluster.mount(request.param, *OPTIONS[request.param]) == top
    folder = top / "".join(c if c.isalnum() else "_" for c in request.node.name)
    folder.mkdir()
    return folder


def remote(path: Path) -> str:
    """The native client's path of a file in a variant's directory."""
    return f"/{path.parent.name}/{path.name}"


def compare(cluster: RunningCluster, twins: Twins, rng: random.Random, steps: int) -> None:
    client = cluster.client()
    mounted, local = twins.paths
    try:
        for _ in range(steps):
            twins.step(rng)
        os.fsync(twins.files[0])
        assert client.read(remote(mounted)) == local.read_bytes()
        for _ in range(steps // 3):
            twins.step(rng)
    finally:
        twins.close()
    assert client.read(remote(mounted)) == local.read_bytes()
    assert mounted.read_bytes() == local.read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_random_operations_match_a_local_file(variant, cluster, tmp_path, seed):
    compare(cluster, Twins(variant / "f", tmp_path / "f"), random.Random(seed), 150)


def test_trees_come_back_as_they_were(variant, tmp_path):
    rng = random.Random(3)
    for number in range(60):
        path = tmp_path / "tree" / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 10, 5000, 300_000])))
        os.utime(path, ns=(1, 10**18 + number))
    (tmp_path / "tree" / "link").symlink_to("d1/f1")
    run("cp", "-a", tmp_path / "tree", variant / "one")
    run("cp", "-a", variant / "one", variant / "two")
    expected = tree(tmp_path / "tree")
    assert tree(variant / "one") == expected
    assert tree(variant / "two") == expected
    run("tar", "--format=posix", "-C", variant, "-cf", variant / "one.tar", "one")
    run("rm", "-r", variant / "one")
    run("tar", "-C", variant, "-xpf", variant / "one.tar")
    assert tree(variant / "one") == expected


def test_programs_work(variant):
    run("git", "init", "-q", variant / "repository")
    for number in range(30):
        (variant / "repository" / f"f{number}").write_bytes(os.urandom(number * 1000))
    run("git", "-C", variant / "repository", "add", "-A")
    who = ("-c", "user.name=t", "-c", "user.email=t@fs3")
    run("git", "-C", variant / "repository", *who, "commit", "-q", "-m", "first")
    run("git", "clone", "-q", "--no-local", variant / "repository", variant / "clone")
    run("git", "-C", variant / "clone", "fsck", "--full", "--strict")
    for number in range(30):
        with (variant / "log").open("a") as log:
            log.write(f"{number}\n")
    assert (variant / "log").read_text() == "".join(f"{n}\n" for n in range(30))


@pytest.mark.parametrize("chunk_bytes", [64 << 10, 256 << 10, 4 << 20, 64 << 20])
def test_files_of_any_chunk_size_match_a_local_file(mount, cluster, tmp_path, chunk_bytes):
    cluster.client().set_layout(f"/{mount.name}", chunk_bytes=chunk_bytes)
    compare(cluster, Twins(mount / "f", tmp_path / "f"), random.Random(chunk_bytes), 150)
    with cluster.local.administration() as calls:
        routing, inode = calls.routing(), (mount / "f").stat().st_ino
        lengths = [c.length_bytes for t in routing.targets for c in calls.scan(routing, t, inode)]
    assert max(lengths, default=0) <= chunk_bytes


def test_small_chunks_survive_a_death(mount, cluster, tmp_path):
    cluster.client().set_layout(f"/{mount.name}", chunk_bytes=64 << 10)
    twins, rng = Twins(mount / "f", tmp_path / "f"), random.Random(9)
    with Death(cluster, 3, at=50, until=120) as death:
        for step in range(150):
            twins.step(rng)
            death.reached(step)
    twins.close()
    assert (mount / "f").read_bytes() == (tmp_path / "f").read_bytes()
    verify_replicas(cluster)
