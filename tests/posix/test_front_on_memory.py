"""Real programs on a real mount of the memory file system, through both fronts."""

from __future__ import annotations

import fcntl
import filecmp
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from memory_filesystem import COUNTERS, OVERWRITE
from memory_mount import identical, memory_mount, run, why_no_mount

# Not subprocess' own way, which forks this process: gRPC, if another test has used it, may not
# survive that in the child.
_BECOME = "import os, sys; os.setuid(65_534); os.execvp(sys.argv[1], sys.argv[1:])"
AS_NOBODY = (sys.executable, "-c", _BECOME)

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
]
TREE = Path("/usr/include/linux")
MIB = 1 << 20


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
    assert found.f_files > found.f_ffree > 1_000_000


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
    run(*AS_NOBODY, "sh", "-c", "echo y >> program", cwd=either)
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
        [*AS_NOBODY, "cat", "secret"], cwd=either, capture_output=True, text=True, check=False
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


def test_what_an_ioctl_wrote_behind_the_kernel_is_read_at_once(tmp_path):
    # One worker: were it to wait for the kernel to forget, it would wait for itself.
    with memory_mount(tmp_path / "mount", "--workers=1") as mountpoint:
        path = mountpoint / "file"
        path.write_bytes(b"old content")
        with path.open("rb") as file:
            for number in range(100):
                expected = b"%4d content" % number
                assert fcntl.ioctl(file, OVERWRITE, b"%4d" % number) is not None
                assert os.pread(file.fileno(), 100, 0)[:4] == expected[:4]


def test_an_unknown_ioctl_is_enotty(direct, tmp_path):
    with (direct / "unknown-ioctl").open("w+b") as file:
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            fcntl.ioctl(file, 1 << 30 | 4 << 16 | 99, b"1234")
        assert not file.isatty()
