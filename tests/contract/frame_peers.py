"""The two ends that transport tests play with: a frame server on a thread, clients, raw sockets."""

import os
import secrets
import socket
import threading
import time
from collections import Counter

from fs3 import frames
from fs3.buffers import BufferPool
from fs3.reactor import Reactor
from fs3.transport.address import resolve
from fs3.transport.client import DataConnection, drive
from fs3.transport.local import LocalConnection
from fs3.transport.tcp import FrameServer, Limits

CLUSTER = "test-cluster"
ECHO, NO_BODY, BIG, COUNT = 0x7001, 0x7002, 0x7003, 0x7004
POOL_BYTES = 512 << 20
PATTERN = memoryview(os.urandom(1 << 20) * 64)
WAIT_S = 60.0  # for what comes at once, however loaded the machine is


class Server:
    """A frame server on a thread of its own, with a few methods to call."""

    def __init__(
        self, limits: Limits | None = None, pool_bytes: int = POOL_BYTES, kind: str = "tcp"
    ):
        """``kind``: of the transport, "tcp" or "local"."""
        self.kind = kind
        address = "127.0.0.1:0" if kind == "tcp" else f"unix:@fs3-test-{secrets.token_hex(8)}"
        self.reactor = Reactor()
        self.pool = BufferPool(pool_bytes)
        self.frames = FrameServer(
            self.reactor, CLUSTER, None, address, limits or Limits(), self.pool
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

    def wait_for(self, predicate, timeout_s=WAIT_S):
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
        assert done.wait(WAIT_S)
        return result[0]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.on_loop(self.frames.close)
        self.reactor.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.reactor.close()
        assert self.pool.used_bytes == 0, "a buffer was not given back"

    @property
    def port(self):
        return int(self.frames.address.rpartition(":")[2])

    def raw(self):
        """A plain socket to it."""
        (family, address), *_ = resolve(self.frames.address)
        made = socket.socket(family)
        made.settimeout(WAIT_S)
        made.connect(address)
        return made

    def connect(self, place):
        """A client's connection of its kind."""
        kind = DataConnection if self.kind == "tcp" else LocalConnection
        return kind(self.frames.address, CLUSTER, place)


class Client:
    """A connection whose replies' bodies land in buffers made to measure."""

    def __init__(self, server):
        self.bodies = {}
        self.room = {}
        self.connection = server.connect(self.place)
        self.ids = iter(range(1, 1 << 30))

    def place(self, request_id, head):
        parts = self.room[request_id]
        self.bodies[request_id] = parts
        return parts

    def send(self, method, head=b"", body=(), room=()):
        request_id = next(self.ids)
        self.room[request_id] = [memoryview(bytearray(n)) for n in room]
        self.connection.send(method, request_id, head, body)
        return request_id

    def finish(self, timeout_s=WAIT_S):
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


def unused_address(held):
    """An address that nobody listens on, as long as ``held`` (a socket) is open."""
    held.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{held.getsockname()[1]}"
