"""Every transport over real sockets: what must hold whatever the other end does."""

import socket
import time
from functools import partial

import pytest
from frame_peers import (
    BIG,
    CLUSTER,
    COUNT,
    ECHO,
    NO_BODY,
    PATTERN,
    WAIT_S,
    Client,
    Server,
    assert_serves,
    read_exactly,
    read_frame,
    request_frame,
    unused_address,
)

from fs3 import frames
from fs3.errors import Code, Fs3Error
from fs3.transport.client import DataConnection, drive
from fs3.transport.tcp import FrameServer, Limits


@pytest.fixture(params=["tcp", "local"])
def serve(request):
    """Makes servers of one transport."""
    return partial(Server, kind=request.param)


@pytest.fixture
def server(serve):
    with serve() as made:
        yield made


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
    deadline_s = time.monotonic() + WAIT_S
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
        assert client.finish()[request_id].error is None
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


def test_a_body_over_this_ports_limit_is_skipped_and_the_connection_lives(serve):
    with serve(Limits(body_bytes=100_000)) as server:
        raw = server.raw()
        raw.sendall(request_frame(ECHO, b"", bytes(PATTERN[:100_001])) + request_frame())
        error = frames.decode_error(read_frame(raw)[1])
        assert (error.code, "100000" in error.detail) == (Code.TOO_LARGE, True)
        assert read_frame(raw)[1] == b"hello"
        raw.close()


def test_without_a_free_buffer_a_request_is_told_busy_and_the_connection_lives(serve):
    with serve(pool_bytes=128 << 10) as server:
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


def test_a_frame_without_progress_ends_its_connection_and_frees_its_buffer(serve):
    with serve(Limits(stall_s=0.05)) as server:
        raw = server.raw()
        raw.sendall(request_frame(ECHO, b"hello", b"x" * 100)[:-1])
        error = read_refusal(raw)
        assert (error.code, "progress" in error.detail) == (Code.PROTOCOL, True)


def test_one_connection_too_many_is_told_so(serve):
    with serve(Limits(connections=2)) as server:
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


def test_a_refusal_raised_by_a_frame_handler_is_answered_and_the_connection_lives(server):
    def refuse(_connection, request):
        raise Fs3Error(Code.NO_SPACE, f"no room for {request.head!r}")

    server.on_loop(lambda: server.frames.take([0x7BBB], refuse))
    client = Client(server)
    refused, served = client.send(0x7BBB, b"this"), client.send(NO_BODY)
    done = client.finish()
    error = done[refused].error
    assert error is not None
    assert (error.code, error.detail) == (Code.NO_SPACE, "no room for b'this'")
    assert done[served].error is None
    client.connection.close()


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
        connection = DataConnection(unused_address(probe), CLUSTER, lambda _id, _head: None)
        connection.send(NO_BODY, 1, b"")
        (completion,) = drive([connection], time.monotonic() + WAIT_S)
    assert completion.error is not None
    assert completion.error.code is Code.UNREACHABLE
    assert connection.dead


def test_drive_comes_back_at_its_deadline_without_an_answer(server):
    client = Client(server)
    client.send(COUNT, b"never answered")
    before_s = time.monotonic()
    assert drive([client.connection], before_s + 0.05) == []
    # That it comes back at all shows the rest: nobody ever answers.
    assert time.monotonic() - before_s >= 0.05
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


def test_both_ends_of_a_tcp_connection_notice_a_peer_that_vanished_without_a_word():
    """Keep-alive probes: one end is asked here, the other is the accepted socket."""
    with Server() as server:
        client = Client(server)
        client.send(ECHO, b"", [PATTERN[:10]], [10])
        client.finish()
        (accepted,) = server.frames.connections
        for end in (client.connection, accepted):
            for level, option in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            ):
                assert end._socket.getsockopt(level, option)
            idle_s = end._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert idle_s <= 10


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
            (completion,) = drive([connection], time.monotonic() + WAIT_S)
            assert (completion.head, completion.error) == (host.encode(), None)
            connection.close()
        server.on_loop(listener.close)


def test_a_reader_that_stops_taking_its_answer_is_cut_off_and_frees_what_it_held(serve):
    with serve(Limits(stall_s=0.05)) as server:
        lazy = server.raw()
        lazy.sendall(request_frame(BIG, b"%d" % (64 << 20)))
        # Not before it has begun, and then without any word: a frame cannot end half-way.
        while not server.on_loop(lambda: server.pool.used_bytes):
            pass
        while server.on_loop(lambda: server.frames.connections):
            pass
        assert server.on_loop(lambda: server.pool.used_bytes) == 0
        assert_serves(server)
        lazy.close()


def test_a_body_that_trickles_in_is_not_taken_for_one_that_stands_still(serve):
    with serve(Limits(stall_s=3600)) as server:
        raw = server.raw()
        body = bytes(PATTERN[: 1 << 20])
        frame = request_frame(ECHO, b"", body)
        raw.sendall(frame[: 100 << 10])
        for at in range(100 << 10, 200 << 10, 20 << 10):  # less than anybody is woken for
            raw.sendall(frame[at : at + (20 << 10)])
            server.on_loop(server.frames._sweep)
            server.on_loop(server.frames._sweeper.cancel)
        raw.sendall(frame[200 << 10 :])
        header, _, echoed = read_frame(raw)
        assert (header.kind, echoed) == (frames.FrameKind.REPLY, body)
        raw.close()
