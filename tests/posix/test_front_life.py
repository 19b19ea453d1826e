"""Caching, concurrency, options, and how a mount begins and ends."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from memory_filesystem import COUNTERS, GATE, MemoryFileSystem
from memory_mount import identical, memory_mount, run, why_no_mount

from fs3.client.fuse.front import Front
from fs3.client.fuse.negotiation import FrontOptions
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import ROOT_INODE, Credentials, SetAttributes

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
]
TREE = Path("/usr/include/linux")
MIB = 1 << 20


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


@pytest.mark.parametrize("option", ["--workers=2", "--direct-io", "--writeback-cache"])
def test_random_changes_to_a_file_match_a_model(tmp_path, option):
    """Writes, appends, truncations and reads at random places, against plain bytes."""
    rng = random.Random(option)
    with memory_mount(tmp_path / "mount", option) as mountpoint:
        with open(mountpoint / "file", "w+b", buffering=0) as file:
            descriptor, model = file.fileno(), bytearray()
            for _ in range(400):
                offset, length = rng.randrange(300_000), rng.randrange(1, 100_000)
                what = rng.choice(["write", "write", "read", "read", "truncate"])
                if what == "write":
                    data = rng.randbytes(length)
                    assert os.pwrite(descriptor, data, offset) == length
                    model.extend(bytes(max(offset + length - len(model), 0)))
                    model[offset : offset + length] = data
                elif what == "truncate":
                    os.ftruncate(descriptor, offset)
                    model = model[:offset] + bytes(max(offset - len(model), 0))
                else:
                    assert os.pread(descriptor, length, offset) == model[offset : offset + length]
                assert os.fstat(descriptor).st_size == len(model)
        assert (mountpoint / "file").read_bytes() == model


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


# -- in this process: what needs the file system object --------------------------------------------

WHO = Credentials(uid=0, gid=0)


@pytest.fixture
def mountpoint(tmp_path):
    path = tmp_path / "mount"
    path.mkdir()
    return path


@pytest.fixture
def patient(monkeypatch):
    """A file system whose answers the kernel may believe for an hour."""
    monkeypatch.setattr("memory_filesystem.TIMEOUT_S", 3600.0)
    return MemoryFileSystem()


def inode_of(filesystem, name):
    found = filesystem.lookup(ROOT_INODE, name, WHO).inode.inode
    filesystem.forget(found, 1)
    return found


def test_kernel_believes_attributes_until_notified(patient, mountpoint):
    with Front(patient, mountpoint):
        (mountpoint / "file").write_bytes(b"old")
        inode = inode_of(patient, "file")
        assert os.stat(mountpoint / "file").st_size == 3
        patient.setattr(inode, SetAttributes(length_bytes=10), None, False, WHO)
        assert os.stat(mountpoint / "file").st_size == 3
        patient.notifier.invalidate_inode(inode)
        assert os.stat(mountpoint / "file").st_size == 10


def test_kernel_believes_names_until_notified(patient, mountpoint):
    with Front(patient, mountpoint):
        (mountpoint / "file").touch()
        patient.unlink(ROOT_INODE, "file", WHO)
        assert (mountpoint / "file").exists()
        patient.notifier.invalidate_entry(ROOT_INODE, "file")
        assert not (mountpoint / "file").exists()


def test_notified_pages_are_read_again_through_an_open_file(patient, mountpoint):
    with Front(patient, mountpoint):
        (mountpoint / "file").write_bytes(b"old")
        with open(mountpoint / "file", "rb", buffering=0) as file:
            assert file.read() == b"old"
            inode = inode_of(patient, "file")
            handle = patient.open(inode, os.O_RDWR, False, WHO).handle
            patient.write(handle, 0, memoryview(b"new"), False, False)
            patient.release(handle, None)
            assert os.pread(file.fileno(), 3, 0) == b"old"
            patient.notifier.invalidate_inode(inode)
            assert os.pread(file.fileno(), 3, 0) == b"new"


def test_notifying_of_what_the_kernel_does_not_know_is_no_error(patient, mountpoint):
    with Front(patient, mountpoint):
        patient.notifier.invalidate_inode(InodeId(12_345))
        patient.notifier.invalidate_entry(ROOT_INODE, "never seen")


class Counting(MemoryFileSystem):
    """Says when only the root is left."""

    def __init__(self):
        super().__init__()
        self.empty = threading.Event()

    def forget(self, inode, lookups):
        super().forget(inode, lookups)
        if len(self._nodes) == 1:
            self.empty.set()


def test_look_up_counts_are_exact_over_listings_links_and_removal(mountpoint):
    filesystem = Counting()
    with Front(filesystem, mountpoint):
        for number in range(300):
            (mountpoint / f"a-name-of-some-length-{number}").touch()
        os.link(mountpoint / "a-name-of-some-length-0", mountpoint / "second")
        assert len([entry.stat() for entry in os.scandir(mountpoint)]) == 301
        for entry in os.scandir(mountpoint):
            os.unlink(entry.path)
        assert filesystem.empty.wait(30)


def test_mount_and_unmount_through_fusermount(monkeypatch, mountpoint):
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with Front(MemoryFileSystem(), mountpoint):
        assert os.path.ismount(mountpoint)
        (mountpoint / "file").write_text("served")
        assert (mountpoint / "file").read_text() == "served"
    assert not os.path.ismount(mountpoint)


def test_read_only_mount_refuses_changes(mountpoint):
    with Front(MemoryFileSystem(), mountpoint, FrontOptions(read_only=True)):
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "file").touch()
        assert os.listdir(mountpoint) == []


def test_mount_point_that_is_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file: not a directory"):
        Front(MemoryFileSystem(), tmp_path / "file").start()


def test_mount_points_with_spaces_are_found_and_unmounted(tmp_path):
    path = tmp_path / "with space\tand tab"
    path.mkdir()
    with Front(MemoryFileSystem(), path):
        assert os.path.ismount(path)
    assert not os.path.ismount(path)


class Refusing(MemoryFileSystem):
    def attach(self, notifier):
        raise Fs3Error(Code.UNREACHABLE, "no cluster")


def test_file_system_that_cannot_start_leaves_no_mount(mountpoint):
    with pytest.raises(Fs3Error, match="no cluster"):
        Front(Refusing(), mountpoint).start()
    assert not os.path.ismount(mountpoint)
    os.rmdir(mountpoint)
