"""Real programs on a real mount of the memory file system, through both fronts."""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from memory_filesystem import COUNTERS, GATE
from memory_mount import memory_mount, why_no_mount

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
]
TREE = Path("/usr/include/linux")
MIB = 1 << 20


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    with memory_mount(tmp_path_factory.mktemp("direct") / "mount") as mountpoint:
        yield mountpoint


@pytest.fixture(scope="module")
def fusepy(tmp_path_factory):
    pytest.importorskip("mfusepy", exc_type=(ImportError, OSError))
    with memory_mount(tmp_path_factory.mktemp("fusepy") / "mount", "--front=fusepy") as mountpoint:
        yield mountpoint


def fresh(mountpoint, request):
    path = mountpoint / "".join(c if c.isalnum() else "_" for c in request.node.name)
    path.mkdir()
    return path


@pytest.fixture
def folder(direct, request):
    """A fresh directory on the direct front's mount."""
    return fresh(direct, request)


@pytest.fixture(params=["direct", "fusepy"])
def either(request):
    """A fresh directory on a mount of each front."""
    return fresh(request.getfixturevalue(request.param), request)


def run(*command, **options):
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, **options
    ).stdout


def identical(left, right):
    return run("diff", "-r", left, right) == ""


def test_cp_a_keeps_contents_modes_times_and_links(either, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(70_000))
    (source / "file").chmod(0o640)
    os.utime(source / "file", ns=(10**18 + 1, 10**18 + 2))
    (source / "symlink").symlink_to("file")
    os.link(source / "file", source / "hard")
    run("cp", "-a", source, either)
    copied = os.lstat(either / "source" / "file")
    assert identical(source, either / "source")
    assert (copied.st_mode & 0o777, copied.st_mtime_ns) == (0o640, 10**18 + 2)
    assert os.readlink(either / "source" / "symlink") == "file"
    assert copied.st_nlink == 2
    assert copied.st_ino == os.lstat(either / "source" / "hard").st_ino


def test_tar_in_and_out_is_identical(either, tmp_path):
    run("tar", "-C", TREE.parent, "-cf", either / "tree.tar", TREE.name)
    run("tar", "-C", either, "-xf", either / "tree.tar")
    run("tar", "-C", either, "-cf", tmp_path / "back.tar", TREE.name)
    with tarfile.open(tmp_path / "back.tar") as back:
        back.extractall(tmp_path, filter="tar")
    assert identical(TREE, tmp_path / TREE.name)


def test_git_clone_passes_fsck(either, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(TREE, origin)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    run("git", "init", "-q", origin)
    run("git", "-C", origin, "add", ".")
    run("git", "-C", origin, *identity, "commit", "-qm", "all")
    run("git", "clone", "-q", "--no-hardlinks", origin, either / "clone")
    run("git", "-C", either / "clone", "fsck", "--full", "--strict")
    assert run("git", "-C", either / "clone", "status", "--porcelain") == ""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_keeps_integrity_over_1000_transactions(folder, journal):
    database = sqlite3.connect(folder / "db", isolation_level=None)
    assert database.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    database.execute("create table t (n integer primary key, text)")
    for number in range(1000):
        database.execute("insert into t values (?, ?)", (number, "x" * (number % 97)))
    database.close()
    again = sqlite3.connect(folder / "db")
    assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    assert again.execute("select count(*), sum(n) from t").fetchone() == (1000, 499_500)
    again.close()


def test_rsync_twice_moves_nothing_the_second_time(either):
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    run("rsync", "-a", TREE, either)
    again = run("rsync", "-ai", TREE, either)
    assert identical(TREE, either / TREE.name)
    assert again == ""


def test_dd_writes_and_reads_back_with_direct_io(folder, tmp_path):
    (tmp_path / "data").write_bytes(os.urandom(3 * MIB + 4096))
    run("dd", f"if={tmp_path / 'data'}", f"of={folder / 'data'}", "bs=1M", "oflag=direct")
    run("dd", f"if={folder / 'data'}", f"of={tmp_path / 'back'}", "bs=256K", "iflag=direct")
    assert filecmp.cmp(tmp_path / "data", tmp_path / "back", shallow=False)


def test_large_writes_arrive_as_requests_of_1_mib(folder, direct):
    with open(folder / "big", "wb", buffering=0) as file:
        assert file.write(bytes(4 * MIB)) == 4 * MIB
    assert os.getxattr(direct, COUNTERS).split()[0] == b"%d" % MIB


def test_mv_across_and_rm_r(either, tmp_path):
    shutil.copytree(TREE, either / "tree")
    run("mv", either / "tree", either / "moved")
    assert not (either / "tree").exists()
    run("mv", either / "moved", tmp_path / "out")
    assert identical(TREE, tmp_path / "out")
    run("mv", tmp_path / "out", either / "back")
    run("rm", "-r", either / "back")
    assert os.listdir(either) == []


def test_unlinked_open_file_stays_readable(either):
    with open(either / "file", "w+b") as file:
        file.write(b"still here")
        file.flush()
        os.unlink(either / "file")
        assert not (either / "file").exists()
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_size == 10


def test_unlinked_open_file_has_no_links(folder):
    with open(folder / "file", "wb") as file:
        os.unlink(folder / "file")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.listdir(folder) == []


def test_rename_over_open_file_leaves_the_old_one_readable(either):
    (either / "old").write_bytes(b"old")
    (either / "new").write_bytes(b"new")
    with open(either / "old", "rb") as file:
        os.rename(either / "new", either / "old")
        assert file.read() == b"old"
    assert (either / "old").read_bytes() == b"new"
    assert os.listdir(either) == ["old"]


def test_truncate_down_and_up_reads_zeros(either):
    path = either / "file"
    path.write_bytes(b"x" * 100_000)
    os.truncate(path, 10)
    os.truncate(path, 200_000)
    assert path.read_bytes() == b"x" * 10 + bytes(199_990)


def test_append_goes_to_the_end_whatever_the_offset(either):
    path = either / "log"
    first = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    second = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(10):
        os.write((first, second)[number % 2], b"%d\n" % number)
    os.close(first)
    os.close(second)
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(10))


def test_mmap_shared_reads_and_writes(either):
    path = either / "file"
    path.write_bytes(b"a" * 10_000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[9_999:] == b"a"
        memory[5_000:5_003] = b"bcd"
        memory.flush()
    assert path.read_bytes()[4_999:5_004] == b"abcda"


def test_hard_links_share_data_and_count(either):
    (either / "one").write_bytes(b"data")
    os.link(either / "one", either / "two")
    (either / "two").write_bytes(b"other")
    assert (either / "one").read_bytes() == b"other"
    assert os.stat(either / "one").st_nlink == 2
    os.unlink(either / "one")
    assert os.stat(either / "two").st_nlink == 1


def test_xattrs_round_trip_and_acls_are_refused(either):
    path = either / "file"
    path.touch()
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", bytes(range(256)))
    assert os.listxattr(path) == ["user.a", "user.b"]
    assert os.getxattr(path, "user.b") == bytes(range(256))
    os.removexattr(path, "user.a")
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(path, "user.a")
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.b", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(path, "system.posix_acl_access", bytes(4))


def test_statvfs_shows_space_and_name_length(direct):
    found = os.statvfs(direct)
    assert found.f_blocks * found.f_frsize == 1 << 40
    assert 0 < found.f_bavail <= found.f_blocks
    assert found.f_namemax == 255


def test_names_of_any_bytes_and_255_of_them(either):
    for name in (b"\xff\xfe", "ünï".encode(), b"x" * 255, b" \n"):
        Path(os.fsdecode(bytes(either) + b"/" + name)).touch()
        assert name in os.listdir(bytes(either))
    with pytest.raises(OSError, match="too long"):
        (either / ("x" * 256)).touch()


def test_listing_of_5000_names_is_complete_and_has_dots(either):
    names = {f"a-rather-long-name-to-fill-pages-{number:05}" for number in range(5000)}
    for name in names:
        os.mknod(either / name)
    assert set(os.listdir(either)) == names
    assert {entry.name for entry in os.scandir(either) if entry.stat().st_size == 0} == names
    assert run("ls", "-a", either).split()[:2] == [".", ".."]


def test_sparse_file_has_data_and_holes_where_they_are(folder):
    with open(folder / "sparse", "w+b") as file:
        file.truncate(4 * MIB)
        os.pwrite(file.fileno(), b"data", MIB)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == MIB
        assert os.lseek(file.fileno(), MIB, os.SEEK_HOLE) == MIB + 65_536
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(file.fileno(), 2 * MIB, os.SEEK_DATA)


def test_fallocate_reserves_and_punches(either):
    path = either / "file"
    path.write_bytes(b"x" * 200_000)
    run("fallocate", "--punch-hole", "--offset", "65536", "--length", "65536", path)
    run("fallocate", "--length", "300000", path)
    data = path.read_bytes()
    assert data == b"x" * 65_536 + bytes(65_536) + b"x" * 68_928 + bytes(100_000)


def test_copy_file_range_copies_inside_the_file_system(folder):
    (folder / "source").write_bytes(bytes(range(256)) * 1000)
    with open(folder / "source", "rb") as source, open(folder / "target", "wb") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), 100_000, 1_000)
    assert copied == 100_000
    assert (folder / "target").read_bytes() == (bytes(range(256)) * 1000)[1_000:101_000]


def test_set_uid_goes_when_an_unprivileged_user_writes(either):
    path = either / "program"
    path.write_bytes(b"x")
    path.chmod(0o6777)
    either.chmod(0o777)
    run("sh", "-c", "echo y >> program", user=65_534, cwd=either)
    assert path.stat().st_mode & 0o7777 == 0o777


def test_set_gid_directory_hands_its_group_down(either):
    os.chown(either, -1, 1234)
    either.chmod(0o2755)
    (either / "file").touch()
    (either / "directory").mkdir()
    assert (either / "file").stat().st_gid == 1234
    assert (either / "directory").stat().st_mode & 0o2000


def test_permissions_are_checked_for_other_users(either):
    (either / "secret").write_text("x")
    (either / "secret").chmod(0o600)
    done = subprocess.run(
        ["cat", "secret"], cwd=either, user=65_534, capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr


def test_device_nodes_fifos_and_times_are_kept(either):
    os.mkfifo(either / "fifo")
    os.mknod(either / "device", 0o020600, os.makedev(10, 229))
    assert os.stat(either / "device").st_rdev == os.makedev(10, 229)
    assert (either / "fifo").is_fifo()
    os.utime(either / "fifo", ns=(-5, -1_500_000_000))
    assert os.stat(either / "fifo").st_mtime_ns == -1_500_000_000


# -- rename2 ---------------------------------------------------------------------------------------


def test_rename_noreplace_refuses_and_exchange_swaps(either):
    (either / "a").write_text("a")
    (either / "b").mkdir()
    with pytest.raises(FileExistsError):
        renameat2(either / "a", either / "b", 1)
    renameat2(either / "a", either / "b", 2)
    assert (either / "a").is_dir()
    assert (either / "b").read_text() == "a"
    renameat2(either / "b", either / "c", 1)
    assert sorted(os.listdir(either)) == ["a", "c"]


def renameat2(old, new, flags):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


# -- locks -----------------------------------------------------------------------------------------

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
    import struct

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
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
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


# -- caching and concurrency -----------------------------------------------------------------------


def test_one_slow_operation_does_not_stop_others(folder):
    path = folder / "gate"
    path.touch()
    answers = []
    slow = threading.Thread(target=lambda: answers.append(os.getxattr(path, GATE)))
    slow.start()
    (folder / "other").write_text("x" * 100_000)
    assert (folder / "other").read_text() == "x" * 100_000
    assert answers == []
    os.setxattr(path, GATE, b"open")
    slow.join()
    assert answers == [b"open"]


def test_pages_are_kept_between_opens_while_the_version_stands(folder, direct):
    path = folder / "file"
    path.write_bytes(b"1" * 10_000)
    path.read_bytes()
    before = int(os.getxattr(direct, COUNTERS).split()[1])
    path.read_bytes()
    kept = int(os.getxattr(direct, COUNTERS).split()[1])
    path.write_bytes(b"2" * 10_000)
    assert kept == before + 1
    assert path.read_bytes() == b"2" * 10_000


def test_concurrent_readers_see_the_same_bytes(either):
    data = os.urandom(8 * MIB)
    (either / "data").write_bytes(data)
    wanted = hashlib.sha256(data).hexdigest()
    readers = [
        subprocess.Popen(["sha256sum", str(either / "data")], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for reader in readers:
        out, _ = reader.communicate()
        assert out.split()[0].decode() == wanted


# -- whole suites, options, life -------------------------------------------------------------------


def test_pythons_own_shutil_tests_pass_on_the_mount(folder):
    pytest.importorskip("test.test_shutil", reason="Python's test package is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "test", "test_shutil"],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("option", ["--direct-io", "--writeback-cache"])
def test_contents_survive_under_other_caching_options(tmp_path, option):
    with memory_mount(tmp_path / "mount", option) as mountpoint:
        shutil.copytree(TREE, mountpoint / "tree")
        assert identical(TREE, mountpoint / "tree")
        with open(mountpoint / "log", "ab") as first, open(mountpoint / "log", "ab") as second:
            first.write(b"one")
            first.flush()
            second.write(b"two")
        assert (mountpoint / "log").read_bytes() == b"onetwo"


def test_stop_ends_a_mount_that_is_in_use(tmp_path):
    with memory_mount(tmp_path / "mount") as mountpoint:
        file = open(mountpoint / "file", "w+b", buffering=0)  # noqa: SIM115 - outlives the mount
        file.write(b"x")
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.pread(file.fileno(), 1, 0)
    with pytest.raises(OSError, match=r"not connected|abort"):
        file.close()


def test_umount_by_somebody_else_ends_the_server(tmp_path):
    with memory_mount(tmp_path / "mount") as mountpoint:
        run("umount", mountpoint)
