"""Asking heads of chains over real frames: whom, how often, and when to give up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from metaserver_under_test import CHUNK_BYTES, CLUSTER, WAIT_S, FakeStorage, fake_storage, running

from fs3.core.layout import Layout
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    InodeId,
    NodeId,
    PublicState,
    Replica,
    TargetId,
)
from fs3.errors import Code, Fs3Error
from fs3.metaserver.chunk_control import ITEMS_MAX, ChunkControl, TrimItem
from fs3.metaserver.manager_feed import RoutingFeed
from fs3.proto import metadata_pb2 as pb
from fs3.routing import NodeInfo, Routing, RoutingDelta, TargetInfo
from fs3.types import Credentials, FileKind, Inode

CHAIN = ChainId(1)
NOBODY = "127.0.0.1:1"  # a port where nothing listens


def routing(address: str, state: PublicState = PublicState.SERVING) -> Routing:
    """One chain of one target at ``address``."""
    node = NodeInfo(
        node=NodeId(1),
        host="h",
        data_address=address,
        control_address=address,
        incarnation=1,
        alive=True,
    )
    chain = Chain(CHAIN, ChainVersion(1), (Replica(TargetId(11), NodeId(1), state),))
    target = TargetInfo(target=TargetId(11), node=NodeId(1), chain=CHAIN)
    delta = RoutingDelta(
        from_version=0, version=1, nodes=(node,), targets=(target,), chains=(chain,)
    )
    return Routing().apply(delta)


def a_file(owner: int, *chains: int) -> Inode:
    return Inode(
        inode=InodeId(owner),
        kind=FileKind.FILE,
        permissions=0o644,
        uid=0,
        gid=0,
        links=1,
        length_bytes=0,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        layout=Layout(CHUNK_BYTES, len(chains), 1, tuple(map(ChainId, chains))),
    )


class Setting:
    def __init__(self, storage: FakeStorage, address: str) -> None:
        self.storage = storage
        self.address = address
        self.feed = RoutingFeed(routing(address), history=4)
        self.control = ChunkControl(self.feed, CLUSTER)

    def publish(self, address: str, **more) -> None:
        version = self.feed.current.version + 1
        self.feed.publish(replace(routing(address, **more), version=version))


@pytest.fixture
def setting() -> Iterator[Setting]:
    with fake_storage() as (storage, address):
        made = Setting(storage, address)
        yield made
        made.control.close()


def trim_in_background(setting: Setting) -> tuple[threading.Thread, list[int]]:
    removed: list[int] = []

    def trim() -> None:
        removed.append(setting.control.trim(CHAIN, [TrimItem(InodeId(5))], 100, WAIT_S))

    thread = threading.Thread(target=trim)
    thread.start()
    return thread, removed


def test_trim_is_repeated_while_there_is_more(setting):
    for slot in range(10):
        setting.storage.chunks[CHAIN, 5, slot] = CHUNK_BYTES
    assert setting.control.trim(CHAIN, [TrimItem(InodeId(5), 3)], 2, 0) == 7
    assert set(setting.storage.of(5)) == {0, 1, 2}


def test_many_files_go_in_calls_of_bounded_size(setting):
    items = [TrimItem(InodeId(owner)) for owner in range(1, ITEMS_MAX + 2)]
    setting.control.trim(CHAIN, items, 100, 0)
    assert [len(call.items) for call in setting.storage.calls] == [ITEMS_MAX, 1]


def test_trim_waits_for_a_chain_whose_version_moves(setting):
    setting.storage.chunks[CHAIN, 5, 0] = 1
    setting.storage.failing[CHAIN] = Code.STALE_CHAIN
    thread, removed = trim_in_background(setting)
    setting.storage.wait_for(lambda: len(setting.storage.calls) >= 2)
    setting.storage.failing.clear()
    setting.publish(setting.address)
    thread.join()
    assert removed == [1]


def test_trim_follows_the_chain_to_another_node(setting):
    setting.storage.chunks[CHAIN, 5, 0] = 1
    setting.publish(NOBODY)
    thread, removed = trim_in_background(setting)
    setting.publish(setting.address)
    thread.join()
    assert removed == [1]


def test_trim_waits_for_somebody_to_serve(setting):
    setting.storage.chunks[CHAIN, 5, 0] = 1
    setting.publish(setting.address, state=PublicState.LASTSRV)
    thread, removed = trim_in_background(setting)
    setting.publish(setting.address)
    thread.join()
    assert removed == [1]


@pytest.mark.parametrize("address", [NOBODY, None])
def test_without_time_to_wait_the_first_failure_is_told(setting, address):
    setting.storage.failing[CHAIN] = Code.NOT_SERVING
    setting.publish(address or setting.address)
    with pytest.raises(Fs3Error) as caught:
        setting.control.trim(CHAIN, [TrimItem(InodeId(5))], 100, wait_s=0)
    assert caught.value.code is (Code.UNREACHABLE if address else Code.NOT_SERVING)


def test_failure_that_time_does_not_heal_is_told_at_once(setting):
    setting.storage.failing[CHAIN] = Code.INVALID
    with pytest.raises(Fs3Error, match="chain 1 fails"):
        setting.control.trim(CHAIN, [TrimItem(InodeId(5))], 100, WAIT_S)
    assert len(setting.storage.calls) == 1


def test_process_that_ends_waits_for_nobody(setting):
    setting.storage.failing[CHAIN] = Code.NOT_SERVING
    setting.feed.close()
    with pytest.raises(Fs3Error, match="chain 1 fails"):
        setting.control.trim(CHAIN, [TrimItem(InodeId(5))], 100, WAIT_S)


def test_written_length_is_the_end_of_the_last_chunk(setting):
    assert setting.control.written_length(a_file(5, 1), 0) == 0
    setting.storage.chunks[CHAIN, 5, 0] = CHUNK_BYTES
    setting.storage.chunks[CHAIN, 5, 3] = 9
    setting.storage.chunks[CHAIN, 6, 8] = 9
    assert setting.control.written_length(a_file(5, 1), 0) == 3 * CHUNK_BYTES + 9


def test_truncation_that_was_under_way_is_finished_by_the_next_process(tmp_path):
    root = Credentials(uid=0, gid=0)
    with running("rocksdb", tmp_path / "data") as first:
        stub = first.metadata("frames")
        request = pb.CreateRequest(parent=1, name=b"f", write=True, session=1)
        inode = stub.create(request, who=root).inode
        stub.settle_length(pb.SettleLengthRequest(inode=inode.inode, length_bytes=6 * CHUNK_BYTES))
        first.storage.failing = dict.fromkeys(inode.layout.chains, Code.NOT_SERVING)
        with pytest.raises(Fs3Error) as caught:
            stub.set_attributes(
                pb.SetAttributesRequest(inode=inode.inode, length_bytes=CHUNK_BYTES), who=root
            )
        assert caught.value.code is Code.MAYBE_APPLIED
        for slot in range(6):
            first.storage.put(inode, slot, CHUNK_BYTES)
        chunks = first.storage.chunks
    with running("rocksdb", tmp_path / "data", chunks) as second:
        second.storage.wait_for(lambda: set(second.storage.of(inode.inode)) == {0})
        found = second.metadata("frames").get_attributes(
            pb.GetAttributesRequest(inodes=[inode.inode])
        )
        assert found.inodes[0].length_bytes == CHUNK_BYTES
