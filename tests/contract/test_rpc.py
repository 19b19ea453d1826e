"""Both bindings of the handler table, through one suite: what a caller sees must not differ."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from fs3 import frames
from fs3.client.ports import PortReservation
from fs3.errors import TABLE, Code, Fs3Error
from fs3.proto import cluster_pb2, metadata_pb2
from fs3.reactor import Reactor
from fs3.rpc import FrameChannel, Handlers, Method, Stub, methods
from fs3.rpc_grpc import GrpcChannel, serve_grpc
from fs3.transport.tcp import FrameServer, serve_handlers
from fs3.types import Credentials

CLUSTER = "test-cluster"
METADATA = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
MANAGER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
WAIT_S = 60  # for what comes at once, however loaded the machine is
LOOKUP = next(m for m in methods(METADATA) if m.name == "Lookup")


class Implementation:
    """Handlers of both services that answer with what they were asked."""

    def __init__(self):
        self.entered = threading.Event()
        self.release = threading.Event()
        self.seen = []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda request: pytest.fail(f"{name} was called with {request}")

    def lookup(self, request):
        """Inline: raises the code that the name spells, or says the parent back as an inode."""
        self.seen.append(request)
        name = request.name.decode(errors="replace")
        if name.isdigit():
            raise Fs3Error(Code(int(name)), f"{name}: the détail \ud800")
        return metadata_pb2.InodeReply(inode={"inode": request.parent, "symlink": request.name})

    def create(self, request):
        """Pooled: as lookup."""
        return metadata_pb2.OpenReply(inode={"inode": request.parent}, session=request.session)

    def open(self, _request):
        """Waits to be released."""
        self.entered.set()
        assert self.release.wait(WAIT_S)
        return metadata_pb2.OpenReply(session=99)

    def unlink(self, request):
        return {}[request.name]

    def stat_fs(self, _request):
        return None

    def get_xattr(self, request):
        return metadata_pb2.XattrReply(value=bytes(request.inode))

    def watch_routing(self, request, context):
        for version in range(request.known_version, request.known_version + 3):
            assert context.is_active()
            yield cluster_pb2.RoutingUpdate(version=version)
        if request.known_version == 7:
            raise Fs3Error(Code.NOT_MANAGER, "ask node 3")


class FrameBinding:
    """A server and its channels, over frames."""

    def __init__(self, handlers, port=0):
        self.reactor = Reactor()
        self.server = FrameServer(self.reactor, CLUSTER, None, f"127.0.0.1:{port}")
        self.workers = serve_handlers(self.server, handlers, workers=4)
        self.address = self.server.address
        self.thread = threading.Thread(target=self.reactor.run)
        self.thread.start()

    def stop(self, release=lambda: None):
        self.reactor.call_soon(self.server.close)
        self.reactor.stop()
        self.thread.join(WAIT_S)
        release()
        self.workers.close()
        self.reactor.close()

    channel = FrameChannel


class GrpcBinding:
    """The same over gRPC."""

    def __init__(self, handlers, port=0):
        self.server, port = serve_grpc(handlers, f"127.0.0.1:{port}", max_workers=4)
        self.address = f"127.0.0.1:{port}"

    def stop(self, release=lambda: None):
        stopped = self.server.stop(None)
        release()
        stopped.wait(WAIT_S)

    channel = GrpcChannel


class World:
    """A binding with one implementation, a channel to it, and stubs."""

    def __init__(self, binding):
        self.implementation = Implementation()
        self.handlers = Handlers(CLUSTER)
        self.handlers.add(METADATA, self.implementation)
        self.handlers.add(MANAGER, self.implementation)
        self.binding = binding
        self.held = PortReservation(1)  # so that nobody else is there while the server is away
        self.server = binding(self.handlers, *self.held.ports)
        self.channel = binding.channel([self.server.address], CLUSTER)
        self.stub = self.stub_for(self.channel)

    def stub_for(self, channel, cluster=CLUSTER):
        return Stub(channel, METADATA, cluster, client_id=77, timeout_s=WAIT_S)

    def stop_server(self):
        if self.server is not None:
            self.server.stop(self.implementation.release.set)
            self.server = None

    def start_server(self, address):
        self.server = self.binding(self.handlers, int(address.rpartition(":")[2]))

    def close(self):
        self.channel.close()
        self.stop_server()
        self.held.release()


@pytest.fixture(params=[FrameBinding, GrpcBinding], ids=["frames", "grpc"])
def world(request):
    made = World(request.param)
    yield made
    made.close()


def lookup(parent=3, name=b"x"):
    return metadata_pb2.LookupRequest(parent=parent, name=name)


def failure_of(call, *arguments, **options):
    with pytest.raises(Fs3Error) as caught:
        call(*arguments, **options)
    return caught.value


def code_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Fs3Error as error:
        return error.code
    return Code.OK


def test_a_call_is_answered_by_its_handler(world):
    assert world.stub.lookup(lookup(5, b"\xff\x00")).inode.inode == 5
    created = world.stub.create(metadata_pb2.CreateRequest(parent=6, session=8))
    assert (created.inode.inode, created.session) == (6, 8)


def test_the_header_says_who_asks_and_every_request_has_its_own_id(world):
    who = Credentials(uid=10, gid=20, gids=(30, 40))
    world.stub.lookup(lookup(), who=who)
    world.stub.lookup(lookup())
    world.stub.lookup(lookup(), request_id=4711)
    first, second, third = (request.header for request in world.implementation.seen)
    assert (first.cluster_id, first.protocol_version) == (CLUSTER, frames.PROTOCOL_VERSION)
    assert (first.who.uid, first.who.gid, list(first.who.gids)) == (10, 20, [30, 40])
    assert not second.HasField("who")
    assert len({first.request_id, second.request_id, third.request_id}) == 3
    assert third.request_id == 4711
    assert {first.client_id, second.client_id} == {77}


@pytest.mark.parametrize("code", list(TABLE), ids=lambda code: code.name)
def test_every_error_crosses_with_its_code_and_detail(world, code):
    error = failure_of(world.stub.lookup, lookup(name=b"%d" % code))
    assert error.code is code
    assert error.detail == f"{int(code)}: the détail ?"
    assert world.stub.lookup(lookup(9)).inode.inode == 9


def test_a_bug_in_a_handler_is_answered_as_one_naming_the_method(world, caplog):
    error = failure_of(world.stub.unlink, metadata_pb2.UnlinkRequest(name=b"gone"))
    assert error.code is Code.BUG
    assert "fs3.Metadata.Unlink" in error.detail
    assert "KeyError" in error.detail
    error = failure_of(world.stub.stat_fs, metadata_pb2.StatFsRequest())
    assert (error.code, "StatFs" in error.detail) == (Code.BUG, True)
    assert [r.levelname for r in caplog.records if r.name == "fs3.rpc"] == ["ERROR", "ERROR"]


def test_a_wrong_cluster_is_refused_naming_both(world):
    channel = world.channel
    error = failure_of(world.stub_for(channel, "other").lookup, lookup())
    assert error.code is Code.WRONG_CLUSTER
    assert "'other'" in error.detail
    assert repr(CLUSTER) in error.detail
    assert world.implementation.seen == []


def test_a_wrong_protocol_version_is_refused_naming_both(world):
    request = lookup()
    request.header.cluster_id = CLUSTER
    request.header.protocol_version = 99
    error = failure_of(world.channel.call, LOOKUP, request, WAIT_S)
    assert error.code is Code.PROTOCOL
    assert "version 99" in error.detail
    assert f"version {frames.PROTOCOL_VERSION}" in error.detail
    assert world.implementation.seen == []


def test_a_method_nobody_serves_is_refused(world):
    unknown = LOOKUP._replace(service="fs3.Nothing", name="Nothing", number=0x7FFF)
    assert failure_of(world.channel.call, unknown, lookup(), WAIT_S).code is Code.UNSUPPORTED
    assert world.stub.lookup(lookup(9)).inode.inode == 9


class Garbage:
    """What no sane client sends."""

    def SerializeToString(self):
        return b"\xff\xff\xff\xff"


def test_bytes_that_are_no_message_are_refused_naming_the_method(world):
    error = failure_of(world.channel.call, LOOKUP, Garbage(), WAIT_S)
    assert (error.code, "LookupRequest" in error.detail) == (Code.PROTOCOL, True)
    assert world.stub.lookup(lookup(9)).inode.inode == 9


def test_a_reply_that_is_no_message_is_refused(world):
    # An XattrReply begins with length-delimited bytes, which no OpenReply field of that number is.
    method = next(m for m in methods(METADATA) if m.name == "GetXattr")
    lied = method._replace(reply=metadata_pb2.ReadDirectoryReply)
    request = metadata_pb2.XattrRequest(inode=7)
    request.header.cluster_id = CLUSTER
    request.header.protocol_version = frames.PROTOCOL_VERSION
    assert failure_of(world.channel.call, lied, request, WAIT_S).code is Code.PROTOCOL


def test_a_request_that_is_too_large_is_refused_before_it_is_sent(world):
    error = failure_of(world.stub.lookup, lookup(name=bytes(17 << 20)))
    assert (error.code, str(16 << 20) in error.detail) == (Code.TOO_LARGE, True)
    assert world.implementation.seen == []
    assert world.stub.lookup(lookup(9)).inode.inode == 9


@pytest.mark.parametrize("size", [60_000, 70_000, (16 << 20) - 100])
def test_large_messages_pass_both_ways(world, size):
    assert len(world.stub.lookup(lookup(name=bytes(size))).inode.symlink) == size
    assert len(world.stub.get_xattr(metadata_pb2.XattrRequest(inode=size)).value) == size


def test_a_reply_that_is_too_large_is_an_error_and_not_the_end(world):
    error = failure_of(world.stub.get_xattr, metadata_pb2.XattrRequest(inode=17 << 20))
    assert error.code is Code.TOO_LARGE
    assert world.stub.lookup(lookup(9)).inode.inode == 9


def test_an_answer_that_is_late_may_have_been_applied_and_is_never_taken_for_another(world):
    world.stub.lookup(lookup())  # connected: what follows leaves at once
    error = failure_of(world.stub.open, metadata_pb2.OpenRequest(), timeout_s=0.2)
    assert error.code is Code.MAYBE_APPLIED
    world.implementation.release.set()
    for parent in range(2, 20):
        assert world.stub.lookup(lookup(parent)).inode.inode == parent


def test_an_answer_lost_with_the_server_may_have_been_applied(world):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(world.stub.open, metadata_pb2.OpenRequest())
        assert world.implementation.entered.wait(WAIT_S)
        if isinstance(world.server, FrameBinding):
            server = world.server.server
            world.server.reactor.call_soon(lambda: [c.close() for c in server.connections])
        else:
            world.server.server.stop(None)
        error = asked.exception(WAIT_S)
        world.implementation.release.set()
    assert isinstance(error, Fs3Error)
    assert error.code is Code.MAYBE_APPLIED


def test_a_server_that_is_away_is_unreachable_and_one_that_is_back_is_used(world):
    address = world.server.address
    assert world.stub.lookup(lookup(4)).inode.inode == 4
    world.stop_server()
    while (code := failure_of(world.stub.lookup, lookup()).code) is Code.MAYBE_APPLIED:
        pass  # the connection ended under the call, which may have left
    assert code is Code.UNREACHABLE
    for _ in range(2):
        assert failure_of(world.stub.lookup, lookup()).code is Code.UNREACHABLE
    world.start_server(address)
    assert world.stub.lookup(lookup(5)).inode.inode == 5


def test_of_several_addresses_one_that_answers_is_used_and_remembered(world):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{nobody.getsockname()[1]}"
        channel = world.binding.channel([dead, world.server.address], CLUSTER)
        stub = world.stub_for(channel)
        for parent in (2, 3, 4):
            assert stub.lookup(lookup(parent)).inode.inode == parent
        channel.close()


def test_after_an_address_that_did_not_answer_the_next_one_is_tried(world):
    with socket.socket() as stuck:
        stuck.bind(("127.0.0.1", 0))
        stuck.listen()  # the kernel accepts, and nobody ever answers
        address = f"127.0.0.1:{stuck.getsockname()[1]}"
        channel = world.binding.channel([address, world.server.address], CLUSTER)
        stub = world.stub_for(channel)
        # OK: the machine was so slow that the call had not left in time, and went to the next one.
        assert code_of(stub.lookup, lookup(), timeout_s=1) in (Code.MAYBE_APPLIED, Code.OK)
        assert stub.lookup(lookup(7)).inode.inode == 7
        channel.close()


def test_calls_from_sixteen_threads_get_their_own_answers(world):
    def ask(base):
        return [
            (world.stub.lookup(lookup(base + i)).inode.inode, base + i)
            if i % 2
            else (
                world.stub.create(metadata_pb2.CreateRequest(parent=base + i)).inode.inode,
                base + i,
            )
            for i in range(40)
        ]

    with ThreadPoolExecutor(16) as pool:
        answers = [pair for pairs in pool.map(ask, range(1000, 17_000, 1000)) for pair in pairs]
    assert len(answers) == 640
    assert all(got == wanted for got, wanted in answers)


def test_a_closed_channel_says_so(world):
    world.channel.close()
    world.channel.close()
    assert failure_of(world.stub.lookup, lookup()).code is Code.CANCELLED


def test_a_channel_without_addresses_is_refused(world):
    assert failure_of(world.binding.channel, [], CLUSTER).code is Code.INVALID


def test_an_implementation_without_a_method_is_an_error_at_the_start():
    with pytest.raises(TypeError, match="has no method lookup"):
        Handlers(CLUSTER).add(METADATA, object())


def test_a_service_is_not_added_twice():
    handlers = Handlers(CLUSTER)
    handlers.add(METADATA, Implementation())
    with pytest.raises(ValueError, match="number"):
        handlers.add(METADATA, Implementation())


@pytest.mark.parametrize("service", [METADATA, MANAGER], ids=["Metadata", "ClusterManager"])
def test_every_method_has_a_number_of_its_own_and_a_header_in_its_request(service):
    declared = methods(service)
    assert len({m.number for m in declared}) == len(declared)
    assert all(isinstance(m, Method) and m.number for m in declared)
    for method in declared:
        assert method.request.DESCRIPTOR.fields_by_number[1].message_type.name == "RequestHeader"


# What only one of the bindings has


def test_streams_work_over_grpc_and_carry_errors():
    world = World(GrpcBinding)
    stub = Stub(world.channel, MANAGER, CLUSTER, 1)
    updates = stub.watch_routing(cluster_pb2.GetRoutingRequest(known_version=4))
    assert [update.version for update in updates] == [4, 5, 6]
    stream = stub.watch_routing(cluster_pb2.GetRoutingRequest(known_version=7))
    assert [next(stream).version for _ in range(3)] == [7, 8, 9]
    error = failure_of(next, stream)
    assert (error.code, error.detail) == (Code.NOT_MANAGER, "ask node 3")
    refused = Stub(world.channel, MANAGER, "other", 1).watch_routing(
        cluster_pb2.GetRoutingRequest()
    )
    assert failure_of(next, refused).code is Code.WRONG_CLUSTER
    world.close()


def test_streams_over_frames_are_refused_by_name():
    world = World(FrameBinding)
    stub = Stub(world.channel, MANAGER, CLUSTER, 1)
    error = failure_of(stub.watch_routing, cluster_pb2.GetRoutingRequest())
    assert (error.code, "WatchRouting" in error.detail) == (Code.UNSUPPORTED, True)
    watch = next(m for m in methods(MANAGER) if m.streaming)
    request = cluster_pb2.GetRoutingRequest()
    request.header.cluster_id = CLUSTER
    request.header.protocol_version = frames.PROTOCOL_VERSION
    assert failure_of(world.channel.call, watch, request, WAIT_S).code is Code.UNSUPPORTED
    world.close()


def test_grpc_has_health_and_reflection():
    world = World(GrpcBinding)
    with grpc.insecure_channel(world.server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "fs3.Metadata", "fs3.ClusterManager"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = ProtoReflectionDescriptorDatabase(channel)
        assert {"fs3.Metadata", "fs3.ClusterManager"} <= set(reflection.get_services())
        found = reflection.FindFileContainingSymbol("fs3.Metadata")
        assert "Lookup" in {m.name for m in found.service[0].method}
    world.close()


def test_a_port_that_is_taken_is_an_error_naming_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = failure_of(serve_grpc, Handlers(CLUSTER), address)
        assert (error.code, address in error.detail) == (Code.INVALID, True)
        reactor = Reactor()
        error = failure_of(FrameServer, reactor, CLUSTER, None, address)
        assert (error.code, address in error.detail) == (Code.INVALID, True)
        reactor.close()


def test_a_frame_channel_survives_a_fork():
    world = World(FrameBinding)
    assert world.stub.lookup(lookup(4)).inode.inode == 4
    child = os.fork()
    if not child:
        good = world.stub.lookup(lookup(5)).inode.inode == 5
        os._exit(0 if good else 1)
    assert world.stub.lookup(lookup(6)).inode.inode == 6
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert world.stub.lookup(lookup(7)).inode.inode == 7
    ids = [request.header.request_id for request in world.implementation.seen]
    assert len(set(ids)) == 4
    world.close()


def test_each_thread_has_a_frame_connection_of_its_own_that_ends_with_it():
    world = World(FrameBinding)

    def connections():
        counted = []
        done = threading.Event()
        server = world.server.server
        world.server.reactor.call_soon(
            lambda: (counted.append(len(server.connections)), done.set())
        )
        assert done.wait(WAIT_S)
        return counted[0]

    barrier = threading.Barrier(5)

    def ask():
        world.stub.lookup(lookup())
        barrier.wait(WAIT_S)
        barrier.wait(WAIT_S)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait(WAIT_S)
    assert connections() == 4
    barrier.wait(WAIT_S)
    for thread in threads:
        thread.join(WAIT_S)
    while connections():
        pass
    world.close()
