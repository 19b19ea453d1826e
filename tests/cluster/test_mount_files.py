"""Files on a mount of a real cluster, compared with the native client and with a local file."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import Popen

import pytest
from mounted import WORKLOAD_S, Twins, run
from running_cluster import RunningCluster

from fs3.client.api import Client

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

CHUNK = 1 << 20
BIG_BYTES = 310 * CHUNK + 12_345
NOBODY = 65534


@pytest.fixture
def client(cluster: RunningCluster) -> Client:
    return cluster.client()


def remote(mount: Path, name: str = "") -> str:
    """The native client's path of ``mount / name``."""
    return f"/{mount.name}/{name}".rstrip("/")


def blocks(total: int, seed: int) -> Iterator[bytes]:
    """``total`` random bytes, a chunk at a time."""
    rng = random.Random(seed)
    while total:
        length = min(total, CHUNK)
        yield rng.randbytes(length)
        total -= length


def digest(parts: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.1)):
        if condition():
            return
        pause.wait(0.1)
    pytest.fail(f"not in {timeout_s} s: {what}")


@pytest.mark.long
def test_a_big_file_written_on_the_mount_is_read_by_the_native_client(mount, client):
    with (mount / "big").open("wb") as file:
        for block in blocks(BIG_BYTES, 1):
            file.write(block)
    assert client.stat(remote(mount, "big")).st_size == BIG_BYTES
    with client.open(remote(mount, "big"), "rb") as file:
        assert digest(iter(lambda: file.read(3_333_333), b"")) == digest(blocks(BIG_BYTES, 1))
    (mount / "big").unlink()


@pytest.mark.long
def test_a_big_file_written_by_the_native_client_is_read_on_the_mount(mount, client):
    with client.open(remote(mount, "big"), "wb") as file:
        for block in blocks(BIG_BYTES, 2):
            file.write(block)
    assert (mount / "big").stat().st_size == BIG_BYTES
    expected = digest(blocks(BIG_BYTES, 2))
    assert run("sha256sum", mount / "big").split()[0] == expected
    assert run("sha256sum", mount / "big").split()[0] == expected
    (mount / "big").unlink()


def test_holes_read_as_zeros_and_count_in_the_size(mount, client):
    path, end = mount / "sparse", 40 * CHUNK + 17
    with path.open("wb") as file:
        file.seek(5 * CHUNK + 100)
        file.write(b"island")
        file.truncate(end)
    expected = bytearray(end)
    expected[5 * CHUNK + 100 : 5 * CHUNK + 106] = b"island"
    assert path.stat().st_size == end
    assert path.read_bytes() == expected
    assert client.read(remote(mount, "sparse")) == expected


def test_what_was_cut_off_comes_back_as_zeros(mount, client):
    path, content = mount / "cut", os.urandom(3 * CHUNK)
    for keep in (2 * CHUNK + 1, CHUNK, 4097, 1, 0):
        path.write_bytes(content)
        os.truncate(path, keep)
        assert path.stat().st_size == keep
        os.truncate(path, len(content))
        expected = content[:keep] + bytes(len(content) - keep)
        assert path.read_bytes() == expected
        assert client.read(remote(mount, "cut")) == expected


def test_who_has_a_replaced_file_open_keeps_its_old_content(mount):
    old, new = os.urandom(2 * CHUNK), os.urandom(CHUNK)
    (mount / "target").write_bytes(old)
    (mount / "source").write_bytes(new)
    with (mount / "target").open("rb") as opened:
        assert opened.read(10) == old[:10]
        os.rename(mount / "source", mount / "target")
        assert (mount / "target").read_bytes() == new
        opened.seek(0)
        assert opened.read() == old
    assert (mount / "target").read_bytes() == new
    assert os.listdir(mount) == ["target"]


def test_an_unlinked_file_lives_until_its_last_close_and_then_its_space_is_freed(mount, cluster):
    content = os.urandom(6 * CHUNK)
    (mount / "gone").write_bytes(content)
    inode = (mount / "gone").stat().st_ino
    with cluster.local.administration() as calls:
        routing = calls.routing()

        def chunks() -> int:
            return sum(len(list(calls.scan(routing, t, inode))) for t in routing.targets)

        assert chunks() == 6 * 3
        with (mount / "gone").open("r+b") as opened:
            os.unlink(mount / "gone")
            assert not (mount / "gone").exists()
            opened.write(b"still writable")
            opened.flush()
            opened.seek(0)
            assert opened.read() == b"still writable" + content[14:]
            assert chunks() == 6 * 3
        eventually(lambda: chunks() == 0, "no chunk of the removed file is left")


APPENDER = """
import os, sys
from fs3.client.api import connect
kind, target, name, count, cluster = sys.argv[1:]
native = connect(cluster) if kind == "native" else None

def append(records):
    if native:
        with native.open_file(target, "ab") as file:
            for record in records:
                assert file.write(record) == len(record)
    else:
        file = os.open(target, os.O_WRONLY | os.O_APPEND)
        for record in records:
            assert os.write(file, record) == len(record)
        os.close(file)

for start in range(0, int(count), 10):
    numbers = range(start, start + 10)
    append([f"<{name}:{i:05}:{'x' * (i * 37 % 5000)}>\\n".encode() for i in numbers])
"""


@pytest.mark.long
def test_appends_of_many_processes_on_the_mount_and_native_never_overlap(mount, client, cluster):
    path, count = mount / "log", 60
    path.write_bytes(b"")
    targets = {"mount": str(path), "native": remote(mount, "log")}
    names = [f"{kind}-{n}" for kind in targets for n in range(3)]
    processes = []
    for name in names:
        kind = name.split("-")[0]
        arguments = (kind, targets[kind], name, str(count), str(cluster.dir))
        processes.append(Popen([sys.executable, "-c", APPENDER, *arguments]))
    assert [process.wait(WORKLOAD_S) for process in processes] == [0] * len(processes)
    content = client.read(remote(mount, "log"))
    assert path.read_bytes() == content
    expected = {f"<{n}:{i:05}:{'x' * (i * 37 % 5000)}>" for n in names for i in range(count)}
    lines = content.decode().splitlines()
    assert len(lines) == len(expected)
    assert set(lines) == expected
    for name in names:  # each in its own order
        mine = [line for line in lines if line.startswith(f"<{name}:")]
        assert mine == sorted(mine)


def test_appends_of_two_mounts_in_turns_follow_each_other(mount, cluster):
    """Each write crosses borders of pages that its kernel has not read."""
    path, other = mount / "log", cluster.mount("appender") / mount.name / "log"
    lengths = [5000, 4096, 100_000, 1_000_000, 3]
    path.write_bytes(b"")
    expected = b""
    with path.open("ab", buffering=0) as here, other.open("ab", buffering=0) as there:
        for turn in range(40):
            record = bytes([turn]) * lengths[turn % len(lengths)]
            assert (there if turn % 3 else here).write(record) == len(record)
            expected += record
    assert path.read_bytes() == expected
    assert other.read_bytes() == expected


def test_what_was_appended_is_read_through_the_same_descriptor(mount, client):
    path = mount / "log"
    path.write_bytes(b"start")
    with path.open("a+b", buffering=0) as file:
        client.write(remote(mount, "log"), b"it was replaced")
        file.write(b"mine")
        file.seek(0)
        assert file.read() == b"it was replacedmine"
        file.seek(3)
        file.write(b"again")
        assert os.fstat(file.fileno()).st_size == 24
    assert path.read_bytes() == b"it was replacedmineagain"


def test_hard_links_share_one_file(mount, client):
    (mount / "a").write_bytes(b"one")
    os.link(mount / "a", mount / "b")
    assert (mount / "a").stat().st_nlink == 2
    (mount / "b").write_bytes(b"another")
    assert (mount / "a").read_bytes() == b"another"
    assert (mount / "a").stat().st_ino == (mount / "b").stat().st_ino
    (mount / "a").unlink()
    assert (mount / "b").stat().st_nlink == 1
    assert client.read(remote(mount, "b")) == b"another"
    (mount / "folder").mkdir()
    with pytest.raises(PermissionError):
        os.link(mount / "folder", mount / "no")


def test_symbolic_links(mount, client):
    (mount / "folder").mkdir()
    (mount / "folder/file").write_bytes(b"x")
    for name, target in (("f", "folder/file"), ("d", "folder"), ("n", "nowhere"), ("loop", "loop")):
        os.symlink(target, mount / name)
        assert os.readlink(mount / name) == target
        assert client.readlink(remote(mount, name)) == target
        assert (mount / name).lstat().st_size == len(target)
    assert (mount / "f").read_bytes() == (mount / "d/file").read_bytes() == b"x"
    assert client.read(remote(mount, "d/file")) == b"x"
    for name, number in (("n", errno.ENOENT), ("loop", errno.ELOOP)):
        for read in (
            lambda name=name: (mount / name).read_bytes(),
            lambda name=name: client.read(remote(mount, name)),
        ):
            with pytest.raises(OSError) as caught:
                read()
            assert caught.value.errno == number


AS_NOBODY = """
import os, sys
sys.excepthook = lambda *_: os._exit(255)  # what Python would end with is an errno
folder, user, action = sys.argv[1:]
os.chdir(folder)
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
try:
    exec(action)
except OSError as error:
    sys.exit(error.errno)
"""


def as_nobody(folder: Path, action: str) -> int:
    """Run ``action`` in ``folder`` as an ordinary user; the errno it fails with, or 0.

    In a program of its own: what other tests have left in this process need not survive a fork.
    """
    command = [sys.executable, "-c", AS_NOBODY, str(folder), str(NOBODY), action]
    return subprocess.run(command, timeout=WORKLOAD_S, check=False).returncode


def read(name: str) -> str:
    return f"open({name!r}, 'rb').read()"


def write(name: str) -> str:
    return f"with open({name!r}, 'wb') as file: file.write(b'mine')"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_permissions_hold_for_another_user(mount):
    for name, permissions in (("secret", 0o600), ("public", 0o644), ("open", 0o666)):
        (mount / name).write_bytes(b"root's")
        (mount / name).chmod(permissions)
    mount.chmod(0o755)
    assert as_nobody(mount, read("secret")) == errno.EACCES
    assert as_nobody(mount, read("public")) == 0
    assert as_nobody(mount, write("public")) == errno.EACCES
    assert as_nobody(mount, write("open")) == 0
    assert as_nobody(mount, write("new")) == errno.EACCES
    assert as_nobody(mount, "os.unlink('open')") == errno.EACCES
    assert as_nobody(mount, "os.chmod('open', 0o777)") == errno.EPERM
    assert as_nobody(mount, f"os.chown('open', {NOBODY}, {NOBODY})") == errno.EPERM
    mount.chmod(0o1777)
    assert as_nobody(mount, write("new")) == 0
    assert (mount / "new").stat().st_uid == NOBODY
    assert (mount / "new").stat().st_gid == NOBODY
    assert as_nobody(mount, "os.unlink('open')") == errno.EPERM  # sticky
    assert as_nobody(mount, "os.rename('new', 'newer')") == 0
    assert sorted(os.listdir(mount)) == ["newer", "open", "public", "secret"]
    assert (mount / "open").read_bytes() == b"mine"
    assert (mount / "public").read_bytes() == b"root's"


def test_statvfs_counts_space_and_names(mount, client):
    (mount / "file").write_bytes(bytes(CHUNK))
    # Storageservers report what they have by and by.
    eventually(lambda: 0 < os.statvfs(mount).f_bavail < os.statvfs(mount).f_blocks, "used space")
    found, native = os.statvfs(mount), client.statvfs()
    assert found.f_namemax == 255
    assert native.f_blocks * native.f_frsize == found.f_blocks * found.f_frsize
    assert native.f_ffree == found.f_ffree > 1_000_000
    assert native.f_files > native.f_ffree
    assert "fs3" in run("df", "-T", mount)


@pytest.mark.long
def test_a_directory_of_5000_files_is_listed_whole(mount, client):
    names = {f"file-{n:05}" for n in range(5000)}
    for name in names:
        os.close(os.open(mount / name, os.O_CREAT | os.O_WRONLY, 0o644))
    listed = os.listdir(mount)
    assert len(listed) == len(names)
    assert set(listed) == names
    with os.scandir(mount) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert sizes == dict.fromkeys(names, 0)
    assert set(client.listdir(remote(mount))) == names
    # Removing while listing must miss nothing either.
    with os.scandir(mount) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(mount) == []
    assert client.listdir(remote(mount)) == []


NAMES = [
    "a name with  spaces ",
    "tab\tand\nnewline",
    "x" * 255,
    "ü" * 127,
    "日本語.txt",
    "e\u0301",
    "\u00e9",
    "-rf",
    "*?[]{}$`'\"\\",
    "...",
    ".hidden",
    "name.",
]


def test_unusual_names_round_trip(mount, client):
    for name in NAMES:
        (mount / name).write_text(name)
    assert sorted(os.listdir(mount)) == sorted(NAMES)
    assert sorted(client.listdir(remote(mount))) == sorted(NAMES)
    for name in NAMES:
        assert (mount / name).read_text() == name
        assert client.read(f"{remote(mount)}/{name}").decode() == name
        os.rename(mount / name, mount / f"{name[:100]}2")
        assert (mount / f"{name[:100]}2").read_text() == name


def test_names_that_are_no_text_round_trip_on_the_mount(mount):
    raw = os.fsencode(mount) + b"/\xff\xfe\x80"
    with open(raw, "wb") as file:
        file.write(b"x")
    assert os.listdir(os.fsencode(mount)) == [b"\xff\xfe\x80"]
    os.rename(raw, raw + b"\xe4")
    assert os.listdir(os.fsencode(mount)) == [b"\xff\xfe\x80\xe4"]
    os.unlink(raw + b"\xe4")


def test_a_name_of_256_bytes_is_too_long(mount):
    with pytest.raises(OSError) as caught:
        (mount / ("x" * 256)).touch()
    assert caught.value.errno == errno.ENAMETOOLONG


def test_mapped_memory_reads_and_writes(mount, client):
    path, content = mount / "mapped", os.urandom(2 * CHUNK + 5)
    path.write_bytes(content)
    with path.open("r+b") as file, closing(mmap.mmap(file.fileno(), 0)) as mapped:
        assert mapped[:] == content
        mapped[CHUNK - 10 : CHUNK + 10] = b"twenty bytes, mapped"
        mapped.flush()
    expected = content[: CHUNK - 10] + b"twenty bytes, mapped" + content[CHUNK + 10 :]
    assert path.read_bytes() == expected
    assert client.read(remote(mount, "mapped")) == expected


def test_times_and_modes_are_kept_and_seen_by_the_native_client(mount, client):
    path = mount / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(1_111_111_111_222_333_444, 1_555_555_555_666_777_888))
    path.chmod(0o4751)
    for found in (path.stat(), client.stat(remote(mount, "f"))):
        assert found.st_mtime_ns == 1_555_555_555_666_777_888
        assert found.st_atime_ns == 1_111_111_111_222_333_444
        assert stat.S_IMODE(found.st_mode) == 0o4751


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_random_operations_match_a_local_file(mount, client, tmp_path, seed):
    rng = random.Random(seed)
    twins = Twins(mount / "f", tmp_path / "f")
    try:
        for step in range(300):
            twins.step(rng)
            if step % 50 == 0:
                os.fsync(twins.files[0])
                assert client.read(remote(mount, "f")) == twins.paths[1].read_bytes()
    finally:
        twins.close()
    assert client.read(remote(mount, "f")) == twins.paths[1].read_bytes()
    assert twins.paths[0].read_bytes() == twins.paths[1].read_bytes()
