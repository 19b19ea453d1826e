"""A mount of a real cluster under real programs, and two mounts side by side."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_cluster import RunningCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse here"),
    pytest.mark.skipif(
        os.geteuid() != 0 and shutil.which("fusermount3") is None,
        reason="mounting needs root or fusermount3",
    ),
]

LIBRARY = Path(sysconfig.get_path("stdlib"))


@pytest.fixture
def mount(cluster: RunningCluster, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own on a mount of its own."""
    name = request.node.name
    place = cluster.mount(name) / name
    place.mkdir()
    return place


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def content(tree: Path) -> dict[str, bytes]:
    """Every file below ``tree``."""
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }


def test_a_tree_is_copied_packed_and_unpacked_without_a_difference(mount):
    source = LIBRARY / "email"
    run("cp", "-a", source, mount / "copy")
    run("tar", "cf", mount / "packed.tar", "-C", mount, "copy")
    (mount / "unpacked").mkdir()
    run("tar", "xf", mount / "packed.tar", "-C", mount / "unpacked")
    assert content(mount / "copy") == content(mount / "unpacked" / "copy") == content(source)
    for path in source.rglob("*.py"):
        copy = mount / "copy" / path.relative_to(source)
        assert copy.stat().st_mtime_ns == path.stat().st_mtime_ns
        assert copy.stat().st_mode == path.stat().st_mode
    shutil.rmtree(mount / "copy")
    assert not (mount / "copy").exists()


def test_a_database_keeps_its_transactions(mount):
    database = sqlite3.connect(mount / "db")
    database.execute("create table t (a integer primary key, b text)")
    for i in range(20):
        with database:
            database.execute("insert into t (b) values (?)", (str(i) * 50,))
    assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    database.close()
    again = sqlite3.connect(mount / "db")
    assert again.execute("select count(*) from t").fetchall() == [(20,)]
    again.close()


def test_git_commits_and_checks(mount):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "gc.auto=0"]
    run("git", "init", "-q", cwd=mount)
    run("cp", "-r", LIBRARY / "json", mount / "json")
    run("git", "add", ".", cwd=mount)
    run(*git, "commit", "-qm", "all of it", cwd=mount)
    run("git", "fsck", "--strict", cwd=mount)
    assert run("git", "status", "--short", cwd=mount) == ""


def test_what_one_mount_closed_the_other_opens(cluster, mount):
    other = cluster.mount("second") / mount.name
    path = mount / "f"
    for round_number in range(5):
        text = f"round {round_number} " * (100 + round_number)
        path.write_text(text)
        assert (other / "f").read_text() == text
        path, other = other / "f", path.parent  # and the other way round
    (mount / "g").write_text("put in its place")
    (mount / "g").rename(mount / "f")
    assert path.read_text() == (mount / "f").read_text() == "put in its place"
    with path.open("a") as appending, (mount / "f").open("a") as other_appending:
        for i in range(6):
            (appending, other_appending)[i % 2].write(str(i))
            (appending, other_appending)[i % 2].flush()
    assert path.read_text() == "put in its place012345"


def test_the_client_and_the_mount_see_the_same_files(cluster, mount):
    client = cluster.client()
    client.write(f"/{mount.name}/by-client", b"x" * 3_000_000)
    assert (mount / "by-client").read_bytes() == b"x" * 3_000_000
    (mount / "by-mount").write_bytes(b"y" * 3_000_000)
    assert client.read(f"/{mount.name}/by-mount") == b"y" * 3_000_000


def test_reads_and_writes_ride_out_the_death_of_a_storageserver(cluster, mount):
    """What is asked while a chain re-forms waits; nothing fails, nothing is lost."""
    files = {mount / str(i): os.urandom(2_000_000) for i in range(6)}
    for path, data in files.items():
        path.write_bytes(data)
    victim = cluster.local.specification.nodes[1].node
    cluster.hold(victim)
    cluster.kill(victim)
    late = {mount / f"late-{i}": os.urandom(2_000_000) for i in range(3)}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: item[0].write_bytes(item[1]), late.items()))
    files |= late
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert {path: path.read_bytes() for path in files} == files
    cluster.release(victim)
    cluster.wait_healthy()
    verified = cluster.run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
