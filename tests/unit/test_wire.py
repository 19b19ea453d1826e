"""Records survive the wire, and what the wire must not bring in is refused by name."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3 import wire
from fs3.core.layout import Layout
from fs3.core.types import Chain, PublicState, Replica
from fs3.errors import Code, Fs3Error
from fs3.jobs import Job, JobKind, JobProgress, JobState, Move
from fs3.proto import cluster_pb2, common_pb2, metadata_pb2
from fs3.routing import ChainTable, NodeInfo, Routing, TargetInfo
from fs3.types import (
    FILE_BYTES_MAX,
    Credentials,
    Dentry,
    FileKind,
    Inode,
    SetAttributes,
    StatFs,
)

U32 = st.integers(0, (1 << 32) - 1)
ID32 = st.integers(1, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
LENGTHS = st.integers(0, FILE_BYTES_MAX)
NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and not {0, 0x2F} & set(name)
)
PERMISSIONS = st.integers(0, 0o7777)
LAYOUTS = st.builds(
    Layout,
    chunk_bytes=st.sampled_from([1 << power for power in range(16, 27)]),
    stripe=ID32,
    chain_table=U32,
    chains=st.lists(U32, max_size=5).map(tuple),
)
LAID_OUT = (FileKind.FILE, FileKind.DIRECTORY)
INODES = st.builds(
    Inode,
    inode=st.integers(1, (1 << 64) - 1),
    kind=st.sampled_from(list(FileKind)),
    permissions=PERMISSIONS,
    uid=U32,
    gid=U32,
    links=U32,
    length_bytes=LENGTHS,
    atime_ns=I64,
    mtime_ns=I64,
    ctime_ns=I64,
    layout=LAYOUTS,
    version=U64,
    truncate_version=U64,
    symlink=st.binary(max_size=300).filter(lambda b: 0 not in b).map(os.fsdecode),
    device=U32,
    parent=U64,
).map(lambda inode: inode if inode.kind in LAID_OUT else replace(inode, layout=Layout(0, 0, 0)))


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@given(INODES)
def test_inodes_survive(inode):
    assert wire.decode_inode(over_the_wire(wire.encode_inode(inode))) == inode


@given(NAMES, INODES, st.booleans())
def test_entries_survive_whatever_bytes_their_names_are(name, inode, with_attributes):
    attributes = inode if with_attributes else None
    entry = Dentry(
        name=os.fsdecode(name), inode=inode.inode, kind=inode.kind, attributes=attributes
    )
    record = over_the_wire(wire.encode_dentry(entry))
    assert record.name == name
    assert wire.decode_dentry(record) == entry


OPTIONAL = st.none()


@given(
    st.builds(
        SetAttributes,
        permissions=OPTIONAL | PERMISSIONS,
        uid=OPTIONAL | U32,
        gid=OPTIONAL | U32,
        length_bytes=OPTIONAL | LENGTHS,
        atime_ns=OPTIONAL | I64,
        mtime_ns=OPTIONAL | I64,
        atime_now=st.booleans(),
        mtime_now=st.booleans(),
    )
)
def test_changes_survive_and_zero_is_not_nothing(change):
    message = over_the_wire(wire.encode_set_attributes(5, change, session=7))
    assert (message.inode, message.session) == (5, 7)
    assert wire.decode_set_attributes(message) == change


@given(U32, U32, st.lists(U32, max_size=20))
def test_credentials_survive(uid, gid, gids):
    who = Credentials(uid=uid, gid=gid, gids=tuple(gids))
    assert wire.decode_credentials(over_the_wire(wire.encode_credentials(who))) == who


@given(U64, U64, U64)
def test_space_survives(one, other, inodes):
    space = StatFs(capacity_bytes=max(one, other), free_bytes=min(one, other), inodes=inodes)
    assert wire.decode_stat_fs(over_the_wire(wire.encode_stat_fs(space))) == space


REPLICAS = st.builds(Replica, target=ID32, node=ID32, state=st.sampled_from(list(PublicState)))
NODES = st.builds(
    NodeInfo,
    node=st.integers(1, 5),
    host=st.text(max_size=5),
    data_address=st.text(max_size=9),
    control_address=st.text(max_size=9),
    incarnation=U64,
    alive=st.booleans(),
)
TARGETS = st.builds(TargetInfo, target=st.integers(1, 5), node=ID32, chain=st.integers(0, 3))
CHAINS = st.builds(
    Chain,
    chain=st.integers(1, 5),
    version=U32,
    replicas=st.lists(REPLICAS, max_size=3).map(tuple),
    preferred=st.lists(ID32, max_size=2).map(tuple),
)
TABLES = st.builds(
    ChainTable, table=st.integers(1, 3), version=U32, chains=st.lists(ID32, max_size=3).map(tuple)
)


@st.composite
def routings(draw, version):
    return Routing(
        version=version,
        nodes={n.node: n for n in draw(st.lists(NODES, max_size=4))},
        targets={t.target: t for t in draw(st.lists(TARGETS, max_size=4))},
        chains={c.chain: c for c in draw(st.lists(CHAINS, max_size=4))},
        tables={t.table: t for t in draw(st.lists(TABLES, max_size=2))},
    )


@given(routings(4), routings(9))
def test_a_delta_makes_the_new_table_of_the_old_one(old, new):
    update = over_the_wire(wire.encode_update(old, new))
    assert old.apply(wire.decode_update(update)) == new


@given(routings(4), routings(9))
def test_a_full_update_replaces_whatever_was_known(old, new):
    update = over_the_wire(wire.encode_update(None, new))
    assert update.from_version == 0
    assert old.apply(wire.decode_update(update)) == new
    assert Routing().apply(wire.decode_update(update)) == new


BAD_NAMES = [b"", b".", b"..", b"a/b", b"a\0b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_can_name_nothing_is_refused(name):
    with pytest.raises(Fs3Error, match="is not allowed") as caught:
        wire.decode_name(name)
    assert (caught.value.code, repr(name) in caught.value.detail) == (Code.INVALID, True)


def test_a_name_or_path_that_is_too_long_is_refused_with_its_length():
    with pytest.raises(Fs3Error, match="256 bytes; at most 255") as caught:
        wire.decode_name(b"x" * 256)
    assert caught.value.code is Code.NAME_TOO_LONG
    assert len(wire.decode_name(b"x" * 255)) == 255
    with pytest.raises(Fs3Error, match="4097 bytes; at most 4096") as caught:
        wire.decode_path(b"x" * 4097)
    assert caught.value.code is Code.NAME_TOO_LONG
    for path in (b"", b"a\0"):
        with pytest.raises(Fs3Error, match="path"):
            wire.decode_path(path)


def good_inode(**changes):
    layout = common_pb2.Layout(chunk_bytes=1 << 20, stripe=1)
    return common_pb2.Inode(**{"inode": 9, "kind": 1, "layout": layout} | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"inode": 0}, "inode 0"),
        ({"kind": 0}, "kind of inode 9 0 is not allowed: 1 FILE"),
        ({"kind": 77}, "kind of inode 9 77"),
        ({"permissions": 0o10000}, "permissions 0o10000"),
        ({"length_bytes": FILE_BYTES_MAX + 1}, f"at most {FILE_BYTES_MAX}"),
        ({"layout": {"chunk_bytes": 3, "stripe": 1}}, "chunk size 3"),
        ({"layout": {"chunk_bytes": 1 << 20}}, "stripe 0"),
        ({"symlink": b"a\0b"}, "NUL"),
    ],
)
def test_an_inode_with_a_bad_field_is_refused_by_name(changes, expected):
    wire.decode_inode(good_inode())
    with pytest.raises(Fs3Error) as caught:
        wire.decode_inode(good_inode(**changes))
    assert expected in caught.value.detail


def test_a_change_to_what_cannot_be_is_refused():
    for bad in ({"permissions": 0o10000}, {"length_bytes": FILE_BYTES_MAX + 1}):
        with pytest.raises(Fs3Error):
            wire.decode_set_attributes(metadata_pb2.SetAttributesRequest(inode=1, **bad))


@pytest.mark.parametrize(
    "update",
    [
        {"nodes": [{"node": 0}]},
        {"targets": [{"target": 0, "node": 1}]},
        {"targets": [{"target": 1, "node": 0}]},
        {"chains": [{"chain": 0}]},
        {"chains": [{"chain": 1, "replicas": [{"target": 1, "node": 1, "state": 9}]}]},
        {"tables": [{"table": 0}]},
    ],
)
def test_a_routing_update_with_a_bad_record_is_refused(update):
    with pytest.raises(Fs3Error, match="is not allowed"):
        wire.decode_update(cluster_pb2.RoutingUpdate(version=1, **update))


JOBS = st.builds(
    Job,
    number=ID32,
    kind=st.sampled_from(list(JobKind)),
    subject=U32,
    started_ns=U64,
    state=st.sampled_from(list(JobState)),
    moves=st.lists(st.builds(Move, chain=ID32, old=U32, new=U32), max_size=4).map(tuple),
    moves_done=U32,
    bytes_done=U64,
)


@given(
    st.builds(
        JobProgress,
        job=JOBS,
        moves_total=U32,
        bytes_done=U64,
        bytes_total=U64,
        remaining_ms=st.none() | U64,
        waits_for=st.text(max_size=20),
    )
)
def test_jobs_and_their_progress_survive(progress: JobProgress) -> None:
    sent = wire.encode_progress(progress).SerializeToString()
    assert wire.decode_progress(cluster_pb2.JobProgress.FromString(sent)) == progress


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (cluster_pb2.Job(job=0, kind=1, state=1), "job id 0 is not allowed"),
        (cluster_pb2.Job(job=3, kind=9, state=1), "kind of job 3 9 is not allowed"),
        (cluster_pb2.Job(job=3, kind=1, state=9), "state of job 3 9 is not allowed"),
        (cluster_pb2.Job(job=3, kind=1, state=1, moves=[cluster_pb2.Move()]), "chain id 0"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(message: cluster_pb2.Job, why: str) -> None:
    with pytest.raises(Fs3Error, match=why) as error:
        wire.decode_job(message)
    assert error.value.code is Code.INVALID
