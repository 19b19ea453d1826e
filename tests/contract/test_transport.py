"""The frame transport over real loopback sockets: what must hold whatever the other end does."""

import os
import socket
import threading
import time
from collections import Counter

import pytest

from fs3 import frames
from fs3.buffers import BufferPool
from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor
from fs3.transport.client import DataConnection, drive
from fs3.transport.tcp import FrameServer, Limits, open_frame_peer

CLUSTER = "test-cluster"
ECHO, NO_BODY, BIG, COUNT = 0x7001, 0x7002, 0x7003, 0x7004
POOL_BYTES = 512 << 20
PATTERN = memoryview(os.urandom(1 << 20) * 64)


class Server:
    """A frame server on a thread of its own, with a few methods to call."""

    def __init__(self, limits: Limits | None = None, pool_bytes: int = POOL_BYTES):
        self.reactor = Reactor()
        self.pool = BufferPool(pool_bytes)
        self.frames = FrameServer(
            self.reactor, CLUSTER, None, "127.0.0.1:0", limits or Limits(), self.pool
        )
        self.frames.take([ECHO], self.echo)
        self.frames.take([NO_BODY], lambda c, r: c.reply(r.request_id, r.method, r.head))
        self.frames.take([BIG], self.big)
        self.frames.take([COUNT], self.count)
        self.counted: Counter[bytes] = Counter()
        self.counted_bytes = 0
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.reactor.run)

    def echo(self, connection, request):
        body = request.body
        if body is None:
            connection.reply(request.request_id, request.method, request.head)
        else:
            connection.reply(
                request.request_id, request.method, request.head, [body.view], body.release
            )

    def big(self, connection, request):
        body = self.pool.take(int(request.head))
        connection.reply(request.request_id, request.method, b"", [body.view], body.release)

    def count(self, connection, request):
        with self.changed:
            self.counted[request.head] += 1
            if request.body is not None:
                self.counted_bytes += len(request.body)
                request.body.release()
            self.changed.notify_all()

    def wait_for(self, predicate, timeout_s=10.0):
        with self.changed:
            assert self.changed.wait_for(predicate, timeout_s)

    def on_loop(self, function):
        """What ``function`` returns in the reactor's thread."""
        done = threading.Event()
        result = []

        def run():
            result.append(function())
            done.set()

        self.reactor.call_soon(run)
        assert done.wait(10)
        return result[0]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.on_loop(self.frames.close)
        self.reactor.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.reactor.close()
        assert self.pool.used_bytes == 0, "a buffer was not given back"

    @property
    def port(self):
        return int(self.frames.address.rpartition(":")[2])

    def raw(self):
        """A plain socket to it."""
        made = socket.create_connection(("127.0.0.1", self.port), 10)
        made.settimeout(10)
        return made


class Client:
    """A DataConnection whose replies' bodies land in buffers made to measure."""

    def __init__(self, server):
        self.bodies = {}
        self.room = {}
        self.connection = DataConnection(server.frames.address, CLUSTER, self.place)
        self.ids = iter(range(1, 1 << 30))

    def place(self, request_id, head):
        parts = self.room.pop(request_id)
        self.bodies[request_id] = parts
        return parts

    def send(self, method, head=b"", body=(), room=()):
        request_id = next(self.ids)
        self.room[request_id] = [memoryview(bytearray(n)) for n in room]
        self.connection.send(method, request_id, head, body)
        return request_id

    def finish(self, timeout_s=30.0):
        """Everything that is pending, by request id."""
        done = {}
        deadline_s = time.monotonic() + timeout_s
        while self.connection.pending or not done:
            completions = drive([self.connection], deadline_s)
            if not completions:
                break
            done |= {c.request_id: c for c in completions}
        return done

    def body(self, request_id):
        return b"".join(self.bodies.get(request_id, []))


@pytest.fixture
def server():
    with Server() as made:
        yield made


def request_frame(method=NO_BODY, head=b"hello", body=b"", cluster=CLUSTER, request_id=5):
    tag = frames.cluster_tag(cluster)
    start = frames.encode(frames.FrameKind.REQUEST, method, tag, request_id, head, len(body))
    return start + head + body


def read_exactly(raw, count):
    data = b""
    while len(data) < count:
        more = raw.recv(count - len(data))
        if not more:
            raise EOFError(data)
        data += more
    return data


def read_frame(raw):
    header = frames.decode(read_exactly(raw, frames.HEADER_BYTES))
    head = read_exactly(raw, header.head_bytes)
    frames.check_head(header, head)
    return header, head, read_exactly(raw, header.body_bytes)


def assert_serves(server):
    client = Client(server)
    request_id = client.send(ECHO, b"still here", [PATTERN[:5]], [5])
    done = client.finish()
    assert done[request_id].error is None
    assert client.body(request_id) == PATTERN[:5]
    client.connection.close()


SIZES = [0, 1, 4095, 4096, 8152, 8153, 16_384, 100_000, (1 << 20) + 3, 64 << 20]


@pytest.mark.parametrize("size", SIZES)
def test_a_body_of_any_size_comes_back_unchanged(server, size):
    client = Client(server)
    request_id = client.send(ECHO, b"x" * 7, [PATTERN[:size]], [size] if size else [])
    done = client.finish()
    assert done[request_id].error is None
    assert done[request_id].head == b"x" * 7
    assert client.body(request_id) == PATTERN[:size]
    client.connection.close()


@pytest.mark.parametrize("head_bytes", [0, 1, 4096, 16_344, 16_345, 300_000, 5 << 20])
def test_a_head_of_any_size_arrives_whole(server, head_bytes):
    client = Client(server)
    head = bytes(PATTERN[:head_bytes])
    ids = [client.send(ECHO, head, [PATTERN[:9000]], [9000]) for _ in range(3)]
    done = client.finish()
    assert [done[i].head == head and done[i].error is None for i in ids] == [True] * 3
    assert {client.body(i) for i in ids} == {bytes(PATTERN[:9000])}
    client.connection.close()


def test_a_body_is_scattered_over_the_callers_memory(server):
    client = Client(server)
    room = [1, 4096, 0, 17, 100_000, 3000] + [10] * 2500
    size = sum(room)
    request_id = client.send(ECHO, b"", [PATTERN[:100], PATTERN[100:size]], room)
    assert client.finish()[request_id].error is None
    assert [len(part) for part in client.bodies[request_id]] == room
    assert client.body(request_id) == PATTERN[:size]
    client.connection.close()


def test_more_parts_than_one_system_call_takes_are_sent_in_order(server):
    client = Client(server)
    parts = [PATTERN[i * 10 : i * 10 + 10] for i in range(5000)]
    request_id = client.send(ECHO, b"", parts, [50_000])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == PATTERN[:50_000]
    client.connection.close()


def test_many_requests_in_flight_on_one_connection_each_get_their_own_answer(server):
    client = Client(server)
    sizes = {}
    for i in range(500):
        size = (i * 7919) % 20_000
        method = ECHO if size else NO_BODY
        request_id = client.send(method, b"%d" % i, [PATTERN[i : i + size]], [size] if size else [])
        sizes[request_id] = i, size
    done = client.finish()
    assert len(done) == 500
    for request_id, (i, size) in sizes.items():
        assert done[request_id].error is None
        assert done[request_id].head == b"%d" % i
        assert client.body(request_id) == PATTERN[i : i + size]
    client.connection.close()


def test_many_connections_are_served_at_once(server):
    clients = [Client(server) for _ in range(100)]
    ids = [
        client.send(ECHO, b"c%d" % i, [PATTERN[:777]], [777]) for i, client in enumerate(clients)
    ]
    deadline_s = time.monotonic() + 20
    done = {}
    while len(done) < len(clients):
        completions = drive([c.connection for c in clients], deadline_s)
        assert completions
        done |= {id(c.connection): c for c in completions}
    for i, (client, request_id) in enumerate(zip(clients, ids, strict=True)):
        assert done[id(client.connection)].head == b"c%d" % i
        assert client.body(request_id) == PATTERN[:777]
        client.connection.close()


def test_a_reader_that_takes_no_answers_is_not_read_and_stalls_nobody(server):
    lazy = server.raw()
    asked = request_frame(BIG, b"%d" % (4 << 20))
    lazy.sendall(asked * 40)  # 160 MiB of answers that it never reads
    client = Client(server)
    for _ in range(50):
        request_id = client.send(ECHO, b"", [PATTERN[:4096]], [4096])
        assert client.finish(5)[request_id].error is None
    # The limit, one answer beyond it, and what one turn takes: not all 160 MiB.
    waiting = server.on_loop(lambda: max(c.unsent_bytes for c in server.frames.connections))
    assert waiting <= Limits().unsent_bytes + (4 << 20)
    lazy.close()
    client.connection.close()


def test_a_reader_that_was_slow_gets_everything_in_the_end(server):
    lazy = server.raw()
    lazy.sendall(request_frame(BIG, b"%d" % (1 << 20)) * 60)
    assert_serves(server)
    for _ in range(60):
        header, _, body = read_frame(lazy)
        assert (header.kind, len(body)) == (frames.FrameKind.REPLY, 1 << 20)
    lazy.close()


def read_refusal(raw):
    """The one error frame, after which the connection ends."""
    header, head, _ = read_frame(raw)
    assert header.kind == frames.FrameKind.ERROR
    with pytest.raises(EOFError):
        read_exactly(raw, 1)
    raw.close()
    return frames.decode_error(head)


def test_garbage_gets_one_error_frame_and_the_end(server):
    raw = server.raw()
    raw.sendall(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n" * 3)
    error = read_refusal(raw)
    assert (error.code, "b'GET '" in error.detail) == (Code.PROTOCOL, True)
    assert_serves(server)


def test_a_frame_that_announces_too_much_gets_an_error_naming_the_limit(server):
    frame = bytearray(request_frame())
    frame[32:36] = (frames.BODY_BYTES_MAX + 1).to_bytes(4, "little")
    raw = server.raw()
    raw.sendall(frame)
    error = read_refusal(raw)
    assert error.code is Code.TOO_LARGE
    assert str(frames.BODY_BYTES_MAX) in error.detail
    assert_serves(server)


def test_a_damaged_head_is_refused_before_its_body_is_believed(server):
    frame = bytearray(request_frame(ECHO, b"hello", b"body"))
    frame[42] ^= 1
    raw = server.raw()
    raw.sendall(frame)
    error = read_refusal(raw)
    assert (error.code, "checksum" in error.detail) == (Code.PROTOCOL, True)
    assert_serves(server)


def test_an_error_frame_to_a_server_is_not_answered_for_ever(server):
    raw = server.raw()
    head = frames.encode_error(Fs3Error(Code.BUSY, "x"))
    tag = frames.cluster_tag(CLUSTER)
    raw.sendall(frames.encode(frames.FrameKind.ERROR, 1, tag, 1, head, 0) + head)
    assert read_refusal(raw).code is Code.PROTOCOL
    assert_serves(server)


def test_a_frame_of_another_cluster_is_refused_and_the_connection_lives(server):
    raw = server.raw()
    raw.sendall(request_frame(ECHO, b"h", bytes(PATTERN[:70_000]), cluster="other"))
    raw.sendall(request_frame(ECHO, b"h", b"mine"))
    header, head, _ = read_frame(raw)
    error = frames.decode_error(head)
    assert (header.request_id, error.code) == (5, Code.WRONG_CLUSTER)
    assert repr(CLUSTER) in error.detail
    assert read_frame(raw)[2] == b"mine"
    raw.close()


def test_a_frame_of_another_protocol_version_is_refused_and_the_connection_lives(
    server, monkeypatch
):
    raw = server.raw()
    with monkeypatch.context() as patch:
        patch.setattr(frames, "PROTOCOL_VERSION", 9)
        strange = request_frame(ECHO, b"h", b"body")
    raw.sendall(strange)
    raw.sendall(request_frame(ECHO, b"h", b"mine"))
    error = frames.decode_error(read_frame(raw)[1])
    assert error.code is Code.PROTOCOL
    assert "version 9" in error.detail
    assert read_frame(raw)[2] == b"mine"
    raw.close()


def test_an_unknown_method_is_refused_and_its_body_skipped(server):
    raw = server.raw()
    raw.sendall(request_frame(0x7777, b"", bytes(PATTERN[:200_000])) + request_frame())
    error = frames.decode_error(read_frame(raw)[1])
    assert (error.code, "0x7777" in error.detail) == (Code.UNSUPPORTED, True)
    assert read_frame(raw)[1] == b"hello"
    raw.close()


def test_a_body_over_this_ports_limit_is_skipped_and_the_connection_lives():
    with Server(Limits(body_bytes=100_000)) as server:
        raw = server.raw()
        raw.sendall(request_frame(ECHO, b"", bytes(PATTERN[:100_001])) + request_frame())
        error = frames.decode_error(read_frame(raw)[1])
        assert (error.code, "100000" in error.detail) == (Code.TOO_LARGE, True)
        assert read_frame(raw)[1] == b"hello"
        raw.close()


def test_without_a_free_buffer_a_request_is_told_busy_and_the_connection_lives():
    with Server(pool_bytes=128 << 10) as server:
        half = server.raw()
        half.sendall(request_frame(ECHO, b"", bytes(PATTERN[: 128 << 10]))[:-1])
        server_has = lambda: server.pool.used_bytes == 128 << 10  # noqa: E731
        while not server.on_loop(server_has):
            pass
        raw = server.raw()
        raw.sendall(request_frame(ECHO, b"", b"body") + request_frame())
        assert frames.decode_error(read_frame(raw)[1]).code is Code.BUSY
        assert read_frame(raw)[1] == b"hello"
        raw.close()
        half.close()


@pytest.mark.parametrize("cut", [1, 39, 40, 44, 45, 46, 30_000])
def test_a_peer_that_dies_within_a_frame_leaves_nothing_behind(server, cut):
    frame = request_frame(ECHO, b"hello", bytes(PATTERN[:40_000]))
    raw = server.raw()
    raw.sendall(frame[:cut])
    raw.close()
    assert_serves(server)
    while server.on_loop(lambda: len(server.frames.connections)):
        pass
    assert server.pool.used_bytes == 0


def test_a_frame_sent_byte_by_byte_is_understood(server):
    raw = server.raw()
    for byte in request_frame(ECHO, b"hello", b"0123456789" * 5):
        raw.sendall(bytes([byte]))
    assert read_frame(raw)[2] == b"0123456789" * 5
    raw.close()


def test_a_frame_without_progress_ends_its_connection_and_frees_its_buffer():
    with Server(Limits(stall_s=0.05)) as server:
        raw = server.raw()
        raw.sendall(request_frame(ECHO, b"hello", b"x" * 100)[:-1])
        error = read_refusal(raw)
        assert (error.code, "progress" in error.detail) == (Code.PROTOCOL, True)


def test_one_connection_too_many_is_told_so():
    with Server(Limits(connections=2)) as server:
        first, second = Client(server), Client(server)
        for client in (first, second):
            client.send(NO_BODY)
            assert all(c.error is None for c in client.finish().values())
        third = Client(server)
        request_id = third.send(NO_BODY)
        error = third.finish()[request_id].error
        assert error is not None
        assert (error.code, "2 connections" in error.detail) == (Code.BUSY, True)
        assert third.connection.dead
        first.connection.close()
        while server.on_loop(lambda: len(server.frames.connections)) > 1:
            pass
        assert_serves(server)
        second.connection.close()


def test_a_bug_in_a_frame_handler_closes_only_that_connection(server):
    def broken(_connection, _request):
        raise ZeroDivisionError

    server.on_loop(lambda: server.frames.take([0x7AAA], broken))
    other = Client(server)
    other.send(NO_BODY)
    other.finish()
    client = Client(server)
    request_id = client.send(0x7AAA)
    error = client.finish()[request_id].error
    assert error is not None
    assert error.code is Code.MAYBE_APPLIED
    request_id = other.send(NO_BODY)
    assert other.finish()[request_id].error is None
    other.connection.close()


def test_what_nobody_listens_to_completes_as_unreachable():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % probe.getsockname()[1]
        connection = DataConnection(address, CLUSTER, lambda _id, _head: None)
        connection.send(NO_BODY, 1, b"")
        (completion,) = drive([connection], time.monotonic() + 10)
    assert completion.error is not None
    assert completion.error.code is Code.UNREACHABLE
    assert connection.dead


def test_drive_comes_back_at_its_deadline_without_an_answer(server):
    client = Client(server)
    client.send(COUNT, b"never answered")
    before_s = time.monotonic()
    assert drive([client.connection], before_s + 0.05) == []
    assert 0.05 <= time.monotonic() - before_s < 1
    client.connection.close()


def test_a_forgotten_request_leaves_the_callers_memory_alone(server):
    client = Client(server)
    asked = client.send(BIG, b"%d" % (32 << 20), (), [32 << 20])
    while asked not in client.bodies:
        drive([client.connection], time.monotonic() + 0.001)
    client.connection.forget(asked)
    (memory,) = client.bodies[asked]
    memory[:] = b"\x55" * len(memory)
    later = client.send(ECHO, b"later", [PATTERN[:10]], [10])
    done = client.finish()
    assert (set(done), done[later].error) == ({later}, None)
    assert client.body(later) == PATTERN[:10]
    assert bytes(memory) == b"\x55" * len(memory)
    client.connection.close()


def test_a_reply_that_does_not_fit_its_place_kills_the_connection_not_the_memory(server):
    client = Client(server)
    asked = client.send(ECHO, b"", [PATTERN[:100]], [99])
    error = client.finish()[asked].error
    assert error is not None
    assert (error.code, client.connection.dead) == (Code.PROTOCOL, True)


class Link:
    """A peer link on a reactor of its own, with its states in order."""

    def __init__(self, address):
        self.reactor = Reactor()
        self.states = []
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.reactor.run)
        self.reactor.call_soon(self.open, address)
        self.thread.start()

    def open(self, address):
        self.peer = open_frame_peer(self.reactor, address, CLUSTER, self.on_state)

    def on_state(self, up):
        with self.changed:
            self.states.append(up)
            self.changed.notify_all()

    def wait_for(self, states):
        with self.changed:
            assert self.changed.wait_for(lambda: self.states == states, 10), self.states

    def send(self, *arguments):
        self.reactor.call_soon(lambda: self.peer.send(*arguments))

    def close(self):
        self.reactor.call_soon(self.peer.close)
        self.reactor.stop()
        self.thread.join(10)
        self.reactor.close()


def test_a_link_delivers_one_way_frames_in_order(server):
    link = Link(server.frames.address)
    link.wait_for([True])
    released = threading.Event()
    for i in range(100):
        link.send(COUNT, b"%d" % i, [PATTERN[: i * 100]])
    link.send(COUNT, b"last", [PATTERN[:10]], released.set)
    server.wait_for(lambda: server.counted[b"last"] == 1)
    assert released.wait(10)
    assert list(server.counted) == [b"%d" % i for i in range(100)] + [b"last"]
    assert server.counted_bytes == sum(i * 100 for i in range(100)) + 10
    link.close()


def test_a_link_comes_back_after_its_neighbour_was_away(server):
    link = Link(server.frames.address)
    link.wait_for([True])
    server.on_loop(lambda: [c.close() for c in server.frames.connections])
    link.wait_for([True, False, True])
    link.send(COUNT, b"again")
    server.wait_for(lambda: server.counted[b"again"] == 1)
    link.close()


def test_what_is_sent_on_a_link_that_is_down_is_dropped_and_released():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        link = Link("127.0.0.1:%d" % probe.getsockname()[1])
        released = threading.Event()
        link.send(COUNT, b"lost", [PATTERN[:10]], released.set)
        assert released.wait(10)
        link.close()
        assert link.states == []


def test_hosts_by_name_and_ipv6_are_reached():
    server = Server()
    listener = None
    try:
        listener = FrameServer(server.reactor, CLUSTER, None, "[::]:0", Limits(), server.pool)
    except Fs3Error:
        server.frames.close()
        server.reactor.close()
        pytest.skip("this machine has no IPv6")
    listener.take([NO_BODY], lambda c, r: c.reply(r.request_id, r.method, r.head))
    port = listener.address.rpartition(":")[2]
    with server:
        for host in ("[::1]", "127.0.0.1", "localhost"):
            connection = DataConnection(f"{host}:{port}", CLUSTER, lambda _id, _head: None)
            connection.send(NO_BODY, 1, host.encode())
            (completion,) = drive([connection], time.monotonic() + 10)
            assert (completion.head, completion.error) == (host.encode(), None)
            connection.close()
        server.on_loop(listener.close)
