"""Frames when descriptors run out, callers go away, and a loop has ended."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest
from frame_peers import CLUSTER, WAIT_S, Server

from fs3.errors import Code, Fs3Error
from fs3.proto import common_pb2
from fs3.proto import metadata_pb2 as pb
from fs3.reactor import Reactor
from fs3.rpc import FrameChannel, Handlers, Stub
from fs3.transport.client import DataConnection
from fs3.transport.serving import serve_handlers
from fs3.transport.tcp import FrameServer, open_frame_peer

METADATA = pb.DESCRIPTOR.services_by_name["Metadata"]


@pytest.fixture
def no_descriptors(monkeypatch):
    """Call it with a number: so many sockets cannot be made."""
    made = socket.socket
    left = [0]

    def maybe(*arguments, **options):
        if left[0] and not options.get("fileno"):
            left[0] -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return made(*arguments, **options)

    monkeypatch.setattr(socket, "socket", maybe)
    return lambda count: left.__setitem__(0, count)


def test_without_a_descriptor_nothing_was_sent(no_descriptors):
    no_descriptors(2)
    with pytest.raises(Fs3Error, match="Too many open files") as caught:
        DataConnection("127.0.0.1:1", CLUSTER, lambda _number, _head: None)
    assert caught.value.code is Code.UNREACHABLE
    channel = FrameChannel(["127.0.0.1:1"], CLUSTER)
    stub = Stub(channel, METADATA, CLUSTER, client_id=1, timeout_s=5)
    with pytest.raises(Fs3Error, match="Too many open files") as caught:
        stub.stat_fs(pb.StatFsRequest())
    assert caught.value.code is Code.UNREACHABLE
    channel.close()


def test_a_link_that_found_no_descriptor_tries_again(no_descriptors):
    with Server() as server:
        reactor, up = Reactor(), threading.Event()
        no_descriptors(2)
        peers = []

        def on_state(is_up: bool) -> None:
            up.set()

        reactor.call_soon(
            lambda: peers.append(open_frame_peer(reactor, server.frames.address, CLUSTER, on_state))
        )
        thread = threading.Thread(target=reactor.run)
        thread.start()
        try:
            assert up.wait(WAIT_S)
        finally:
            reactor.call_soon(lambda: [peer.close() for peer in peers])
            reactor.stop()
            thread.join(WAIT_S)
            reactor.close()


class Slow:
    """A metaserver of which one method waits until it may go on."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.unlinked: list[bytes] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda request: None

    def make_directory(self, request):
        self.entered.set()
        assert self.go_on.wait(WAIT_S)
        return pb.InodeReply()

    def unlink(self, request):
        self.unlinked.append(request.name)
        return common_pb2.Empty()


def test_what_waits_for_a_worker_is_not_begun_when_its_caller_has_gone():
    slow, handlers = Slow(), Handlers(CLUSTER)
    handlers.add(METADATA, slow)
    reactor = Reactor()
    server = FrameServer(reactor, CLUSTER)
    workers = serve_handlers(server, handlers, workers=1)
    thread = threading.Thread(target=reactor.run)
    thread.start()
    channels = [FrameChannel([server.address], CLUSTER) for _ in range(2)]
    first, second = (Stub(c, METADATA, CLUSTER, client_id=1, timeout_s=WAIT_S) for c in channels)
    second.unlink(pb.UnlinkRequest(name=b"connected"))  # so the next one leaves at once
    busy = threading.Thread(target=first.make_directory, args=(pb.MakeDirectoryRequest(),))
    busy.start()
    try:
        assert slow.entered.wait(WAIT_S)
        with pytest.raises(Fs3Error) as caught:
            second.unlink(pb.UnlinkRequest(name=b"late"), timeout_s=0.2)
        assert caught.value.code is Code.MAYBE_APPLIED
        gone = threading.Event()
        while not gone.is_set():
            reactor.call_soon(lambda: len(server.connections) == 1 and gone.set())
            gone.wait(0.01)
        slow.go_on.set()
        busy.join(WAIT_S)
        second.unlink(pb.UnlinkRequest(name=b"in time"))
        assert slow.unlinked == [b"connected", b"in time"]
    finally:
        slow.go_on.set()
        for channel in channels:
            channel.close()
        reactor.call_soon(server.close)
        reactor.stop()
        thread.join(WAIT_S)
        workers.close()
        reactor.close()


def test_a_call_into_a_closed_loop_touches_no_descriptor():
    reactor = Reactor()
    reactor.close()
    read, write = os.pipe()  # gets the number of what was closed
    try:
        os.set_blocking(read, False)
        reactor.call_soon(print)
        with pytest.raises(BlockingIOError):
            os.read(read, 8)
    finally:
        os.close(read)
        os.close(write)
