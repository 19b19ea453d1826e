"""Rows of the namespace: round trips, rows of other releases, the page that documents them."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.core.layout import Layout
from fs3.core.types import ChainId, InodeId
from fs3.errors import Code, Fs3Error
from fs3.metaserver import keys, records
from fs3.types import FileKind, Inode

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"

U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (32, 64))
NS = st.integers(-(1 << 63), (1 << 63) - 1)
NAMES = st.binary(min_size=1, max_size=40).filter(lambda n: b"\0" not in n).map(os.fsdecode)
LAYOUTS = st.builds(
    Layout, U32, U32, U32, st.lists(U32.map(ChainId), max_size=5).map(lambda chains: tuple(chains))
)
INODES = st.builds(
    Inode,
    inode=U64.map(InodeId),
    kind=st.sampled_from(FileKind),
    permissions=st.integers(0, 0o7777),
    uid=U32,
    gid=U32,
    links=U32,
    length_bytes=U64,
    atime_ns=NS,
    mtime_ns=NS,
    ctime_ns=NS,
    layout=LAYOUTS,
    version=U64,
    truncate_version=U64,
    symlink=st.just("") | NAMES,
    device=U32,
    parent=U64.map(InodeId),
)
EXAMPLE = Inode(
    inode=InodeId(5),
    kind=FileKind.FILE,
    permissions=0o644,
    uid=1000,
    gid=100,
    links=1,
    length_bytes=3_000_000,
    atime_ns=10**18,
    mtime_ns=10**18 + 1,
    ctime_ns=10**18 + 2,
    layout=Layout(1 << 20, 2, 1, (ChainId(7), ChainId(3))),
    version=4,
    truncate_version=1,
)

ROWS = {
    "inode": (records.encode_inode(EXAMPLE), lambda v: records.decode_inode(InodeId(5), v)),
    "dentry": (records.encode_dentry(InodeId(5), FileKind.FILE), records.decode_dentry),
    "time": (records.encode_time(-5), records.decode_time),
    "session": (
        records.encode_session(records.SessionRecord(True, True, 9)),
        records.decode_session,
    ),
    "trim": (records.encode_trim(records.TrimRecord(3, 4)), records.decode_trim),
    "number": (records.encode_number(7), records.decode_number),
}


@given(INODES)
def test_inode_comes_back_as_it_was(inode):
    assert records.decode_inode(inode.inode, records.encode_inode(inode)) == inode


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("write", [True, False])
def test_session_comes_back_as_it_was(read, write):
    record = records.SessionRecord(read, write, 9)
    assert records.decode_session(records.encode_session(record)) == record


@given(NS, st.binary(max_size=50))
def test_answer_and_attribute_come_back_as_they_were(time_ns, value):
    assert records.decode_answer(records.encode_answer(time_ns, value)) == (time_ns, value)
    assert records.decode_xattr(records.encode_xattr(value)) == value


@pytest.mark.parametrize("kind", ROWS)
def test_fields_that_a_newer_release_appended_are_ignored(kind):
    value, decode = ROWS[kind]
    assert decode(value + b"\x05newer") == decode(value)


@pytest.mark.parametrize("kind", ROWS)
def test_newer_format_is_refused_by_name(kind):
    value, decode = ROWS[kind]
    with pytest.raises(Fs3Error, match=f"{kind} row of format 2") as caught:
        decode(b"\x02" + value[1:])
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("kind", ROWS)
def test_row_cut_anywhere_is_corrupt(kind):
    value, decode = ROWS[kind]
    for length in range(len(value)):
        with pytest.raises(Fs3Error) as caught:
            decode(value[:length])
        assert caught.value.code is Code.CORRUPT


def test_kind_that_nothing_has_is_corrupt():
    value = records.encode_dentry(InodeId(5), FileKind.FILE)
    with pytest.raises(Fs3Error, match="kind 99") as caught:
        records.decode_dentry(value[:1] + b"\x63" + value[2:])
    assert caught.value.code is Code.CORRUPT


def test_symlink_cut_in_its_target_is_corrupt():
    value = records.encode_inode(replace(EXAMPLE, symlink="target"))
    with pytest.raises(Fs3Error) as caught:
        records.decode_inode(InodeId(5), value[:-1])
    assert caught.value.code is Code.CORRUPT


@given(U64, U64, NAMES, NAMES)
def test_names_sort_within_their_directory_and_directories_by_number(one, two, name, other):
    first = keys.dentry(InodeId(one), os.fsencode(name))
    second = keys.dentry(InodeId(two), os.fsencode(other))
    assert (first < second) == ((one, os.fsencode(name)) < (two, os.fsencode(other)))
    assert keys.dentry_name(first) == name
    begin, end = keys.range_of(keys.DENTRY, one)
    assert begin <= first < end
    assert (begin <= second < end) == (one == two)


def test_prefixes_are_four_letters_and_different():
    prefixes = [
        value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, bytes) and not value.startswith(b"COUN")
    ]
    assert all(len(prefix) == 4 for prefix in prefixes)
    assert len(set(prefixes)) == len(prefixes)


def test_end_of_a_prefix_is_the_first_key_after_all_that_begin_with_it():
    assert keys.prefix_end(b"INOD") == b"INOE"
    assert keys.prefix_end(b"DENT" + b"\xff" * 8) == b"DENU"
    assert keys.prefix_end(b"DENT\x01\xff") == b"DENT\x02"


def test_documented_example_is_what_is_written():
    section = FORMATS.read_text().partition("### Inode record")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (?:key|value)?\s+((?:[0-9a-f]{2} +)*[0-9a-f]{2})\b", section, re.M)
    documented = bytes.fromhex("".join(lines))
    name_key = keys.dentry(InodeId(1), b"data")
    name_value = records.encode_dentry(EXAMPLE.inode, EXAMPLE.kind)
    inode_key = keys.of(keys.INODE, EXAMPLE.inode)
    assert documented == name_key + name_value + inode_key + records.encode_inode(EXAMPLE)
