"""What the transport costs: ``python tests/bench/transport.py [SECONDS]`` prints JSON.

Server and client are two processes on one machine. Bulk speeds are also given as a ratio to bare
sockets that move the same bytes, measured right before and after in the same run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

from fs3.buffers import BufferPool, PooledBuffer
from fs3.proto import metadata_pb2
from fs3.reactor import Reactor
from fs3.rpc import FrameChannel, Handlers, Stub
from fs3.rpc_grpc import GrpcChannel, serve_grpc
from fs3.transport.client import DataConnection, drive
from fs3.transport.tcp import Connection, FrameServer, Request, serve_handlers

CLUSTER = "bench"
READ = 0x1001
METADATA = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
MIB = 1 << 20


class Implementation:
    """Answers look-ups (inline) and creations (in a worker) with the same inode."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise_ = NotImplementedError(name)

        def refuse(_request: object) -> None:
            raise raise_

        return refuse

    def lookup(self, request: metadata_pb2.LookupRequest) -> metadata_pb2.InodeReply:
        """Inline."""
        return metadata_pb2.InodeReply(inode={"inode": request.parent, "length_bytes": 4096})

    def create(self, request: metadata_pb2.CreateRequest) -> metadata_pb2.OpenReply:
        """In a worker."""
        return metadata_pb2.OpenReply(inode={"inode": request.parent, "length_bytes": 4096})


def serve(ready: Pipe) -> None:
    """The server process: frames, gRPC and a bare sender. Ends when the pipe closes."""
    reactor = Reactor()
    pool = BufferPool(256 * MIB)
    frames = FrameServer(reactor, CLUSTER, None, "127.0.0.1:0", pool=pool)

    def read(connection: Connection, request: Request) -> None:
        count, length = map(int, request.head.split())
        body: PooledBuffer = pool.take(count * length)
        parts = [body.view[i * length : (i + 1) * length] for i in range(count)]
        connection.reply(request.request_id, request.method, b"r" * 24 * count, parts, body.release)

    frames.take([READ], read)
    handlers = Handlers(CLUSTER)
    handlers.add(METADATA, Implementation())
    serve_handlers(frames, handlers, workers=4)
    _server, port = serve_grpc(handlers, "127.0.0.1:0")
    ready.send((frames.address, f"127.0.0.1:{port}"))
    reactor.register(ready.fileno(), 1, lambda _events: os._exit(0))
    reactor.run()


def send_bare(ready: Pipe) -> None:
    """A process that sends the same MiB over and over to whoever connects, one at a time."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    data = bytes(MIB)
    while True:
        accepted, _ = listener.accept()
        try:
            while True:
                accepted.sendall(data)
        except OSError:
            accepted.close()


def calls_per_s(call: Callable[[], object], seconds: float) -> float:
    """How often a second one thread can call."""
    for _ in range(200):
        call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(50):
            call()
        count += 50
    return count / (time.perf_counter() - start)


def bare_bytes_per_s(port: int, seconds: float) -> float:
    """A bare receiver into one MiB of memory."""
    memory = memoryview(bytearray(MIB))
    with socket.create_connection(("127.0.0.1", port)) as receiver:
        for _ in range(200):
            receiver.recv_into(memory)
        start, total = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            total += receiver.recv_into(memory)
        return total / (time.perf_counter() - start)


def reads_per_s(address: str, count: int, length: int, depth: int, seconds: float) -> float:
    """Requests for ``count`` pieces of ``length`` bytes, ``depth`` of them in flight."""
    memory = memoryview(bytearray(count * length * depth))
    size = count * length

    def place(request_id: int, _head: bytes) -> list[memoryview]:
        at = request_id % depth * size
        return [memory[at + i * length : at + (i + 1) * length] for i in range(count)]

    connection = DataConnection(address, CLUSTER, place)
    head = b"%d %d" % (count, length)
    done, warm = 0, 8 * depth
    start = time.perf_counter()
    for request_id in range(1, depth + 1):
        connection.send(READ, request_id, head)
    while time.perf_counter() - start < seconds or done < warm:
        for completion in drive([connection], time.monotonic() + 10):
            assert completion.error is None
            done += 1
            if done == warm:
                start = time.perf_counter()
            connection.send(READ, completion.request_id + depth, head)
    rate = (done - warm) / (time.perf_counter() - start)
    connection.close()
    return rate


def main(seconds: float) -> dict[str, float]:
    """Every figure."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    bare_near, bare_far = context.Pipe()
    server = context.Process(target=serve, args=(far,), daemon=True)
    sender = context.Process(target=send_bare, args=(bare_far,), daemon=True)
    server.start()
    sender.start()
    address, grpc_address = near.recv()
    port = bare_near.recv()
    frame_channel = FrameChannel([address], CLUSTER)
    grpc_channel = GrpcChannel([grpc_address], CLUSTER)
    figures = {}
    for name, channel in (("frame", frame_channel), ("grpc", grpc_channel)):
        stub = Stub(channel, METADATA, CLUSTER, 1)
        for kind, call in (
            ("inline", lambda s=stub: s.lookup(metadata_pb2.LookupRequest(parent=5, name=b"x"))),
            ("pooled", lambda s=stub: s.create(metadata_pb2.CreateRequest(parent=5, name=b"x"))),
        ):
            figures[f"{name}_{kind}_calls_per_s"] = calls_per_s(call, seconds)
    grpc_channel.close()
    frame_channel.close()
    bare = bare_bytes_per_s(port, seconds)
    for count, length, depth in ((1, MIB, 8), (1, MIB, 1), (64, 4096, 8), (64, 4096, 1)):
        rate = reads_per_s(address, count, length, depth, seconds)
        name = f"read_{count}x{length >> 10}KiB_depth{depth}"
        figures[f"{name}_batches_per_s"] = rate
        figures[f"{name}_GB_per_s"] = rate * count * length / 1e9
    bare = (bare + bare_bytes_per_s(port, seconds)) / 2
    figures["bare_GB_per_s"] = bare / 1e9
    figures["read_1MiB_depth8_ratio_to_bare"] = (
        figures["read_1x1024KiB_depth8_GB_per_s"] * 1e9 / bare
    )
    sender.kill()
    server.kill()
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0), indent=1))
