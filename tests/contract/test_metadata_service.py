"""The Metadata and ClusterManager services of a real metaserver: same tests, every way to reach it.

Bindings: frames and gRPC. Engines: memory and RocksDB. Each test works in a directory of its own.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from metaserver_under_test import CHAINS, CHUNK_BYTES, CLIENT, running

from fs3 import wire
from fs3.core.types import LocalState, PublicState
from fs3.errors import Code, Fs3Error
from fs3.proto import cluster_pb2, common_pb2
from fs3.proto import metadata_pb2 as pb
from fs3.types import Credentials

CLIENTS = itertools.count(CLIENT)  # each test is a client of its own
ROOT, ALICE = Credentials(uid=0, gid=0), Credentials(uid=1000, gid=1000)


@pytest.fixture(scope="module", params=["memory", "rocksdb"])
def server(request, tmp_path_factory):
    with running(request.param, tmp_path_factory.mktemp("meta")) as made:
        yield made


@pytest.fixture(params=["frames", "grpc"])
def binding(request):
    return request.param


class Place:
    """A directory of the test's own, and how to call."""

    def __init__(self, server, binding):
        client = next(CLIENTS)
        self.name = b"of-client-%d" % client
        self.storage = server.storage
        self.stub = server.metadata(binding, client)
        made = self.stub.make_directory(
            pb.MakeDirectoryRequest(parent=1, name=self.name, permissions=0o755), who=ROOT
        )
        self.directory = made.inode.inode

    def create(self, name=b"f", *, session=1, who=ROOT, request_id=None, **more):
        request = pb.CreateRequest(
            parent=self.directory, name=name, permissions=0o644, write=True, session=session, **more
        )
        return self.stub.create(request, who=who, request_id=request_id)

    def lookup(self, name=b"f", who=ROOT):
        return self.stub.lookup(pb.LookupRequest(parent=self.directory, name=name), who=who).inode

    def names(self):
        request = pb.ReadDirectoryRequest(inode=self.directory)
        return [e.name for e in self.stub.read_directory(request, who=ROOT).entries]

    def truncate(self, inode, length, **more):
        request = pb.SetAttributesRequest(inode=inode, length_bytes=length)
        return self.stub.set_attributes(request, who=ROOT, **more).inode

    def settle(self, inode, length, truncate_version):
        request = pb.SettleLengthRequest(
            inode=inode, length_bytes=length, truncate_version=truncate_version
        )
        return self.stub.settle_length(request).inode


@pytest.fixture
def place(server, binding):
    server.storage.failing.clear()
    return Place(server, binding)


def refused(code):
    return pytest.raises(Fs3Error, check=lambda error: error.code is code)


# Names.


def test_created_file_is_found_with_its_layout(place):
    created = place.create()
    assert created.created
    assert place.lookup() == created.inode
    assert sorted(created.inode.layout.chains) == [1, 2, 3]
    assert created.inode.layout.chunk_bytes == CHUNK_BYTES


def test_repeated_request_gets_the_first_answer(place):
    first = place.create(exclusive=True, request_id=4711)
    assert place.create(exclusive=True, request_id=4711) == first
    with refused(Code.EXISTS):
        place.create(exclusive=True)


def test_repeated_unlink_is_no_error(place):
    place.create()
    request = pb.UnlinkRequest(parent=place.directory, name=b"f")
    place.stub.unlink(request, who=ROOT, request_id=815)
    place.stub.unlink(request, who=ROOT, request_id=815)
    with refused(Code.NOT_FOUND):
        place.stub.unlink(request, who=ROOT)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", Code.INVALID),
        (b".", Code.INVALID),
        (b"a/b", Code.INVALID),
        (b"a\0b", Code.INVALID),
        (b"x" * 256, Code.NAME_TOO_LONG),
    ],
)
def test_name_that_is_none_is_refused_and_nothing_is_stored(place, name, code):
    with refused(code):
        place.create(name)
    assert place.names() == []


def test_names_that_are_not_utf8_survive(place):
    place.create(b"\xff\xfe")
    assert place.names() == [b"\xff\xfe"]


def test_path_with_nul_is_refused(place):
    with refused(Code.INVALID):
        place.stub.resolve(pb.ResolveRequest(path=b"/a\0b", follow=True), who=ROOT)


def test_chunk_size_of_three_is_refused_and_nothing_is_stored(place):
    with pytest.raises(Fs3Error, match="chunk size 3 bytes is not allowed") as caught:
        place.create(layout=common_pb2.Layout(chunk_bytes=3))
    assert caught.value.code is Code.INVALID
    assert place.names() == []


def test_directory_layout_is_inherited(place):
    layout = common_pb2.Layout(chunk_bytes=1 << 20, stripe=2)
    place.stub.set_layout(pb.SetLayoutRequest(inode=place.directory, layout=layout), who=ROOT)
    made = place.create().inode.layout
    assert (made.chunk_bytes, made.stripe, len(made.chains)) == (1 << 20, 2, 2)


def test_directory_is_read_in_pages_with_attributes(place):
    for i in range(5):
        place.create(b"f%d" % i)
    seen, after, more = [], b"", True
    while more:
        request = pb.ReadDirectoryRequest(
            inode=place.directory, after=after, limit=2, attributes=True
        )
        page = place.stub.read_directory(request, who=ROOT)
        assert all(entry.attributes.inode == entry.inode for entry in page.entries)
        seen += [entry.name for entry in page.entries]
        after, more = seen[-1], page.more
    assert seen == [b"f%d" % i for i in range(5)]


def test_rename_link_unlink_symlink_and_resolve(place):
    file = place.create(b"a").inode.inode
    here = place.directory
    place.stub.link(pb.LinkRequest(inode=file, parent=here, name=b"b"), who=ROOT)
    place.stub.rename(
        pb.RenameRequest(parent=here, name=b"a", new_parent=here, new_name=b"c"), who=ROOT
    )
    place.stub.unlink(pb.UnlinkRequest(parent=here, name=b"b"), who=ROOT)
    made = place.stub.make_symlink(
        pb.MakeSymlinkRequest(parent=here, name=b"s", target=b"c"), who=ROOT
    )
    assert wire.decode_inode(made.inode).symlink == "c"
    path = b"/" + place.name + b"/s"
    found = place.stub.resolve(pb.ResolveRequest(path=path, follow=True), who=ROOT)
    assert (found.inode.inode, found.parent, found.name) == (file, here, b"c")
    missing = place.stub.resolve(
        pb.ResolveRequest(path=path[:-1] + b"new", want_parent=True), who=ROOT
    )
    assert (missing.inode.inode, missing.parent, missing.name) == (0, here, b"new")


def test_removing_a_directory_that_is_not_empty_is_refused(place):
    made = place.stub.make_directory(
        pb.MakeDirectoryRequest(parent=place.directory, name=b"d", permissions=0o755), who=ROOT
    )
    inner = pb.MakeDirectoryRequest(parent=made.inode.inode, name=b"e", permissions=0o755)
    place.stub.make_directory(inner, who=ROOT)
    with refused(Code.NOT_EMPTY):
        place.stub.remove_directory(pb.UnlinkRequest(parent=place.directory, name=b"d"), who=ROOT)
    place.stub.remove_directory(pb.UnlinkRequest(parent=made.inode.inode, name=b"e"), who=ROOT)
    place.stub.remove_directory(pb.UnlinkRequest(parent=place.directory, name=b"d"), who=ROOT)
    assert place.names() == []


def test_fifo_is_made(place):
    request = pb.MakeNodeRequest(parent=place.directory, name=b"p", mode=0o010600)
    made = wire.decode_inode(place.stub.make_node(request, who=ROOT).inode)
    assert (made.kind.name, made.permissions) == ("FIFO", 0o600)


# Attributes.


def test_permissions_are_checked_for_whom_it_is(place):
    with refused(Code.ACCESS):
        place.create(who=ALICE)
    file = place.create().inode.inode
    with refused(Code.PERMISSION):
        place.stub.set_attributes(pb.SetAttributesRequest(inode=file, permissions=0o777), who=ALICE)


def test_request_without_credentials_is_refused(place):
    with refused(Code.INVALID):
        place.stub.lookup(pb.LookupRequest(parent=1, name=b"x"))


def test_change_without_a_client_id_is_refused(server, binding):
    stub = server.metadata(binding, client=0)
    with pytest.raises(Fs3Error, match="client_id 0"):
        stub.make_directory(pb.MakeDirectoryRequest(parent=1, name=b"no-client"), who=ROOT)


def test_attributes_of_many_come_in_order_and_gone_ones_are_marked(place):
    file = place.create().inode.inode
    request = pb.GetAttributesRequest(inodes=[1 << 40, file, 1])
    assert [i.inode for i in place.stub.get_attributes(request).inodes] == [0, file, 1]


def test_xattrs(place):
    file = place.create().inode.inode

    def ask(method, **more):
        return method(pb.XattrRequest(inode=file, **more), who=ROOT)

    ask(place.stub.set_xattr, name=b"user.a", value=b"\0\xff")
    assert ask(place.stub.get_xattr, name=b"user.a").value == b"\0\xff"
    assert list(ask(place.stub.list_xattrs).names) == [b"user.a"]
    with refused(Code.EXISTS):
        ask(place.stub.set_xattr, name=b"user.a", value=b"", create=True)
    ask(place.stub.remove_xattr, name=b"user.a")
    with refused(Code.NO_ATTRIBUTE):
        ask(place.stub.get_xattr, name=b"user.a")


def test_space_is_counted_once_for_all_replicas(place):
    space = place.stub.stat_fs(pb.StatFsRequest())
    assert (space.capacity_bytes, space.free_bytes) == (CHAINS * 1000, CHAINS * 700)
    assert space.inodes >= 2


# Lengths.


def fill(place, inode, chunks):
    """``chunks`` full chunks, settled."""
    for slot in range(chunks):
        place.storage.put(inode, slot, CHUNK_BYTES)
    place.settle(inode.inode, chunks * CHUNK_BYTES, inode.truncate_version)


def test_truncation_trims_every_chain_before_it_is_answered(place):
    inode = place.create().inode
    fill(place, inode, 20)
    cut = place.truncate(inode.inode, 4 * CHUNK_BYTES + 100)
    assert cut.length_bytes == 4 * CHUNK_BYTES + 100
    assert cut.truncate_version == inode.truncate_version + 1
    assert place.storage.of(inode.inode) == {**dict.fromkeys(range(4), CHUNK_BYTES), 4: 100}


def test_opening_with_truncate_trims(place):
    inode = place.create().inode
    fill(place, inode, 2)
    request = pb.OpenRequest(inode=inode.inode, write=True, truncate=True, session=2)
    assert place.stub.open(request, who=ROOT).inode.length_bytes == 0
    assert place.storage.of(inode.inode) == {}


def test_growing_asks_no_storageserver(place):
    inode = place.create().inode.inode
    before = len(place.storage.calls)
    assert place.truncate(inode, 10 * CHUNK_BYTES).length_bytes == 10 * CHUNK_BYTES
    assert len(place.storage.calls) == before


def test_truncation_that_a_chain_cannot_follow_is_finished_by_the_same_request(place):
    inode = place.create().inode
    fill(place, inode, 6)
    place.storage.failing[inode.layout.chains[1]] = Code.NOT_SERVING
    with refused(Code.MAYBE_APPLIED):
        place.truncate(inode.inode, 0, request_id=99)
    assert place.storage.of(inode.inode)
    place.storage.failing.clear()
    assert place.truncate(inode.inode, 0, request_id=99).truncate_version == 1
    assert place.storage.of(inode.inode) == {}


def test_truncation_that_nobody_repeats_is_finished_in_the_background(place):
    inode = place.create().inode
    fill(place, inode, 6)
    place.storage.failing[inode.layout.chains[1]] = Code.NOT_SERVING
    with refused(Code.MAYBE_APPLIED):
        place.truncate(inode.inode, 0)
    place.storage.failing.clear()
    place.storage.wait_for(lambda: not place.storage.of(inode.inode))


def test_file_with_a_pending_trim_does_not_grow_until_it_is_done(place):
    inode = place.create().inode
    fill(place, inode, 6)
    place.storage.failing[inode.layout.chains[1]] = Code.NOT_SERVING
    with refused(Code.MAYBE_APPLIED):
        place.truncate(inode.inode, 0)
    with refused(Code.MAYBE_APPLIED):
        place.truncate(inode.inode, 6 * CHUNK_BYTES)
    with refused(Code.MAYBE_APPLIED):
        place.stub.reserve_append(pb.ReserveAppendRequest(inode=inode.inode, length_bytes=1))
    place.storage.failing.clear()
    place.truncate(inode.inode, 6 * CHUNK_BYTES)
    assert place.storage.of(inode.inode) == {}


def test_close_settles_the_length_and_ends_the_session(place):
    inode = place.create(session=5).inode
    item = pb.CloseItem(inode=inode.inode, session=5, wrote=True, length_bytes=77)
    (closed,) = place.stub.close(pb.CloseRequest(items=[item])).inodes
    assert closed.length_bytes == 77
    assert place.lookup().length_bytes == 77


def test_writer_that_missed_a_cut_gets_the_length_that_is_stored(place):
    inode = place.create().inode
    fill(place, inode, 6)
    place.truncate(inode.inode, 0)
    place.storage.put(inode, 2, 500)  # written after the cut, by somebody who has not heard of it
    settled = place.settle(inode.inode, 6 * CHUNK_BYTES, inode.truncate_version)
    assert settled.length_bytes == 2 * CHUNK_BYTES + 500


def test_appends_of_many_clients_never_overlap(server, binding, place):
    inode = place.create().inode.inode
    request = pb.ReserveAppendRequest(inode=inode, length_bytes=10)

    def reserve(client):
        stub = server.metadata(binding, client)
        return [stub.reserve_append(request).offset_bytes for _ in range(5)]

    with ThreadPoolExecutor(8) as threads:
        offsets = sorted(itertools.chain.from_iterable(threads.map(reserve, range(1, 9))))
    assert offsets == list(range(0, 400, 10))


def test_length_beyond_the_limit_is_refused(place):
    inode = place.create().inode.inode
    with refused(Code.TOO_LARGE):
        place.truncate(inode, 1 << 60)
    with refused(Code.TOO_LARGE):
        place.settle(inode, 1 << 60, 0)


# Removal.


def test_removed_file_loses_its_chunks_once_it_is_closed(place):
    inode = place.create(session=5).inode
    fill(place, inode, 20)
    place.stub.unlink(pb.UnlinkRequest(parent=place.directory, name=b"f"), who=ROOT)
    request = pb.GetAttributesRequest(inodes=[inode.inode])
    assert place.stub.get_attributes(request).inodes[0].links == 0
    assert len(place.storage.of(inode.inode)) == 20
    place.stub.close(pb.CloseRequest(items=[pb.CloseItem(inode=inode.inode, session=5)]))
    place.storage.wait_for(lambda: not place.storage.of(inode.inode))


def test_removed_file_waits_for_a_chain_that_is_down(place):
    inode = place.create(session=5).inode
    fill(place, inode, 6)
    place.storage.failing[inode.layout.chains[0]] = Code.NOT_SERVING
    place.stub.close(pb.CloseRequest(items=[pb.CloseItem(inode=inode.inode, session=5)]))
    place.stub.unlink(pb.UnlinkRequest(parent=place.directory, name=b"f"), who=ROOT)
    left = {slot for slot in range(6) if slot % 3 == 0}
    place.storage.wait_for(lambda: set(place.storage.of(inode.inode)) == left)
    place.storage.failing.clear()
    place.storage.wait_for(lambda: not place.storage.of(inode.inode))


def test_client_is_told_its_lease(server, binding):
    reply = server.metadata(binding).extend_session(pb.ExtendSessionRequest())
    assert reply.lease_ms == server.settings.sessions.lease_ms


# The cluster manager, over the wire.


def test_routing_and_status_say_what_was_registered(server, binding):
    manager = server.manager(binding)
    routing = manager.get_routing(cluster_pb2.GetRoutingRequest())
    assert routing.from_version == 0
    assert [c.chain for c in routing.chains] == [1, 2, 3]
    assert {r.state for c in routing.chains for r in c.replicas} == {PublicState.SERVING}
    nothing_new = manager.get_routing(cluster_pb2.GetRoutingRequest(known_version=routing.version))
    assert nothing_new.from_version == nothing_new.version == routing.version
    status = manager.get_status(cluster_pb2.GetStatusRequest())
    assert [n.node.node for n in status.nodes][:3] == [1, 2, 3]  # other tests register more
    assert status.nodes[0].targets[0].capacity_bytes == 1000


def test_heartbeat_over_the_wire_gets_leases(server, binding):
    manager = server.manager(binding)
    # Each binding says later heartbeats than the one before: the server outlives this test.
    sequence = manager.next_request_id()
    node = cluster_pb2.Node(
        node=9, host="h9", data_address="127.0.0.1:1", incarnation=sequence, alive=True
    )
    targets = [cluster_pb2.TargetReport(target=90, local_state=LocalState.OFFLINE)]
    reply = manager.register_node(cluster_pb2.RegisterNodeRequest(node=node, targets=targets))
    assert (reply.heartbeat_ms, reply.lease_ms) == (500, 3_600_000)
    beat = cluster_pb2.HeartbeatRequest(node=9, incarnation=sequence, sequence=1, targets=targets)
    answer = manager.heartbeat(beat)
    assert (answer.sequence, list(answer.leases)) == (1, [])
    with refused(Code.STALE_UPDATE):
        manager.heartbeat(beat)
    beat.incarnation = 1
    with refused(Code.UNKNOWN_NODE):
        manager.heartbeat(beat)
    beat.incarnation, beat.sequence = sequence, 2
    beat.targets[0].local_state = 17
    with pytest.raises(Fs3Error, match="local state of target 90 17 is not allowed"):
        manager.heartbeat(beat)


def test_routing_stream_brings_each_change_over_grpc(server):
    manager = server.manager("grpc")
    stream = manager.watch_routing(cluster_pb2.GetRoutingRequest())
    first = next(stream)
    assert first.from_version == 0
    node = cluster_pb2.Node(
        node=8, host="h8", data_address="127.0.0.1:1", incarnation=manager.next_request_id()
    )
    manager.register_node(cluster_pb2.RegisterNodeRequest(node=node))
    second = next(stream)
    assert second.from_version == first.version
    assert [n.node for n in second.nodes] == [8]
    stream.close()
