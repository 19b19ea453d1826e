"""What clients on a storageserver's machine write goes through memory that both have."""

from __future__ import annotations

import os
import socket
import struct

import numpy as np
import pytest
from kv_cluster import kv_cluster, new_cache

from fs3 import dataplane, frames
from fs3.errors import Fs3Error
from fs3.transport.client import DataConnection

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
KEYS = [b"key %d" % i for i in range(40)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture
def sent(monkeypatch):
    """The methods of requests that left, and the bytes of their bodies."""
    seen = []
    send = DataConnection.send

    def note(self, method, request_id, head, body_parts=()):
        seen.append((method, sum(map(len, body_parts))))
        send(self, method, request_id, head, body_parts)

    monkeypatch.setattr(DataConnection, "send", note)
    return seen


@pytest.mark.parametrize("replicas", [1, 3])
def test_values_and_files_are_written_without_sending_their_bytes(cluster, sent, replicas):
    cache = new_cache(cluster, replicas=replicas)
    cache.use_transports(["local", "tcp"])
    values = [np.frombuffer(os.urandom(100_000 + i), np.uint8) for i in range(len(KEYS))]
    assert cache.put(KEYS[:8], values[:8]).all()  # connections, windows
    sent.clear()
    assert cache.put(KEYS, values).all()
    assert {method for method, _ in sent} == {dataplane.WRITE_WINDOW}
    assert sum(size for _, size in sent) == 0
    for found, value in zip(cache.get(KEYS), values, strict=True):
        assert found == value.tobytes()
    cache.use_transports(["tcp"])
    for found, value in zip(cache.get(KEYS), values, strict=True):
        assert found == value.tobytes()


def test_a_value_beyond_a_slot_and_small_ones_are_sent_along(cluster, sent):
    cache = new_cache(cluster)
    cache.use_transports(["local", "tcp"])
    large, small = os.urandom((5 << 20) + 3), os.urandom(1000)
    for number in range(3):
        keys = [b"large %d" % number, b"small %d" % number]
        assert cache.put(keys, [large, small]).all()
        assert cache.get(keys) == [large, small]
    assert max(size for _, size in sent) > len(large)


def test_many_threads_and_batches_beyond_all_slots(cluster):
    cache = new_cache(cluster)
    cache.use_transports(["local", "tcp"])
    values = [os.urandom(1 << 20) for _ in range(4)]
    keys = [b"many %d" % i for i in range(120)]
    assert cache.put(keys, [values[i % 4] for i in range(120)]).all()
    room = memoryview(bytearray(1 << 20))
    for i, key in enumerate(keys):
        assert cache.get_into([key], [room]).tolist() == [1 << 20]
        assert room == values[i % 4]


def test_files_are_written_through_it(cluster, sent):
    client = cluster.client()
    data = os.urandom(9_000_000)
    client.write("/first", data)
    sent.clear()
    client.write("/second", data)
    # A thread that writes for the first time has no window yet, and sends one request along.
    along = [size for method, size in sent if method == dataplane.WRITE_BATCH]
    assert sum(along) <= len(data) // 2, sent
    assert dataplane.WRITE_WINDOW in {method for method, _ in sent}
    assert client.read("/second") == data


class Peer:
    """A client that says what no client should."""

    def __init__(self, cluster):
        nodes = cluster.client().context.routing.get().nodes
        address = next(iter(nodes.values())).local_address.removeprefix("unix:@")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(f"\0{address}")
        self._tag = frames.cluster_tag(cluster.cluster_id)
        self._stream = self._socket.makefile("rb")

    def close(self):
        self._stream.close()
        self._socket.close()

    def ask(self, method, head):
        kind = frames.FrameKind.REQUEST
        self._socket.sendall(frames.encode(kind, method, self._tag, 1, head, 0) + head)
        header = frames.decode(self._stream.read(frames.HEADER_BYTES))
        reply = self._stream.read(header.head_bytes)
        if header.kind == frames.FrameKind.ERROR:
            raise frames.decode_error(reply)
        return reply


@pytest.fixture
def peer(cluster):
    made = Peer(cluster)
    yield made
    made.close()


def test_requests_that_make_no_sense_are_refused_and_the_connection_lives(peer):
    one_write = bytes(16) + bytes(dataplane.WRITE_ITEM.itemsize)
    with pytest.raises(Fs3Error, match="no window"):
        peer.ask(dataplane.WRITE_WINDOW, struct.pack("<II", 0, 0) + one_write)
    slot_bytes, slots = struct.unpack("<II", peer.ask(dataplane.WINDOW, b""))
    with pytest.raises(Fs3Error, match="once"):
        peer.ask(dataplane.WINDOW, b"")
    for head, words in (
        (struct.pack("<II", slots, 10) + one_write, f"in slot {slots}"),
        (struct.pack("<II", 0, slot_bytes + 1) + one_write, "bytes in slot 0"),
        (struct.pack("<II", 0, 10) + bytes(16), "the body has 10"),
        (struct.pack("<II", 0, 0) + bytes(17), "whole items"),
        (b"abc", "no window"),
    ):
        with pytest.raises(Fs3Error, match=words):
            peer.ask(dataplane.WRITE_WINDOW, head)
    assert peer.ask(dataplane.WRITE_WINDOW, struct.pack("<II", 0, 0) + bytes(16)) == b""
