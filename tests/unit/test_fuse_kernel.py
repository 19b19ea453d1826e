"""The FUSE codec: requests in, replies out, and what is cut short or unknown."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.client.filesystem_interface import Attributes, Entry, FileLock, LockKind, OpenFile
from fs3.client.fuse import kernel
from fs3.client.fuse import kernel_structs as k
from fs3.client.fuse.negotiation import FrontOptions, answer_init
from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FileKind, Inode, StatFs

names = st.binary(min_size=1, max_size=255).filter(lambda raw: b"\0" not in raw and b"/" not in raw)
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
HEADER_FILE = Path("/usr/include/linux/fuse.h")


def request(opcode, body=b"", *, unique=7, node=1, uid=0, gid=0, pid=0):
    length = k.IN_HEADER.size + len(body)
    return memoryview(k.IN_HEADER.pack(length, opcode, unique, node, uid, gid, pid, 0, 0) + body)


def inode(number=9, kind=FileKind.FILE, **changes):
    fields = {
        "inode": InodeId(number),
        "kind": kind,
        "permissions": 0o640,
        "uid": 1,
        "gid": 2,
        "links": 3,
        "length_bytes": 1_000_000,
        "atime_ns": 1_500_000_001,
        "mtime_ns": -1,
        "ctime_ns": 3 * 10**18,
        "layout": Layout(1 << 22, 1),
    }
    return Inode(**{**fields, **changes})


# -- the structs are the kernel's ------------------------------------------------------------------


@pytest.mark.skipif(not HEADER_FILE.exists(), reason="no <linux/fuse.h> (Debian: linux-libc-dev)")
def test_numbers_agree_with_the_kernels_header():
    text = HEADER_FILE.read_text()
    opcodes = dict(re.findall(r"FUSE_(\w+)\s*= (\d+),", text))
    flags = dict(re.findall(r"#define FUSE_(\w+)\s+\(1(?:ULL)? << (\d+)\)", text))
    for opcode in k.Opcode:
        assert int(opcodes[opcode.name]) == opcode
    for flag in set(k.Init) - {k.Init.DIRECT_IO_ALLOW_MMAP}:  # newer than many headers
        assert 1 << int(flags[flag.name]) == flag
    for name in ("FATTR_FH", "FATTR_KILL_SUIDGID"):
        assert 1 << int(re.search(rf"{name}\s+\(1 << (\d+)\)", text)[1]) == getattr(k, name)


@pytest.mark.parametrize(
    ("known", "size"),
    [
        (k.IN_HEADER, 40),
        (k.OUT_HEADER, 16),
        (k.INIT_OUT, 64),
        (k.ENTRY_OUT, 128),
        (k.ATTR_OUT, 104),
        (k.OPEN_OUT, 16),
        (k.SETATTR_IN, 88),
        (k.READ_IN, 40),
        (k.WRITE_IN, 40),
        (k.LK_IN, 48),
        (k.STATFS_OUT, 80),
        (k.FALLOCATE_IN, 32),
        (k.COPY_FILE_RANGE_IN, 56),
        (k.DIRENT, 24),
        (k.DIRENTPLUS, 152),
        (k.RELEASE_IN, 24),
        (k.FLUSH_IN, 24),
        (k.LSEEK_IN, 24),
        (k.IOCTL_IN, 32),
        (k.IOCTL_OUT, 16),
    ],
)
def test_structs_have_the_kernels_sizes(known, size):
    assert known.size == size


# -- requests --------------------------------------------------------------------------------------


@given(opcode=st.sampled_from(list(k.Opcode)), unique=u64, node=u64, uid=u32, gid=u32, pid=u32)
def test_header_round_trips(opcode, unique, node, uid, gid, pid):
    view = request(opcode, unique=unique, node=node, uid=uid, gid=gid, pid=pid)
    assert kernel.decode_header(view)[:7] == (40, opcode, unique, node, uid, gid, pid)


@given(name=names)
def test_lookup_name_round_trips_with_any_bytes(name):
    (decoded,) = kernel.decode_arguments(k.Opcode.LOOKUP, request(1, name + b"\0"))
    assert os.fsencode(decoded) == name


@given(old=names, new=names, parent=u64, flags=u32)
def test_rename2_round_trips(old, new, parent, flags):
    body = k.RENAME2_IN.pack(parent, flags) + old + b"\0" + new + b"\0"
    decoded = kernel.decode_arguments(k.Opcode.RENAME2, request(k.Opcode.RENAME2, body))
    assert decoded == (parent, flags, os.fsdecode(old), os.fsdecode(new))


@given(data=st.binary(max_size=200), handle=u64, offset=u64)
def test_write_hands_out_its_data_without_copying(data, handle, offset):
    body = k.WRITE_IN.pack(handle, offset, len(data), 0, 0, os.O_APPEND) + data
    view = request(k.Opcode.WRITE, body)
    *fields, decoded = kernel.decode_arguments(k.Opcode.WRITE, view)
    assert fields == [handle, offset, len(data), 0, 0, os.O_APPEND]
    assert decoded == data
    assert decoded.obj is view.obj


@given(value=st.binary(max_size=100), name=names)
def test_setxattr_keeps_nuls_in_the_value(value, name):
    body = k.SETXATTR_IN.pack(len(value), 1) + name + b"\0" + value
    decoded = kernel.decode_arguments(k.Opcode.SETXATTR, request(k.Opcode.SETXATTR, body))
    assert decoded == (len(value), 1, os.fsdecode(name), value)


def test_batch_forget_gives_pairs():
    body = k.BATCH_FORGET_IN.pack(2) + k.FORGET_ONE.pack(5, 1) + k.FORGET_ONE.pack(6, 2**40)
    assert kernel.decode_arguments(42, request(42, body)) == ((5, 1), (6, 2**40))


def test_symlink_gives_name_then_target():
    assert kernel.decode_arguments(6, request(6, b"name\0some/target\0")) == ("name", "some/target")


def test_init_of_an_old_kernel_has_no_second_flags():
    old = k.INIT_IN.pack(7, 31, 65536, int(k.Init.ASYNC_READ))
    new = k.INIT_IN.pack(7, 38, 65536, int(k.Init.INIT_EXT)) + k.INIT_IN_FLAGS2.pack(1 << 4)
    assert kernel.decode_arguments(26, request(26, old)) == (7, 31, 65536, 1)
    assert kernel.decode_arguments(26, request(26, new))[3] == 1 << 30 | 1 << 36


@given(st.data())
def test_request_cut_anywhere_is_one_protocol_error(data):
    opcode = data.draw(st.sampled_from([op for op in k.Opcode if kernel.DECODERS[op]]))
    whole = bytes(request(opcode, BODIES[opcode]))
    assert kernel.decode_arguments(opcode, memoryview(whole)) is not None
    view = memoryview(whole)[: data.draw(st.integers(40, len(whole) - 1))]
    with pytest.raises(Fs3Error, match=f"request {int(opcode)} of {len(view)} bytes") as caught:
        kernel.decode_arguments(opcode, view)
    assert caught.value.code is Code.PROTOCOL


BODIES = {
    op: {
        k.Opcode.LOOKUP: b"a\0",
        k.Opcode.UNLINK: b"a\0",
        k.Opcode.RMDIR: b"a\0",
        k.Opcode.REMOVEXATTR: b"a\0",
        k.Opcode.SYMLINK: b"a\0b\0",
        k.Opcode.MKNOD: k.MKNOD_IN.pack(0, 0, 0) + b"a\0",
        k.Opcode.MKDIR: k.MKDIR_IN.pack(0, 0) + b"a\0",
        k.Opcode.RENAME: k.RENAME_IN.pack(1) + b"a\0b\0",
        k.Opcode.RENAME2: k.RENAME2_IN.pack(1, 0) + b"a\0b\0",
        k.Opcode.LINK: k.LINK_IN.pack(1) + b"a\0",
        k.Opcode.CREATE: k.CREATE_IN.pack(0, 0, 0, 0) + b"a\0",
        k.Opcode.GETXATTR: k.GETXATTR_IN.pack(0) + b"a\0",
        k.Opcode.SETXATTR: k.SETXATTR_IN.pack(1, 0) + b"a\0v",
        k.Opcode.WRITE: k.WRITE_IN.pack(0, 0, 1, 0, 0, 0) + b"d",
        k.Opcode.BATCH_FORGET: k.BATCH_FORGET_IN.pack(1) + k.FORGET_ONE.pack(1, 1),
        k.Opcode.FORGET: bytes(8),
        k.Opcode.GETATTR: bytes(16),
        k.Opcode.SETATTR: bytes(88),
        k.Opcode.OPEN: bytes(8),
        k.Opcode.OPENDIR: bytes(8),
        k.Opcode.READ: bytes(40),
        k.Opcode.READDIR: bytes(40),
        k.Opcode.READDIRPLUS: bytes(40),
        k.Opcode.RELEASE: bytes(24),
        k.Opcode.RELEASEDIR: bytes(24),
        k.Opcode.FLUSH: bytes(24),
        k.Opcode.FSYNC: bytes(16),
        k.Opcode.FSYNCDIR: bytes(16),
        k.Opcode.LISTXATTR: bytes(8),
        k.Opcode.INIT: bytes(16),
        k.Opcode.GETLK: bytes(48),
        k.Opcode.SETLK: bytes(48),
        k.Opcode.SETLKW: bytes(48),
        k.Opcode.INTERRUPT: bytes(8),
        k.Opcode.FALLOCATE: bytes(32),
        k.Opcode.IOCTL: k.IOCTL_IN.pack(5, 0, 6, 7, 2, 3) + b"ab",
        k.Opcode.LSEEK: bytes(24),
        k.Opcode.COPY_FILE_RANGE: bytes(56),
    }[op]
    for op in k.Opcode
    if kernel.DECODERS[op]
}


def test_truncated_or_lying_header_is_refused():
    with pytest.raises(Fs3Error, match="request of 39 bytes"):
        kernel.decode_header(memoryview(bytes(39)))
    lying = memoryview(k.IN_HEADER.pack(41, 1, 7, 1, 0, 0, 0, 0, 0) + b"a\0")
    with pytest.raises(Fs3Error, match="42 bytes says that it has 41"):
        kernel.decode_header(lying)


@pytest.mark.parametrize("opcode", [0, 37, 51, 52, 4096, 2**32 - 1])
def test_unknown_opcode_has_no_arguments(opcode):
    assert kernel.decode_arguments(opcode, request(opcode, b"whatever")) == ()


# -- replies ---------------------------------------------------------------------------------------


def test_entry_carries_attributes_and_timeouts():
    reply = kernel.encode_entry(Entry(inode(), 1.5, 0.25))
    assert k.ENTRY_OUT.unpack(reply) == (
        *(9, 0, 1, 0, 500_000_000, 250_000_000),
        *(9, 1_000_000, 1954, 1, -1, 3 * 10**9, 500_000_001, 999_999_999, 0),
        *(0o100640, 3, 1, 2, 0, 1 << 20, 0),
    )


def test_negative_entry_has_node_0_and_its_timeout():
    fields = k.ENTRY_OUT.unpack(kernel.encode_entry(Entry(None, 2.0, 0.0)))
    assert fields[:4] == (0, 0, 2, 0)


def test_attributes_of_a_directory_have_blocks_of_a_page():
    fields = k.ATTR_OUT.unpack(
        kernel.encode_attributes(Attributes(inode(1, FileKind.DIRECTORY), 0))
    )
    assert fields[:3] == (0, 0, 1)
    assert fields[-2:] == (4096, 0)


@pytest.mark.parametrize(
    ("opened", "directory", "flags"),
    [
        (OpenFile(5), False, 0),
        (OpenFile(5, keep_cache=True), False, k.FOPEN_KEEP_CACHE),
        (OpenFile(5, keep_cache=True), True, k.FOPEN_KEEP_CACHE | k.FOPEN_CACHE_DIR),
        (
            OpenFile(5, direct_io=True),
            False,
            k.FOPEN_DIRECT_IO | k.FOPEN_PARALLEL_DIRECT_WRITES,
        ),
    ],
)
def test_open_flags_say_what_may_be_cached(opened, directory, flags):
    assert k.OPEN_OUT.unpack(kernel.encode_open(opened, directory)) == (5, flags)


@given(name=names, cookie=u64, kind=st.sampled_from(FileKind))
def test_listing_lines_are_padded_to_8_bytes(name, cookie, kind):
    line = kernel.encode_dirent(os.fsdecode(name), 3, kind, cookie)
    plus = kernel.encode_direntplus(os.fsdecode(name), 3, kind, cookie, Entry(inode(3), 1, 1))
    assert len(line) % 8 == len(plus) % 8 == 0
    assert k.DIRENT.unpack_from(line)[:3] == (3, cookie, len(name))
    assert line[24:] == name + bytes(-len(name) % 8)
    assert plus[128:] == line
    assert plus[:128] == kernel.encode_entry(Entry(inode(3), 1, 1))


def test_statfs_counts_in_blocks_and_has_room_for_more_inodes():
    reply = kernel.encode_statfs(StatFs(capacity_bytes=1 << 40, free_bytes=1 << 30, inodes=10))
    assert k.STATFS_OUT.unpack(reply) == (
        *(1 << 28, 1 << 18, 1 << 18),
        *(10 + (1 << 32), 1 << 32),
        *(4096, 255, 4096),
    )


def test_lock_goes_out_as_the_kernel_has_it():
    reply = kernel.encode_lock(FileLock(LockKind.WRITE, 10, 20, 99))
    assert k.LK_OUT.unpack(reply) == (10, 20, 1, 99)


@given(name=names)
def test_notifications_carry_their_length_and_code(name):
    entry = b"".join(kernel.encode_invalidate_entry(4, os.fsdecode(name)))
    pages = b"".join(kernel.encode_invalidate_inode(4, -1, 0))
    assert k.OUT_HEADER.unpack_from(entry) == (len(entry), k.NOTIFY_INVAL_ENTRY, 0)
    assert entry[16:] == struct.pack("=QII", 4, len(name), 0) + name + b"\0"
    assert k.OUT_HEADER.unpack_from(pages) == (len(pages), k.NOTIFY_INVAL_INODE, 0)
    assert pages[16:] == struct.pack("=Qqq", 4, -1, 0)


# -- negotiation -----------------------------------------------------------------------------------


def negotiated(major=7, minor=45, offered=2**42 - 1, **options):
    fields = k.INIT_OUT.unpack(answer_init(major, minor, offered, FrontOptions(**options)))
    return {"flags": k.Init(fields[3] | fields[10] << 32), "fields": fields}


def test_init_asks_for_1_mib_requests_and_never_for_what_we_cannot_do():
    found = negotiated()
    _, _, _, _, background, congestion, max_write, granularity, max_pages, _, _ = found["fields"]
    assert (max_write, max_pages, granularity) == (1 << 20, 256, 1)
    assert (background, congestion) == (64, 48)
    assert k.Init.DIRECT_IO_ALLOW_MMAP in found["flags"]
    assert k.Init.WRITEBACK_CACHE not in found["flags"]
    for never in ("EXPORT_SUPPORT", "POSIX_ACL", "DONT_MASK", "EXPLICIT_INVAL_DATA"):
        assert k.Init[never] not in found["flags"]


def test_writeback_cache_is_an_option():
    assert k.Init.WRITEBACK_CACHE in negotiated(writeback_cache=True)["flags"]


@given(offered=st.integers(0, 2**64 - 1))
def test_init_takes_only_what_is_offered(offered):
    assert int(negotiated(offered=offered)["flags"]) & ~offered == 0


def test_newer_major_version_is_told_ours_and_older_ones_are_refused():
    assert negotiated(major=8, minor=0)["fields"][:2] == (7, 38)
    for major, minor in ((7, 22), (6, 99)):
        with pytest.raises(Fs3Error, match=rf"{major}\.{minor}") as caught:
            answer_init(major, minor, 0, FrontOptions())
        assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 257},
        {"background_requests_max": 0},
        {"background_requests_max": 65_536},
        {"readahead_bytes": 100},
    ],
)
def test_impossible_options_are_named(options):
    (name,) = options
    with pytest.raises(Fs3Error, match=name):
        FrontOptions(**options).validate()
