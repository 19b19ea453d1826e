"""What a mount does for programs that go past it: the virtual attribute and the ioctls."""

from __future__ import annotations

import json
import os
import struct

import pytest
from fake_cluster import CHUNK_BYTES, CLUSTER, fake_cluster
from kernel_calls import Mount

from fs3 import dataplane
from fs3.client.data import cut, items_of
from fs3.client.filesystem_interface import XattrFlags
from fs3.client.mount_protocol import (
    ATTACH,
    CHUNKS_MAX,
    DETACH,
    MOUNT_ATTRIBUTE,
    WROTE,
    Attached,
    Wrote,
    decode_trimmed,
)
from fs3.errors import Code, Fs3Error
from fs3.types import FILE_BYTES_MAX, ROOT_INODE, SetAttributes

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


def attach(mount, handle) -> Attached:
    return Attached.decode(mount.fs.control(handle, ATTACH, b"").answer)


def wrote(mount, handle, end, runs=((0, 1),), version=0):
    inode = mount.lookup("f").inode
    return mount.fs.control(handle, WROTE, bytes(Wrote(inode, end, version, runs).encode()))


def write_past(cluster, mount, name: str, offset: int, content: bytes) -> None:
    """As a ring does: to the storageservers."""
    inode = mount.lookup(name)
    items = items_of(inode.layout, inode.inode, offset, len(content))
    cluster.client().context.data.write_pieces(items, cut(memoryview(content), items))


def test_a_mount_tells_its_cluster_and_does_not_let_it_be_changed(mount):
    told = json.loads(mount.fs.getxattr(ROOT_INODE, MOUNT_ATTRIBUTE))
    assert told["cluster_id"] == CLUSTER
    assert told["addresses"] == list(mount.fs._context.addresses) != []
    with pytest.raises(PermissionError):
        mount.fs.setxattr(ROOT_INODE, MOUNT_ATTRIBUTE, b"x", XattrFlags.NONE)


def test_ioctls_are_as_documented():
    assert (ATTACH, WROTE, DETACH) == (0x9000F301, 0xD000F302, 0xF303)
    told = Attached(1, 2, 3, b"{}").encode()
    assert len(told) == 4096
    assert told.startswith(struct.pack("=QQQI4x", 1, 2, 3, 2) + b"{}")
    wrote = Wrote(1, 2, 3, [(4, 5), (6, 7)]).encode()
    assert len(wrote) == 4096
    assert wrote.startswith(struct.pack("=QQQI4xQQQQ", 1, 2, 3, 2, 4, 5, 6, 7))


def test_unknown_commands_are_nobodys(mount):
    _, handle = mount.create("f")
    assert mount.fs.control(handle, ATTACH + 1, b"") is None
    with pytest.raises(Fs3Error) as caught:
        mount.fs.control(handle + 1, ATTACH, b"")
    assert caught.value.code is Code.STALE_HANDLE


def test_attaching_sends_what_was_gathered_and_gathers_no_more(cluster, mount):
    inode, handle = mount.create("f")
    mount.write(handle, 0, b"gathered")
    assert not cluster.requests(dataplane.WRITE_BATCH)
    assert attach(mount, handle)[:2] == (inode, 8)
    assert cluster.requests(dataplane.WRITE_BATCH) == 1
    mount.write(handle, 8, b" sent")
    assert cluster.requests(dataplane.WRITE_BATCH) == 2
    assert cluster.client().read("/f") == b"gathered"  # its length is told by flush, as always
    mount.fs.control(handle, DETACH, b"")
    mount.write(handle, 13, b" gathered")
    assert cluster.requests(dataplane.WRITE_BATCH) == 2


def test_closing_the_file_detaches(cluster, mount):
    _, handle = mount.create("f")
    other = mount.open("f", os.O_RDWR).handle
    attach(mount, handle)
    attach(mount, handle)
    mount.close(handle)
    before = cluster.requests(dataplane.WRITE_BATCH)
    mount.write(other, 0, b"gathered")
    assert cluster.requests(dataplane.WRITE_BATCH) == before


def test_what_was_written_past_the_mount_is_read_settled_and_synced(cluster, mount):
    _, handle = mount.create("f")
    version = attach(mount, handle).trimmed_version
    content = os.urandom(2 * CHUNK_BYTES + 10)
    write_past(cluster, mount, "f", 0, content)
    assert mount.read(handle) == b""
    answer = wrote(mount, handle, len(content), [(0, 3)], version)
    assert answer.stale
    assert decode_trimmed(answer.answer) == version
    assert mount.read(handle) == content
    assert mount.lookup("f").length_bytes == len(content)
    mount.fs.fsync(handle, False)
    assert all(len(chunks) == 3 for chunks in cluster.synced.values())
    assert cluster.client().read("/f") == content


def test_read_ahead_does_not_hide_what_was_written_past_the_mount(cluster, mount):
    mount.put("f", bytes(8 * CHUNK_BYTES))
    handle = mount.open("f", os.O_RDWR).handle
    for offset in range(0, 4 * CHUNK_BYTES, 4096):
        mount.read(handle, offset, 4096)
    offset = 4 * CHUNK_BYTES
    write_past(cluster, mount, "f", offset, b"new")
    wrote(mount, handle, offset + 3, [(4, 1)])
    assert mount.read(handle, offset, 4096)[:3] == b"new"


def test_a_cut_between_the_writing_and_its_telling_leaves_what_is_stored(cluster, mount):
    mount.put("f", bytes(2 * CHUNK_BYTES))
    opened = mount.open("f", os.O_RDWR)
    handle, inode = opened.handle, mount.lookup("f").inode
    version = attach(mount, handle).trimmed_version
    write_past(cluster, mount, "f", 0, bytes(2 * CHUNK_BYTES))
    cluster.client().context.metadata.setattr(inode, SetAttributes(length_bytes=5))
    wrote(mount, handle, 2 * CHUNK_BYTES, [(0, 2)], version)
    mount.close(handle)
    assert mount.lookup("f").length_bytes == cluster.client().stat("/f").st_size == 5


def test_set_uid_goes_with_a_write_past_the_mount(mount):
    _, handle = mount.create("f", permissions=0o4755)
    wrote(mount, handle, 1)
    assert mount.lookup("f").permissions == 0o755


@pytest.mark.parametrize(
    ("end", "runs"),
    [
        (FILE_BYTES_MAX + 1, []),
        (0, [(1 << 60, 1)]),
        (0, [(0, CHUNKS_MAX + 1)]),
        (0, [(0, 1 << 63)]),
    ],
)
def test_nonsense_is_refused_by_name(mount, end, runs):
    _, handle = mount.create("f")
    with pytest.raises(Fs3Error, match="allowed"):
        wrote(mount, handle, end, runs)
    assert mount.lookup("f").length_bytes == 0


def test_a_cut_short_command_is_refused(mount):
    _, handle = mount.create("f")
    with pytest.raises(Fs3Error, match="WROTE of 7 bytes"):
        mount.fs.control(handle, WROTE, bytes(7))


def test_a_descriptor_that_has_become_another_files_is_not_believed(mount):
    mount.put("f", b"x")
    _, handle = mount.create("other")
    with pytest.raises(Fs3Error) as caught:
        wrote(mount, handle, 5)
    assert caught.value.code is Code.STALE_HANDLE


def test_who_has_opened_for_reading_cannot_say_that_he_wrote(mount):
    mount.put("f", b"x")
    handle = mount.open("f").handle
    with pytest.raises(PermissionError):
        wrote(mount, handle, 5)
