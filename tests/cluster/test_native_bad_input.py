"""Nonsense sent to a live cluster: one clear error, the daemon lives on, nothing stored changes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from mounted import Logs
from running_cluster import RunningCluster

from fs3 import dataplane, frames
from fs3.client import processes
from fs3.client.api import Client
from fs3.core.types import InodeId, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.frames import FrameKind
from fs3.proto import cluster_pb2, common_pb2, metadata_pb2, storage_pb2
from fs3.routing import Routing
from fs3.rpc import methods

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ANSWER_S = 30.0
CONTENT = b"what is stored " * 100_000


def number_of(service, name: str) -> int:
    (found,) = (m.number for m in methods(service) if m.python_name == name)
    return found


METADATA = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["StorageControl"]
MANAGER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
LOOKUP = number_of(METADATA, "lookup")
SCAN = number_of(STORAGE, "scan_chunks")


class Wire:
    """A connection on which anything may be sent."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), ANSWER_S)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered already
            self._socket.sendall(data)

    def finish(self) -> None:
        """Nothing more is sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self) -> Fs3Error | bytes | None:
        """The error or reply that comes, None if the connection ends first."""
        header = self._exactly(frames.HEADER_BYTES)
        if header is None:
            return None
        decoded = frames.decode(header)
        head = self._exactly(decoded.head_bytes) or b""
        self._exactly(decoded.body_bytes)
        return frames.decode_error(head) if decoded.kind == FrameKind.ERROR else head

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                more = self._socket.recv(count - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            data += more
        return data


@pytest.fixture
def wire(cluster: RunningCluster, server: str) -> Iterator[Wire]:
    specification = cluster.local.specification
    addresses = {
        "metaserver": specification.metaserver_frame_address,
        "storageserver": specification.nodes[0].data_address,
    }
    with Wire(addresses[server]) as made:
        yield made


@pytest.fixture(params=["metaserver", "storageserver"])
def server(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def unharmed(cluster: RunningCluster, logs: Logs) -> Iterator[None]:
    """Afterwards every daemon is the same process, and what is stored is the same."""
    client = cluster.client()
    if not client.exists("/stored"):
        client.write("/stored", CONTENT)
    before = state(cluster, client)
    yield
    assert state(cluster, client) == before


def state(cluster: RunningCluster, client: Client) -> object:
    daemons = ["metaserver", *(f"node-{n.node}" for n in cluster.local.specification.nodes)]
    pids = {name: processes.living(cluster.dir / name / "pid") for name in daemons}
    cluster.wait_healthy()
    with cluster.local.administration() as calls:
        routing = calls.routing()
        chunks = {target: list(calls.scan(routing, target)) for target in routing.targets}
    assert client.read("/stored") == CONTENT
    return pids, membership(routing), chunks, client.listdir("/"), client.stat("/stored")


def membership(routing: Routing) -> object:
    """All of it but what a lease that is late on a busy machine changes: versions, and orders."""
    chains = {chain: {r.target for r in found.replicas} for chain, found in routing.chains.items()}
    tables = {number: table.chains for number, table in routing.tables.items()}
    return routing.nodes, routing.targets, chains, tables


def frame(
    method: int,
    head: bytes = b"",
    *,
    cluster: str = "local",
    kind: int = FrameKind.REQUEST,
    body_bytes: int = 0,
) -> bytes:
    return frames.encode(kind, method, frames.cluster_tag(cluster), 1, head, body_bytes) + head


def altered(data: bytes, offset: int, layout: str, value: object) -> bytes:
    """A frame without head with one header field changed, and the checksum right again."""
    header = bytearray(data[: frames.HEADER_BYTES])
    struct.pack_into(layout, header, offset, value)
    struct.pack_into("<I", header, 36, frames.crc32c(bytes(header[:36])))
    return bytes(header)


# What is sent, which code comes back, and a word that the message must have.
GARBAGE: dict[str, tuple[bytes, Code, str]] = {
    "text": (b"GET / HTTP/1.1\r\nHost: fs3\r\nAccept: */*\r\n\r\n", Code.PROTOCOL, "GET "),
    "zeros": (bytes(4096), Code.PROTOCOL, "frame starts with"),
    "noise": (b"\xa5\x5a\xff" * 5000, Code.PROTOCOL, "frame starts with"),
    "wrong-magic": (b"fs4f" + frame(LOOKUP)[4:], Code.PROTOCOL, "fs4f"),
    "wrong-checksum": (frame(LOOKUP)[:36] + b"\0\0\0\0", Code.PROTOCOL, "checksum"),
    "wrong-version": (altered(frame(LOOKUP), 4, "<H", 77), Code.PROTOCOL, "version 77"),
    "wrong-cluster": (frame(LOOKUP, cluster="other"), Code.WRONG_CLUSTER, "'local'"),
    "unknown-method": (frame(0x7777), Code.UNSUPPORTED, "0x7777"),
    "a-reply": (frame(LOOKUP, kind=FrameKind.REPLY), Code.PROTOCOL, ""),
    "unknown-kind": (altered(frame(LOOKUP), 6, "<B", 9), Code.PROTOCOL, "9"),
    "huge-head": (
        altered(frame(LOOKUP), 24, "<I", 0xFFFF_FFFF),
        Code.TOO_LARGE,
        str(frames.HEAD_BYTES_MAX),
    ),
    "huge-body": (
        altered(frame(LOOKUP), 32, "<I", 0xFFFF_FFFF),
        Code.TOO_LARGE,
        str(frames.BODY_BYTES_MAX),
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_answered_with_one_clear_error(wire: Wire, unharmed, name: str):
    data, code, word = GARBAGE[name]
    wire.send(data)
    answer = wire.answer()
    assert isinstance(answer, Fs3Error), answer
    assert answer.code is code, answer
    assert word in answer.detail


@pytest.mark.parametrize("kept", [1, 20, 39, 40, 45])
def test_a_truncated_frame_ends_with_its_connection(wire: Wire, unharmed, kept: int):
    wire.send(frame(LOOKUP, b"x" * 100)[:kept])
    wire.finish()
    assert wire.answer() is None


def test_garbage_as_a_message_is_named(wire: Wire, unharmed, server: str):
    method = LOOKUP if server == "metaserver" else SCAN
    wire.send(frame(method, b"\xff" * 100))
    answer = wire.answer()
    assert isinstance(answer, Fs3Error)
    assert answer.code is Code.PROTOCOL, answer
    assert ("LookupRequest" if server == "metaserver" else "ScanChunksRequest") in answer.detail
    wire.send(frame(0x7777))  # the connection goes on
    following = wire.answer()
    assert isinstance(following, Fs3Error)
    assert following.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"cluster_id": "other", "protocol_version": 1}, Code.WRONG_CLUSTER),
        ({"cluster_id": "local", "protocol_version": 99}, Code.PROTOCOL),
    ],
)
def test_a_foreign_header_in_a_message_is_refused(wire: Wire, unharmed, server, fields, code):
    header = common_pb2.RequestHeader(**fields)
    if server == "metaserver":
        request = metadata_pb2.MakeDirectoryRequest(header=header, parent=1, name=b"d")
        method = number_of(METADATA, "make_directory")
    else:
        request = storage_pb2.TrimChunksRequest(header=header, chain=1)
        method = number_of(STORAGE, "trim_chunks")
    wire.send(frame(method, request.SerializeToString()))
    answer = wire.answer()
    assert isinstance(answer, Fs3Error)
    assert answer.code is code, answer


@pytest.mark.parametrize("server", ["storageserver"])
@pytest.mark.parametrize("method", [dataplane.READ_BATCH, dataplane.WRITE_BATCH])
@pytest.mark.parametrize("head_bytes", [1, 17, 41, 1001])
def test_a_head_that_is_no_whole_number_of_items_is_refused(wire, unharmed, method, head_bytes):
    wire.send(frame(method, b"\x01" * head_bytes))
    answer = wire.answer()
    assert isinstance(answer, Fs3Error)
    assert answer.code is Code.PROTOCOL, answer
    assert str(head_bytes) in answer.detail


@pytest.mark.parametrize("server", ["storageserver"])
def test_a_batch_of_too_many_items_is_refused(wire, unharmed):
    count = dataplane.BATCH_ITEMS_MAX + 1
    wire.send(frame(dataplane.READ_BATCH, bytes(count * dataplane.READ_ITEM.itemsize)))
    answer = wire.answer()
    assert isinstance(answer, Fs3Error)
    assert answer.code is Code.TOO_LARGE
    assert str(dataplane.BATCH_ITEMS_MAX) in answer.detail


def items(dtype, count: int = 1, **fields: object) -> bytes:
    made = np.zeros(count, dtype)
    for name, value in fields.items():
        made[name] = value
    return made.tobytes()


def of_chain(cluster: RunningCluster) -> dict[str, object]:
    """Chunk, chain and version that a chain of node 1 would take."""
    chain = next(c for c in cluster.status().chains if any(r.node == 1 for r in c.replicas))
    chunk = chunk_id(InodeId(1 << 40), 0)
    return {"chunk": chunk, "chain": chain.chain, "chain_version": chain.version}


@pytest.mark.parametrize("server", ["storageserver"])
@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 0xFFFF_FFF0, "length": 4096},
        {"offset": 0, "length": 0xFFFF_FFFF},
        {"chain": 0xFFFF_FFFF},
        {"chain_version": 0xFFFF_FFFF},
    ],
    ids=["offset", "length", "chain", "chain-version"],
)
def test_reads_of_the_impossible_are_refused(cluster, wire, unharmed, fields):
    wire.send(
        frame(
            dataplane.READ_BATCH,
            items(dataplane.READ_ITEM, **{**of_chain(cluster), "length": 1, **fields}),
        )
    )
    code = code_in(wire.answer(), dataplane.READ_RESULT)
    assert code not in (Code.OK, Code.BUG), code


@pytest.mark.parametrize("server", ["storageserver"])
@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"length": 100}, b""),
        ({"length": 10}, b"x" * 100),
        ({"length": 4, "crc": 1}, b"data"),
        ({"length": 4, "offset": 0xFFFF_FFFE}, b"data"),
        ({"length": 4, "offset": 65 << 20}, b"data"),
        ({"length": 0xFFFF_FFFF}, b""),
        ({"length": 4, "kind": 99}, b"data"),
        ({"length": 4, "chain": 77}, b"data"),
        ({"length": 4, "chain_version": 0xFFFF}, b"data"),
    ],
    ids=[
        "no-body",
        "long-body",
        "crc",
        "offset",
        "far",
        "length",
        "kind",
        "chain",
        "version",
    ],
)
def test_writes_of_the_impossible_are_refused(cluster, wire, unharmed, fields, body):
    values = {
        **of_chain(cluster),
        "crc": frames.crc32c(body),
        "kind": 1,
        "channel": 1,
        "sequence": 1,
        **fields,
    }
    head = items(dataplane.WRITE_PREFIX, client=5) + items(dataplane.WRITE_ITEM, **values)
    wire.send(frame(dataplane.WRITE_BATCH, head, body_bytes=len(body)) + body)
    code = code_in(wire.answer(), dataplane.WRITE_RESULT)
    assert code not in (Code.OK, Code.BUG), code


def code_in(answer: Fs3Error | bytes | None, dtype) -> Code:
    """Of the whole, or of the one item."""
    assert answer is not None, "the connection was closed without a word"
    if isinstance(answer, Fs3Error):
        return answer.code
    results, _ = dataplane.decode_results(answer, dtype, 1)
    return Code(int(results["code"][0]))


@pytest.mark.parametrize("server", ["storageserver"])
@pytest.mark.parametrize("head", [b"", b"\xff" * 7, b"\0" * 1000, os.urandom(3000)])
def test_garbage_between_neighbours_harms_nobody(wire, unharmed, head):
    wire.send(frame(dataplane.PEER, head))
    wire.finish()
    answer = wire.answer()
    assert answer is None or (isinstance(answer, Fs3Error) and answer.code is not Code.BUG), answer


# Through the client.

BAD_CALLS: dict[str, tuple[Callable[[Client], object], Code, str]] = {
    "chunk-of-3": (lambda c: c.set_layout("/", chunk_bytes=3), Code.INVALID, "3"),
    "chunk-no-power": (lambda c: c.set_layout("/", chunk_bytes=100_000), Code.INVALID, "100000"),
    "chunk-of-0": (lambda c: c.set_layout("/", chunk_bytes=0), Code.INVALID, "0"),
    "chunk-negative": (lambda c: c.set_layout("/", chunk_bytes=-1), Code.INVALID, "-1"),
    "stripe-of-0": (lambda c: c.set_layout("/", stripe=0), Code.INVALID, "0"),
    "stripe-negative": (lambda c: c.set_layout("/", stripe=-1), Code.INVALID, "-1"),
    "nul": (lambda c: c.write("/a\0b", b"x"), Code.INVALID, "NUL"),
    "nul-in-folder": (lambda c: c.write("/a\0b/c", b"x"), Code.INVALID, "NUL"),
    "long-name": (lambda c: c.write("/" + "x" * 256, b"x"), Code.NAME_TOO_LONG, "255"),
    "relative": (lambda c: c.write("/../x/../../stored/x", b"x"), Code.NOT_DIRECTORY, "stored"),
    "mode": (lambda c: c.open("/stored", "rw"), Code.INVALID, "rw"),
    "offset": (lambda c: c.read_batch([("/stored", -1, 10)]), Code.INVALID, "-1"),
    "length": (lambda c: c.read_batch([("/stored", 0, -10)]), Code.INVALID, "-10"),
    "truncate": (lambda c: c.truncate("/stored", -1), Code.INVALID, "-1"),
    "truncate-far": (lambda c: c.truncate("/stored", 1 << 63), Code.TOO_LARGE, ""),
    "missing": (lambda c: c.read("/missing"), Code.NOT_FOUND, "/missing"),
    "directory": (lambda c: c.read("/"), Code.IS_DIRECTORY, "/"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused_by_name(cluster, unharmed, name):
    action, code, word = BAD_CALLS[name]
    with pytest.raises(Fs3Error) as caught:
        action(cluster.client())
    assert caught.value.code is code, caught.value
    assert word in caught.value.detail


def test_a_client_of_another_cluster_is_refused_by_name(cluster, unharmed):
    with pytest.raises(Fs3Error) as caught:
        cluster.client(cluster_id="elsewhere")
    assert caught.value.code is Code.WRONG_CLUSTER
    assert re.search("'local'", caught.value.detail)
    refused = cluster.run("ls", "/", "--address", cluster.address, "--cluster-id", "elsewhere")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert "local" in refused.stderr


@pytest.mark.parametrize("server", ["metaserver", "storageserver"])
def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path, server):
    config, wrong = tmp_path / "config.toml", {"metaserver": "workres", "storageserver": "node_idd"}
    config.write_text(f"{wrong[server]} = 1\n")
    ended = subprocess.run(
        [sys.executable, "-m", f"fs3.{server}", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode not in (0, None)
    assert wrong[server] in ended.stderr
    assert {"metaserver": "workers", "storageserver": "node_id"}[server] in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_storageserver_of_another_cluster_says_so_and_does_not_join(cluster, unharmed, tmp_path):
    config = tmp_path / "config.toml"
    address = cluster.local.specification.metaserver_grpc_address
    config.write_text(f'cluster_id = "stranger"\nnode_id = 9\nmetaservers = ["{address}"]\n')
    nodes = [node.info.node for node in cluster.status().nodes]
    process = subprocess.Popen(
        [sys.executable, "-m", "fs3.storageserver", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = next(line for line in process.stderr or () if "WRONG_CLUSTER" in line)
        assert "stranger" in said
        assert "'local'" in said
        assert [node.info.node for node in cluster.status().nodes] == nodes
    finally:
        process.terminate()
        process.communicate(timeout=ANSWER_S)
    assert process.returncode == 0
