"""Real programs on a mount of a real cluster, also while a storageserver dies and returns."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mounted import Death, count_files, run, run_watched, tree, verify_replicas
from running_cluster import RunningCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

FILES = 300
COMMITS = 5
TRANSACTIONS = 1000
ROWS = 5


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of some hundred files and several commits."""
    top = tmp_path_factory.mktemp("repository")
    identity = {
        f"GIT_{who}_{what}": "test@fs3"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    run("git", "init", "-q", top)
    rng = random.Random(11)
    for commit in range(COMMITS):
        for number in range(commit, FILES, 1 if commit == 0 else 7):
            path = top / f"folder-{number % 17}" / f"sub-{number % 5}" / f"file-{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 5000, 40_000])))
        (top / f"link-{commit}").symlink_to("folder-3/sub-3/file-3")
        (top / "script").write_text(f"echo {commit}\n")
        (top / "script").chmod(0o755)
        run("git", "-C", top, "add", "-A")
        run("git", "-C", top, "commit", "-q", "-m", f"commit {commit}", **identity)
    return top


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's standard library without its tests, with links and unusual permissions."""
    top = tmp_path_factory.mktemp("library") / "library"
    ignore = shutil.ignore_patterns(
        "__pycache__",
        "test",
        "tests",
        "site-packages",
        "dist-packages",
        "*.so",
        "idlelib",
        "config-*",
    )
    shutil.copytree(sysconfig.get_path("stdlib"), top, symlinks=True, ignore=ignore)
    (top / "to-a-file").symlink_to("os.py")
    (top / "to-a-folder").symlink_to("json")
    (top / "to-nothing").symlink_to("x" * 1000)
    for permissions in (0o400, 0o444, 0o600, 0o711, 0o755, 0o777, 0o1755):
        path = top / f"permissions-{permissions:o}"
        path.write_bytes(b"%o" % permissions)
        path.chmod(permissions)
        os.utime(path, ns=(1, 1_234_567_890_123_456_789 + permissions))
    (top / "empty-folder").mkdir(mode=0o2750)
    return top


@pytest.fixture
def victim(request: pytest.FixtureRequest) -> int | None:
    """The storageserver that dies half-way, if any."""
    return request.param


Dying = Callable[[int], "Death | Calm"]


class Calm:
    """Nobody dies."""

    def reached(self, progress: int) -> None:
        """Nothing to do."""

    def __enter__(self) -> Calm:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to wait for."""


@pytest.fixture
def dying(cluster: RunningCluster, victim: int | None) -> Iterator[Dying]:
    """``dying(total)``: at a third of a workload of ``total`` steps, until two thirds."""
    yield (
        lambda total: (
            Calm()
            if victim is None
            else Death(cluster, victim, at=total // 3, until=total * 2 // 3)
        )
    )
    verify_replicas(cluster)


@needs("git")
@pytest.mark.parametrize("victim", [None, 1], indirect=True, ids=["calm", "node-dies"])
def test_git_clones_and_finds_nothing_wrong(mount, repository, dying):
    target = mount / "clone"
    with dying(FILES) as death:
        run_watched(
            ["git", "clone", "--no-local", repository, target],
            lambda: count_files(target),
            death.reached,
        )
    run("git", "-C", target, "fsck", "--full", "--strict")
    assert run("git", "-C", target, "status", "--porcelain") == ""
    log = run("git", "-C", target, "log", "--format=%H %T").splitlines()
    assert log == run("git", "-C", repository, "log", "--format=%H %T").splitlines()
    assert len(log) == COMMITS
    found, expected = tree(target, times=False), tree(repository, times=False)
    assert {k: v for k, v in found.items() if not k.startswith(".git")} == {
        k: v for k, v in expected.items() if not k.startswith(".git")
    }


@needs("tar")
@pytest.mark.parametrize("victim", [None, 2], indirect=True, ids=["calm", "node-dies"])
def test_tar_in_and_out_keeps_everything(mount, library, dying, tmp_path):
    archive, target = mount / "library.tar", mount / "extracted"
    target.mkdir()
    run("tar", "--format=posix", "-C", library, "-cf", archive, ".")
    with dying(count_files(library)) as death:
        run_watched(
            ["tar", "-C", target, "-xpf", archive], lambda: count_files(target), death.reached
        )
    expected = tree(library)
    assert tree(target) == expected
    run("tar", "--format=posix", "-C", target, "-cf", tmp_path / "out.tar", ".")
    back = tmp_path / "back"
    back.mkdir()
    run("tar", "-C", back, "-xpf", tmp_path / "out.tar")
    assert tree(back) == expected


@pytest.mark.parametrize(
    ("victim", "journal"),
    [(None, "truncate"), (3, "delete")],
    indirect=["victim"],
    ids=["calm", "node-dies"],
)
def test_sqlite_keeps_every_transaction(mount, dying, journal):
    path = mount / "database"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as database:
        assert database.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
        database.execute("create table t (number integer primary key, payload blob)")
        rng = random.Random(5)
        expected = []
        with dying(TRANSACTIONS) as death:
            for transaction in range(TRANSACTIONS):
                rows = [
                    (transaction * ROWS + i, rng.randbytes(rng.randrange(2000)))
                    for i in range(ROWS)
                ]
                database.execute("begin")
                database.executemany("insert into t values (?, ?)", rows)
                # Each tenth is taken back: what was in the file before must be there again.
                database.execute("rollback" if transaction % 10 == 9 else "commit")
                expected += [] if transaction % 10 == 9 else rows
                death.reached(transaction)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert database.execute("select * from t order by number").fetchall() == expected


@needs("rsync")
def test_a_second_rsync_copies_nothing(mount, library):
    target = mount / "copy"
    run("rsync", "-a", f"{library}/", target)
    assert tree(target) == tree(library)
    assert run("rsync", "-a", "--itemize-changes", f"{library}/", target) == ""
    assert run("rsync", "-a", "--checksum", "--itemize-changes", f"{library}/", target) == ""


def test_cp_keeps_everything_and_hard_links(mount, library):
    run("cp", "-a", library, mount / "first")
    os.link(mount / "first/os.py", mount / "first/also-os.py")
    run("cp", "-a", mount / "first", mount / "second")
    assert tree(mount / "second") == tree(mount / "first")
    one, two = (mount / "second" / name for name in ("os.py", "also-os.py"))
    assert one.stat().st_ino == two.stat().st_ino
    assert one.stat().st_nlink == 2
    run("rm", "-r", mount / "first")
    assert os.listdir(mount) == ["second"]


def test_pythons_own_test_of_shutil_passes(mount):
    pytest.importorskip("test.test_shutil", reason="needs Python's own tests")
    command = [sys.executable, "-m", "test", "test_shutil", "test_tempfile", "-v"]
    ended = subprocess.run(
        command,
        env={**os.environ, "TMPDIR": str(mount), "TEMP": str(mount), "TMP": str(mount)},
        cwd=mount,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-4000:]
