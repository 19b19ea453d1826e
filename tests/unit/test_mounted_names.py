"""Names, attributes and locks behind a mount, called as a front calls them."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from fake_cluster import fake_cluster
from kernel_calls import ROOT, USER, Mount

from fs3.client.filesystem import CacheTimes
from fs3.client.filesystem_interface import (
    LOCK_END_MAX,
    Cancellation,
    FileLock,
    LockKind,
    RenameFlags,
    XattrFlags,
)
from fs3.errors import Code, Fs3Error
from fs3.types import ROOT_INODE, FileKind, SetAttributes


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


@pytest.fixture
def mount(cluster):
    made = Mount(cluster)
    yield made
    made.fs.detach()


@pytest.fixture
def other(cluster):
    made = Mount(cluster)
    yield made
    made.fs.detach()


# Names and attributes.


def test_directories_list_every_name_once_in_pages_and_from_any_cookie(mount):
    directory = mount.fs.mkdir(ROOT_INODE, "d", 0o755, ROOT).inode.inode
    names = [f"{i:04}" for i in range(1203)]
    for name in names:
        mount.fs.symlink(directory, name, "x", ROOT)
    handle = mount.fs.opendir(directory, ROOT).handle
    lines = [next(mount.fs.readdir(handle, i, plus=bool(i % 2))) for i in (0, 1, 2, 3)]
    assert [line.dentry.name for line in lines] == names[:4]
    found, cookie = [], 0
    while taken := list(
        zip(mount.fs.readdir(handle, cookie, plus=False), range(100), strict=False)
    ):
        found += [line.dentry.name for line, _ in taken]
        cookie = taken[-1][0].cookie
    assert found == names
    again = mount.fs.readdir(handle, 1100, plus=False)
    assert next(again).dentry.name == "1100"
    mount.fs.releasedir(handle)
    with pytest.raises(Fs3Error):
        next(mount.fs.readdir(handle, 0, plus=False))


def test_a_listing_with_attributes_counts_directories_as_looked_up(mount):
    inode = mount.fs.mkdir(ROOT_INODE, "d", 0o755, ROOT).inode.inode
    mount.put("f", b"x")
    handle = mount.fs.opendir(ROOT_INODE, ROOT).handle
    lines = {line.dentry.name: line for line in mount.fs.readdir(handle, 0, plus=True)}
    assert lines["d"].entry.inode.inode == inode
    assert lines["f"].entry is None
    assert mount.fs._nodes.find(inode).lookups == 2
    mount.fs.forget(inode, 1)
    assert mount.fs._nodes.find(inode).lookups == 1
    mount.fs.forget(inode, 1)
    assert mount.fs._nodes.find(inode) is None
    mount.fs.releasedir(handle)


def test_what_is_made_belongs_to_who_asked(mount):
    fs = mount.fs
    fs.mkdir(ROOT_INODE, "open", 0o777, ROOT)
    directory = fs.lookup(ROOT_INODE, "open", ROOT).inode.inode
    made = fs.mkdir(directory, "d", 0o700, USER).inode
    assert (made.uid, made.gid) == (1000, 1000)
    assert fs.mknod(directory, "p", stat.S_IFIFO | 0o600, 0, USER).inode.kind is FileKind.FIFO
    assert fs.symlink(directory, "l", "t", USER).inode.symlink == "t"
    assert fs.readlink(fs.lookup(directory, "l", ROOT).inode.inode) == "t"


def test_a_supplementary_group_that_lets_the_kernel_agree_is_enough(mount):
    """The kernel checked that the user is in the directory's group, and does not say so."""
    fs = mount.fs
    directory = fs.mkdir(ROOT_INODE, "team", 0o770, ROOT).inode.inode
    fs.setattr(directory, SetAttributes(gid=500), None, False, ROOT)
    made, opened = fs.create(directory, "f", 0o644, os.O_RDWR, USER)
    assert (made.inode.uid, made.inode.gid) == (1000, 1000)
    mount.close(opened.handle)
    fs.unlink(directory, "f", USER)


def test_a_group_permission_that_is_new_is_believed_after_a_second_look(mount, other):
    fs = mount.fs
    directory = fs.mkdir(ROOT_INODE, "team", 0o700, ROOT).inode.inode
    other.fs.setattr(directory, SetAttributes(gid=500, permissions=0o770), None, False, ROOT)
    assert fs.mkdir(directory, "d", 0o755, USER).inode.uid == 1000


def test_privileges_go_when_someone_unprivileged_writes_or_an_owner_changes(mount):
    inode, handle = mount.create("f", permissions=0o6755)
    mount.fs.setattr(inode, SetAttributes(permissions=0o6755), handle, False, ROOT)
    mount.fs.write(handle, 0, memoryview(b"x"), False, True)
    assert mount.lookup("f").permissions == 0o755
    mount.fs.setattr(inode, SetAttributes(permissions=0o6755), handle, False, ROOT)
    mount.fs.setattr(inode, SetAttributes(uid=5), handle, False, ROOT)
    assert mount.lookup("f").permissions == 0o755
    mount.fs.setattr(inode, SetAttributes(uid=6, permissions=0o4755), handle, False, ROOT)
    assert mount.lookup("f").permissions == 0o4755
    mount.close(handle)


def test_times_set_after_a_write_stay(mount, other):
    inode, handle = mount.create("f")
    mount.write(handle, 0, b"x")
    mount.fs.setattr(inode, SetAttributes(mtime_ns=1_000, atime_ns=2_000), handle, False, ROOT)
    mount.close(handle)
    found = other.lookup("f")
    assert (found.mtime_ns, found.atime_ns) == (1_000, 2_000)


def test_renames_links_and_removals(mount, other):
    fs = mount.fs
    mount.put("a", b"A")
    mount.put("b", b"B")
    with pytest.raises(Fs3Error) as caught:
        fs.rename(ROOT_INODE, "a", ROOT_INODE, "b", RenameFlags.NOREPLACE, ROOT)
    assert caught.value.code is Code.EXISTS
    fs.rename(ROOT_INODE, "a", ROOT_INODE, "b", RenameFlags.EXCHANGE, ROOT)
    assert mount.get("a") == b"B"
    handle = mount.open("a").handle
    inode = mount.lookup("a").inode
    assert fs.link(inode, ROOT_INODE, "c", ROOT).inode.links == 2
    assert fs.getattr(inode, handle).inode.links == 2
    fs.unlink(ROOT_INODE, "c", ROOT)
    assert fs.getattr(inode, handle).inode.links == 1
    mount.close(handle)
    fs.mkdir(ROOT_INODE, "d", 0o755, ROOT)
    with pytest.raises(Fs3Error):
        fs.unlink(ROOT_INODE, "d", ROOT)
    fs.rmdir(ROOT_INODE, "d", ROOT)
    assert mount.lookup("d") is None


def test_extended_attributes(mount):
    mount.put("f", b"")
    inode = mount.lookup("f").inode
    fs = mount.fs
    fs.setxattr(inode, "user.k", b"v", XattrFlags.CREATE)
    with pytest.raises(Fs3Error):
        fs.setxattr(inode, "user.k", b"v", XattrFlags.CREATE)
    fs.setxattr(inode, "user.k", b"w", XattrFlags.REPLACE)
    assert fs.getxattr(inode, "user.k") == b"w"
    assert list(fs.listxattr(inode)) == ["user.k"]
    fs.removexattr(inode, "user.k")
    with pytest.raises(Fs3Error) as caught:
        fs.getxattr(inode, "user.k")
    assert caught.value.code is Code.NO_ATTRIBUTE


def test_capabilities_are_asked_of_the_metaserver_once_a_second(cluster):
    mount = Mount(cluster, times=CacheTimes(attributes_s=3600))  # a second, on a loaded machine
    mount.put("f", b"")
    inode = mount.lookup("f").inode
    for _ in range(5):
        with pytest.raises(Fs3Error):
            mount.fs.getxattr(inode, "security.capability")
    assert cluster.metadata_calls["get_xattr"] == 1
    mount.fs.setxattr(inode, "security.capability", b"c", XattrFlags.NONE)
    assert mount.fs.getxattr(inode, "security.capability") == b"c"
    mount.fs.detach()


def test_space_is_told(mount):
    assert mount.fs.statfs().inodes >= 1


def test_a_read_only_mount_changes_nothing(cluster, mount):
    mount.put("f", b"x")
    reader = Mount(cluster, read_only=True)
    assert reader.get("f") == b"x"
    inode = reader.lookup("f").inode
    fs = reader.fs
    for change in (
        lambda: reader.create("g"),
        lambda: reader.open("f", os.O_WRONLY),
        lambda: reader.open("f", os.O_TRUNC),
        lambda: fs.unlink(ROOT_INODE, "f", ROOT),
        lambda: fs.mkdir(ROOT_INODE, "d", 0o755, ROOT),
        lambda: fs.setattr(inode, SetAttributes(permissions=0), None, False, ROOT),
        lambda: fs.setxattr(inode, "user.a", b"", XattrFlags.NONE),
    ):
        with pytest.raises(Fs3Error) as caught:
            change()
        assert caught.value.code is Code.READ_ONLY
    fs.detach()
    assert mount.get("f") == b"x"


def test_a_closed_handle_is_stale(mount):
    mount.put("f", b"x")
    handle = mount.open("f").handle
    mount.close(handle)
    with pytest.raises(Fs3Error) as caught:
        mount.read(handle)
    assert caught.value.code is Code.STALE_HANDLE


def test_detach_writes_what_open_handles_left(cluster, mount):
    last = Mount(cluster)
    _, handle = last.create("f")
    last.write(handle, 0, b"left open")
    last.fs.detach()
    assert mount.get("f") == b"left open"


# Locks.


def lock(kind: LockKind, start: int = 0, end: int = LOCK_END_MAX, pid: int = 1) -> FileLock:
    return FileLock(kind, start, end, pid)


def test_posix_locks_split_merge_and_exclude(mount):
    fs, inode = mount.fs, ROOT_INODE
    assert fs.setlk(inode, 1, lock(LockKind.WRITE, 0, 99), False, None)
    assert fs.setlk(inode, 1, lock(LockKind.READ, 40, 59), False, None)
    assert fs.setlk(inode, 2, lock(LockKind.READ, 40, 59), False, None)
    assert not fs.setlk(inode, 2, lock(LockKind.READ, 39, 59), False, None)
    assert fs.getlk(inode, 2, lock(LockKind.READ, 39, 59)) == lock(LockKind.WRITE, 0, 39)
    assert fs.setlk(inode, 1, lock(LockKind.UNLOCK, 30, 69), False, None)
    assert fs.getlk(inode, 2, lock(LockKind.WRITE, 30, 69)) is None
    assert fs.getlk(inode, 2, lock(LockKind.WRITE, 70, 70)).kind is LockKind.WRITE
    assert fs.getlk(inode, 1, lock(LockKind.WRITE)) == lock(LockKind.READ, 40, 59)


def test_flocks_and_posix_locks_do_not_see_each_other(mount):
    fs, inode = mount.fs, ROOT_INODE
    assert fs.setlk(inode, 1, lock(LockKind.WRITE), True, None)
    assert fs.setlk(inode, 2, lock(LockKind.WRITE), False, None)
    assert not fs.setlk(inode, 2, lock(LockKind.READ), True, None)
    assert fs.setlk(inode, 1, lock(LockKind.READ), True, None)
    assert fs.setlk(inode, 2, lock(LockKind.READ), True, None)


def test_locks_go_with_their_descriptors(mount):
    mount.put("f", b"")
    fs = mount.fs
    inode, handle = mount.lookup("f").inode, mount.open("f").handle
    fs.setlk(inode, 1, lock(LockKind.WRITE), False, None)
    fs.setlk(inode, 1, lock(LockKind.WRITE), True, None)
    fs.flush(handle, 1)
    assert fs.setlk(inode, 2, lock(LockKind.WRITE), False, None)
    assert not fs.setlk(inode, 2, lock(LockKind.WRITE), True, None)
    fs.release(handle, 1)
    assert fs.setlk(inode, 2, lock(LockKind.WRITE), True, None)


def test_a_waiting_lock_is_granted_or_cancelled(mount):
    fs, inode = mount.fs, ROOT_INODE
    fs.setlk(inode, 1, lock(LockKind.WRITE), False, None)
    results = []
    granted, cancelled = Cancellation(), Cancellation()

    def wait(owner: int, cancellation: Cancellation) -> None:
        results.append((owner, fs.setlk(inode, owner, lock(LockKind.WRITE), False, cancellation)))

    first = threading.Thread(target=wait, args=(2, cancelled))
    first.start()
    cancelled.cancel()
    first.join()
    second = threading.Thread(target=wait, args=(3, granted))
    second.start()
    fs.setlk(inode, 1, lock(LockKind.UNLOCK), False, None)
    second.join()
    assert results == [(2, False), (3, True)]
