"""Files behind a mount, called as a front calls them, on two mounts of one cluster."""

from __future__ import annotations

import math
import os
import threading

import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster
from kernel_calls import ROOT, Mount

from fs3 import dataplane
from fs3.client.filesystem import CacheTimes
from fs3.client.filesystem_interface import (
    FallocateFlags,
    RenameFlags,
    Whence,
)
from fs3.errors import Code, Fs3Error
from fs3.types import ROOT_INODE, SetAttributes

pytestmark = pytest.mark.usefixtures("stays_gathered")


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


# Close-to-open.


def test_what_one_mount_closed_the_other_opens(mount, other):
    mount.put("f", b"one")
    assert other.get("f") == b"one"
    mount.put("f", b"two, longer")
    assert other.get("f") == b"two, longer"
    assert other.lookup("f").length_bytes == 11


def test_pages_are_kept_only_while_nobody_else_changed_the_data(mount, other):
    mount.put("f", b"one")
    assert not other.open("f").keep_cache  # nothing is known of the first
    handle = other.open("f")
    assert handle.keep_cache
    other.close(handle.handle)
    mount.put("f", b"two")
    first, second = other.open("f"), other.open("f")
    assert not first.keep_cache
    assert second.keep_cache


def test_pages_survive_a_mounts_own_writes(mount, other):
    mount.put("f", b"one")
    handle = mount.open("f", os.O_RDWR)
    assert handle.keep_cache  # this mount wrote it
    mount.write(handle.handle, 0, b"two")
    mount.close(handle.handle)
    assert mount.open("f").keep_cache
    handle = other.open("f", os.O_RDWR)
    other.write(handle.handle, 0, b"six")
    other.close(handle.handle)
    assert not mount.open("f").keep_cache


def test_pages_go_when_another_mount_wrote_between_two_own_writes(mount, other):
    mount.put("f", b"123456")
    mine = mount.open("f", os.O_RDWR)
    mount.write(mine.handle, 0, b"a")
    mount.fs.fsync(mine.handle, False)
    theirs = other.open("f", os.O_RDWR)
    other.write(theirs.handle, 3, b"b")
    other.close(theirs.handle)
    mount.write(mine.handle, 1, b"c")
    mount.close(mine.handle)
    again = mount.open("f")
    assert not again.keep_cache
    assert mount.read(again.handle) == b"ac3b56"


def test_a_file_that_was_replaced_is_found_anew(mount, other):
    mount.put("f", b"old")
    assert other.get("f") == b"old"
    mount.put("g", b"new")
    mount.fs.rename(ROOT_INODE, "g", ROOT_INODE, "f", RenameFlags.NONE, ROOT)
    entry = other.fs.lookup(ROOT_INODE, "f", ROOT)
    assert entry.entry_timeout_s == 0
    assert other.get("f") == b"new"


def test_missing_names_are_answered_and_not_cached(mount, other):
    entry = mount.fs.lookup(ROOT_INODE, "f", ROOT)
    assert entry.inode is None
    assert entry.entry_timeout_s == 0
    other.put("f", b"x")
    assert mount.lookup("f").length_bytes == 1


def test_cache_times_can_be_relaxed(cluster):
    mount = Mount(cluster, times=CacheTimes(file_entry_s=5, missing_s=3))
    assert mount.fs.lookup(ROOT_INODE, "f", ROOT).entry_timeout_s == 3
    mount.put("f", b"x")
    assert mount.fs.lookup(ROOT_INODE, "f", ROOT).entry_timeout_s == 5
    mount.fs.detach()


# Writing and reading in one mount.


def test_all_handles_of_a_mount_see_what_any_wrote(cluster, mount, other):
    inode, writer = mount.create("f")
    mount.write(writer, 0, b"abc")
    reader = mount.open("f")
    assert mount.read(reader.handle) == b"abc"
    assert mount.fs.getattr(inode, None) == (mount.fs.getattr(inode, writer).inode, 0.0)
    assert mount.fs.getattr(inode, None).inode.length_bytes == 3
    assert mount.lookup("f").length_bytes == 3
    assert other.lookup("f").length_bytes == 0
    mount.write(writer, 3, b"def")
    assert mount.read(reader.handle, 2, 3) == b"cde"
    mount.fs.flush(writer, 0)
    assert other.lookup("f").length_bytes == 6
    assert mount.fs.getattr(inode, None).attr_timeout_s > 0
    mount.close(writer)
    mount.close(reader.handle)


def test_writes_are_gathered_into_chunks(cluster, mount):
    _, handle = mount.create("f")
    for i in range(64):
        mount.write(handle, i * 4096, bytes([i]) * 4096)
    assert cluster.requests(dataplane.WRITE_BATCH) == 0
    mount.close(handle)
    assert sum(cluster.applied.values()) == 64 * 4096 // CHUNK_BYTES
    assert mount.get("f") == b"".join(bytes([i]) * 4096 for i in range(64))


def test_memory_for_gathered_writes_is_bounded(cluster, mount):
    _, handle = mount.create("f")
    block = bytes(1 << 20)
    for i in range(24):
        mount.write(handle, i << 20, block)
    opened = mount.fs._context.files.find(mount.lookup("f").inode)
    assert opened._behind.gathered_bytes < 8 << 20
    mount.close(handle)


def test_random_writes_and_reads_agree_with_a_plain_buffer(mount):
    import random

    rng = random.Random(9)
    expected = bytearray()
    inode, handle = mount.create("f")
    for _ in range(300):
        offset, length = rng.randrange(5 * CHUNK_BYTES), rng.randrange(1, 20_000)
        action = rng.random()
        if action < 0.55:
            data = rng.randbytes(length)
            mount.write(handle, offset, data)
            expected.extend(bytes(max(offset + length - len(expected), 0)))
            expected[offset : offset + length] = data
        elif action < 0.65:
            size = rng.randrange(5 * CHUNK_BYTES)
            mount.fs.setattr(inode, SetAttributes(length_bytes=size), handle, False, ROOT)
            del expected[size:]
            expected.extend(bytes(size - len(expected)))
        elif action < 0.7:
            mount.fs.fsync(handle, True)
        else:
            assert mount.read(handle, offset, length) == expected[offset : offset + length]
        assert mount.fs.getattr(inode, handle).inode.length_bytes == len(expected)
    mount.close(handle)
    assert mount.get("f") == expected


@pytest.fixture
def ages_never(monkeypatch):
    """What was read ahead does not become too old, however long a loaded machine takes."""
    monkeypatch.setattr("fs3.client.read_ahead.WINDOW_AGE_S", math.inf)


@pytest.mark.usefixtures("ages_never")
def test_reading_in_order_reads_ahead(cluster, mount):
    content = os.urandom(40 * CHUNK_BYTES)
    mount.put("f", content)
    handle = mount.open("f").handle
    got = b"".join(mount.read(handle, i * 16384, 16384) for i in range(len(content) // 16384))
    assert got == content
    assert cluster.requests(dataplane.READ_BATCH) < 30
    mount.close(handle)


@pytest.mark.usefixtures("ages_never")
def test_memory_for_reading_ahead_is_bounded_and_given_back(mount, monkeypatch):
    monkeypatch.setattr("fs3.client.chunk_buffers.CLIENT_AHEAD_BYTES", 1 << 20)
    content = os.urandom(10 * CHUNK_BYTES)
    mount.put("f", content)
    handles = [mount.open("f").handle for _ in range(10)]
    for i in range(len(content) // 16384):
        for handle in handles:
            assert mount.read(handle, i * 16384, 16384) == content[i * 16384 :][:16384]
    buffers = mount.fs._context.files.buffers
    assert 0 < buffers._ahead_bytes <= 1 << 20
    for handle in handles:
        mount.close(handle)
    assert buffers._ahead_bytes == 0


def test_read_ahead_does_not_hide_what_this_mount_writes(mount):
    mount.put("f", bytes(10 * CHUNK_BYTES))
    handle = mount.open("f", os.O_RDWR).handle
    assert mount.read(handle, 0, 100) == bytes(100)
    mount.write(handle, 150, b"new")
    assert mount.read(handle, 100, 100) == bytes(50) + b"new" + bytes(47)
    mount.close(handle)


def test_appends_pass_the_page_cache_by(mount):
    """In it they would lie where the kernel believes the end is, and be cut at its pages."""
    mount.put("f", b"one")
    for access in (os.O_WRONLY, os.O_RDWR):
        assert mount.open("f", access | os.O_APPEND).direct_io
        assert not mount.open("f", access).direct_io
    assert not mount.open("f", os.O_RDONLY | os.O_APPEND).direct_io
    made = os.O_CREAT | os.O_WRONLY | os.O_APPEND
    assert mount.fs.create(ROOT_INODE, "g", 0o644, made, ROOT)[1].direct_io


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_a_synchronous_append_is_on_stable_storage_when_it_returns(mount, cluster, flag):
    """Of other files the kernel asks for a sync after each write; not past its page cache."""
    made = os.O_CREAT | os.O_WRONLY | os.O_APPEND | flag
    created = mount.fs.create(ROOT_INODE, "log", 0o644, made, ROOT)[1].handle
    opened = mount.open("log", os.O_WRONLY | os.O_APPEND | flag).handle
    plain = mount.open("log", os.O_WRONLY | os.O_APPEND).handle
    for handle, syncs in [(created, True), (opened, True), (plain, False)]:
        for synced in cluster.synced.values():
            synced.clear()
        mount.write(handle, 0, b"record", append=True)
        assert any(cluster.synced.values()) == syncs


def test_appends_of_two_mounts_go_one_behind_the_other(mount, other):
    mount.put("f", b"")
    mine = mount.open("f", os.O_WRONLY | os.O_APPEND).handle
    theirs = other.open("f", os.O_WRONLY | os.O_APPEND).handle
    for i in range(6):
        side, handle = ((mount, mine), (other, theirs))[i % 2]
        side.write(handle, 0, f"{i}".encode(), append=True)
    mount.close(mine)
    other.close(theirs)
    assert mount.get("f") == b"012345"


def test_truncating_through_open_flags_and_attributes(mount, other):
    mount.put("f", b"x" * 1000)
    handle = mount.open("f", os.O_WRONLY | os.O_TRUNC).handle
    assert other.lookup("f").length_bytes == 0
    mount.write(handle, 5, b"y")
    inode = mount.lookup("f").inode
    mount.fs.setattr(inode, SetAttributes(length_bytes=3), handle, False, ROOT)
    mount.close(handle)
    assert other.get("f") == bytes(3)


def test_a_cut_by_another_mount_does_not_lose_what_is_written_after_it(mount, other):
    mount.put("f", b"x" * 100)
    handle = mount.open("f", os.O_RDWR).handle
    inode = other.lookup("f").inode
    other.fs.setattr(inode, SetAttributes(length_bytes=0), None, False, ROOT)
    mount.write(handle, 200, b"after")
    mount.close(handle)
    assert other.get("f") == bytes(200) + b"after"


def test_an_unlinked_file_lives_until_its_last_handle(cluster, mount, other):
    inode, handle = mount.create("f")
    mount.write(handle, 0, b"alive")
    mount.fs.unlink(ROOT_INODE, "f", ROOT)
    assert mount.lookup("f") is None
    assert mount.read(handle) == b"alive"
    assert mount.fs.getattr(inode, handle).inode.links == 0
    mount.fs.fsync(handle, False)
    mount.write(handle, 5, b"!")
    assert mount.read(handle) == b"alive!"
    mount.close(handle)


def test_a_write_that_failed_is_told_by_flush_once(cluster, mount):
    _, handle = mount.create("f")
    mount.write(handle, 0, b"lost")
    for node in cluster.nodes.values():
        node.refuse = [Code.NO_SPACE]
    with pytest.raises(Fs3Error) as caught:
        mount.fs.flush(handle, 0)
    assert caught.value.code is Code.NO_SPACE
    for node in cluster.nodes.values():
        node.refuse = []
    mount.close(handle)


def test_what_is_lost_after_a_write_has_told_of_earlier_losses_is_told_by_the_next_close(
    cluster, mount
):
    _, handle = mount.create("f")

    def refuse(*codes: Code) -> None:
        for node in cluster.nodes.values():
            node.refuse = list(codes)

    mount.write(handle, 0, b"lost")
    refuse(Code.NO_SPACE)
    with pytest.raises(Fs3Error):
        mount.fs.flush(handle, 7)  # one of several descriptors is closed
    mount.fs.flush(handle, 7)  # told once
    with pytest.raises(Fs3Error):
        mount.write(handle, 0, b"refused, and told here")
    mount.write(handle, 0, b"lost, too")
    refuse(Code.NO_SPACE)
    with pytest.raises(Fs3Error):
        mount.fs.flush(handle, 7)
    refuse()
    mount.fs.flush(handle, 7)
    mount.fs.release(handle, None)


def test_many_threads_write_and_read_their_own_parts(mount):
    _, handle = mount.create("f")
    failures = []

    def work(number: int) -> None:
        for i in range(20):
            offset = (number * 20 + i) * 5000
            data = bytes([number * 20 + i]) * 5000
            mount.write(handle, offset, data)
            if mount.read(handle, offset, 5000) != data:
                failures.append((number, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    mount.close(handle)
    assert mount.get("f") == b"".join(bytes([n]) * 5000 for n in range(80))


# The rest of a file's calls.


def test_holes_and_data_are_found(mount):
    _, handle = mount.create("f")
    mount.write(handle, 2 * CHUNK_BYTES + 5, b"x")
    mount.fs.setattr(
        mount.lookup("f").inode, SetAttributes(length_bytes=5 * CHUNK_BYTES), handle, False, ROOT
    )
    seek = mount.fs.lseek
    assert seek(handle, 0, Whence.DATA) == 2 * CHUNK_BYTES
    assert seek(handle, 2 * CHUNK_BYTES + 7, Whence.DATA) == 2 * CHUNK_BYTES + 7
    assert seek(handle, 3 * CHUNK_BYTES, Whence.DATA) is None
    assert seek(handle, 10, Whence.HOLE) == 10
    assert seek(handle, 2 * CHUNK_BYTES, Whence.HOLE) == 3 * CHUNK_BYTES
    assert seek(handle, 5 * CHUNK_BYTES, Whence.HOLE) is None
    mount.close(handle)


def test_fallocate_extends_and_refuses_to_punch(mount):
    _, handle = mount.create("f")
    mount.write(handle, 0, b"abc")
    mount.fs.fallocate(handle, 0, 2, FallocateFlags.NONE)
    mount.fs.fallocate(handle, 2, 100, FallocateFlags.NONE)
    mount.fs.fallocate(handle, 0, 1000, FallocateFlags.KEEP_SIZE)
    assert mount.read(handle) == b"abc" + bytes(99)
    with pytest.raises(Fs3Error) as caught:
        mount.fs.fallocate(handle, 0, 1, FallocateFlags.PUNCH_HOLE | FallocateFlags.KEEP_SIZE)
    assert caught.value.code is Code.UNSUPPORTED
    mount.close(handle)


def test_a_range_is_copied_between_files(mount):
    mount.put("f", b"0123456789" * 10_000)
    source = mount.open("f").handle
    _, target = mount.create("g")
    copy = mount.fs.copy_file_range
    assert copy(source, 5, target, 2, 80_000) == 80_000
    assert copy(source, 99_990, target, 80_002, 1000) == 10
    assert copy(source, 1 << 30, target, 0, 1000) == 0
    mount.close(source)
    mount.close(target)
    content = b"0123456789" * 10_000
    assert mount.get("g") == b"\0\0" + content[5:80_005] + content[-10:]
