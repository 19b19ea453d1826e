"""What every RDMA connection must do, through a NIC or its twin; the tests are imported by both."""

from __future__ import annotations

import gc
import os
import threading
import time

import frame_peers
import rdma_peers
from frame_peers import BIG, COUNT, ECHO, PATTERN, WAIT_S
from rdma_peers import Client, Server

from fs3.errors import Code
from fs3.transport.client import drive
from fs3.transport.rdma import client as rdma_client
from fs3.transport.rdma import serving
from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.link import Shape
from fs3.transport.rdma.serving import RdmaLimits


def test_a_reply_without_a_known_place_comes_all_the_same(server, monkeypatch):
    monkeypatch.setattr(rdma_client, "EXPECTED", {})
    client = Client(server)
    request_id = client.send(BIG, b"100000", (), [60_000, 40_000])
    done = client.finish()
    assert (done[request_id].error, len(client.body(request_id))) == (None, 100_000)
    client.connection.close()


def test_a_closed_connection_leaves_no_descriptor_for_the_garbage_collector(server):
    def descriptors():
        while server.on_loop(lambda: len(server.rdma.callers) + len(server.frames.connections)):
            pass
        return len(os.listdir("/proc/self/fd"))

    Client(server).connection.close()
    gc.collect()
    gc.disable()
    try:
        before = descriptors()
        for _ in range(5):
            Client(server).connection.close()
        assert descriptors() <= before
    finally:
        gc.enable()


def test_no_more_replies_are_on_their_way_than_the_receiver_permits(server):
    permits = Permits(1 << 20)
    clients = [Client(server, permits) for _ in range(4)]
    ids = [(c, c.send(ECHO, b"", [PATTERN[:700_000]], [700_000])) for c in clients for _ in "123"]
    assert permits.used_bytes == 700_000
    done = {}
    deadline_s = time.monotonic() + WAIT_S
    while len(done) < len(ids):
        completions = drive([c.connection for c in clients], deadline_s)
        assert completions
        assert permits.used_bytes <= 1 << 20
        done |= {(id(c.connection), c.request_id): c.error for c in completions}
    assert set(done.values()) == {None}
    assert {client.body(request_id) for client, request_id in ids} == {bytes(PATTERN[:700_000])}
    assert permits.used_bytes == 0
    for client in clients:
        client.connection.close()


def test_bodies_are_pulled_within_what_the_server_permits_itself():
    with Server(rdma_limits=RdmaLimits(pulled_bytes=1 << 20)) as server:
        clients = [Client(server) for _ in range(3)]
        for client in clients:
            for _ in range(3):
                client.send(COUNT, b"x", [PATTERN[:700_000]])
        server.wait_for(lambda: server.counted[b"x"] == 9)
        assert server.counted_bytes == 9 * 700_000
        for client in clients:
            client.connection.close()


def test_a_body_that_was_read_is_seen_though_it_came_before_anybody_looked(monkeypatch):
    # A NIC may be done before the queue is armed for it: no event tells.
    monkeypatch.setattr(serving, "_REAP_S", 3600.0)  # nobody looks now and then
    with Server() as server:
        client = Client(server)
        for _ in range(8):
            request_id = client.send(ECHO, b"", [PATTERN[:100_000]], [100_000])
            assert client.finish()[request_id].error is None
            assert client.body(request_id) == PATTERN[:100_000]
        client.connection.close()


def test_few_and_small_slots_carry_everything_in_the_end(server):
    client = Client(server, shape=Shape(slots=4, slot_bytes=512, depth=16))
    ids = [
        client.send(ECHO, bytes(PATTERN[: n * 100]), [PATTERN[:9000]], [9000]) for n in range(60)
    ]
    done = client.finish()
    assert [done[i].error for i in ids] == [None] * 60
    assert [done[i].head for i in ids] == [bytes(PATTERN[: n * 100]) for n in range(60)]
    assert client.connection.up
    client.connection.close()


def test_a_queue_pair_that_fails_here_ends_the_connection_and_loses_no_answer(server):
    client = Client(server)
    asked = client.send(COUNT, b"never answered")
    rdma_peers.force_error(client.connection._link)
    error = client.finish()[asked].error
    assert error is not None
    assert (error.code, client.connection.dead) == (Code.MAYBE_APPLIED, True)
    frame_peers.assert_serves(server)


def test_a_queue_pair_that_fails_there_ends_the_connection_and_loses_no_answer(server):
    client = Client(server)
    asked = client.send(COUNT, b"never answered")
    server.wait_for(lambda: server.counted[b"never answered"] == 1)
    server.on_loop(lambda: [rdma_peers.force_error(caller.link) for caller in server.rdma.callers])
    error = client.finish()[asked].error
    assert error is not None
    assert (error.code, client.connection.dead) == (Code.MAYBE_APPLIED, True)
    frame_peers.assert_serves(server)


def test_a_client_that_is_gone_leaves_no_queue_pair_behind(server):
    client = Client(server)
    assert server.on_loop(lambda: len(server.rdma.callers)) == 1
    client.connection.close()
    while server.on_loop(lambda: len(server.rdma.callers)):
        pass


def test_one_queue_pair_too_many_is_refused_and_tcp_carries_on():
    with Server(rdma_limits=RdmaLimits(links=1)) as server:
        first, second = Client(server), Client(server)
        assert (first.connection.up, second.connection.up) == (True, False)
        assert "1 RDMA links are open" in second.refused[0]
        request_id = second.send(ECHO, b"", [PATTERN[:100_000]], [100_000])
        assert second.finish()[request_id].error is None
        assert second.body(request_id) == PATTERN[:100_000]
        first.connection.close()
        second.connection.close()


def test_a_forgotten_request_keeps_the_others_and_the_link(server):
    client = Client(server)
    asked = client.send(COUNT, b"not yet")
    kept = client.send(ECHO, b"", [PATTERN[:500_000]], [500_000])
    given_up = client.send(ECHO, b"", [PATTERN[:500_000]], [500_000])
    client.connection.forget(given_up)
    (memory,) = client.room[given_up]
    memory[:] = b"\x55" * len(memory)
    # An answer to what was forgotten would have come before one to what was asked last.
    last = client.send(ECHO, b"", [PATTERN[:500_000]], [500_000])
    done, deadline_s = {}, time.monotonic() + WAIT_S
    while not done.keys() >= {kept, last}:
        completions = drive([client.connection], deadline_s)
        assert completions
        done |= {c.request_id: c for c in completions}
    assert set(done) == {kept, last}
    assert client.body(kept) == PATTERN[:500_000]
    assert bytes(memory) == b"\x55" * len(memory)
    assert client.connection.up
    client.connection.forget(asked)
    client.connection.close()


def test_threads_each_with_a_connection_of_their_own(server):
    results = []

    def work(n):
        client = Client(server)
        for i in range(20):
            size = 10_000 + n * 1000 + i
            request_id = client.send(ECHO, b"", [PATTERN[n : n + size]], [size])
            good = client.finish()[request_id].error is None
            results.append(good and client.body(request_id) == PATTERN[n : n + size])
        client.connection.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert results == [True] * 80


def test_bodies_that_waited_to_be_read_are_given_up_with_their_client():
    with Server(rdma_limits=RdmaLimits(pulled_bytes=1 << 20)) as server:
        pulls = server.rdma.pulls
        assert server.on_loop(lambda: pulls.try_take("somebody else", 1 << 20))
        client = Client(server)
        for _ in range(3):
            client.send(COUNT, b"x", [PATTERN[:700_000]])
        while server.on_loop(lambda: len(pulls._waiting)) < 3:
            pass
        client.connection.close()
        while server.on_loop(lambda: len(server.rdma.callers)):
            pass
        assert server.on_loop(lambda: (len(pulls._waiting), server.pool.used_bytes)) == (0, 0)
        server.on_loop(lambda: pulls.release("somebody else"))


def test_a_forgotten_request_whose_reply_comes_by_tcp_leaves_memory_alone(server, monkeypatch):
    monkeypatch.setattr(rdma_client, "EXPECTED", {})
    client = Client(server)
    size = 32 << 20
    given_up = client.send(BIG, b"%d" % size, (), [size])
    while client.connection._current is None:  # a part of it is here
        assert not drive([client.connection], time.monotonic() + 0.001)
    client.connection.forget(given_up)
    (memory,) = client.room[given_up]
    memory[:] = b"\x55" * size
    kept = client.send(ECHO, b"", [PATTERN[:9]], [9])
    last = client.send(BIG, b"100000", (), [100_000])
    assert set(client.finish()) == {kept, last}
    assert client.body(kept) == PATTERN[:9]
    assert memory == b"\x55" * size
    client.connection.close()


def test_a_connection_that_ends_gives_back_what_its_requests_had_lent(server):
    permits = Permits(1 << 20)
    client = Client(server, permits)
    parts = [memoryview(bytes(PATTERN[n : n + 5000])) for n in range(20)]
    client.send(COUNT, b"never answered", parts)
    client.connection.close()
    pool = client.connection._opened.lender._pool
    assert (pool.used_bytes, permits.used_bytes) == (0, 0)
