"""Well-formed requests with random fields, at every method: refused in words, never a bug.

What changes membership or ends the cluster's health by design is not asked here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from mounted import Logs, verify_replicas
from running_cluster import RunningCluster

from fs3.client import processes
from fs3.errors import Code, Fs3Error
from fs3.proto import cluster_pb2, metadata_pb2, storage_pb2
from fs3.rpc import FrameChannel, Method, Stub, methods
from fs3.rpc_grpc import GrpcChannel
from fs3.types import Credentials

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]

METADATA = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["StorageControl"]
MANAGER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
TURNS = 200
NAMES = [
    b"a",
    b"b",
    b"dir",
    b"",
    b".",
    b"..",
    b"a/b",
    b"nul\0",
    b"x" * 255,
    b"x" * 256,
    b"\xff\xfe",
]
TEXTS = ["", "other", "x" * 5000, "local"]
NUMBERS = [0, 1, 2, 3, 4, 5, 7, 0o644, 0o755, 0o40755, 0o100644, 4096, 1 << 16, 1 << 20, 1 << 31]
LONG_NUMBERS = [*NUMBERS, 1 << 32, 1 << 62, (1 << 63) - 1]
MOSTS = {
    FieldDescriptor.TYPE_UINT32: (1 << 32) - 1,
    FieldDescriptor.TYPE_INT32: (1 << 31) - 1,
    FieldDescriptor.TYPE_UINT64: (1 << 64) - 1,
    FieldDescriptor.TYPE_FIXED64: (1 << 64) - 1,
    FieldDescriptor.TYPE_SFIXED64: (1 << 63) - 1,
    FieldDescriptor.TYPE_INT64: (1 << 63) - 1,
}


def value_of(field: FieldDescriptor, rng: random.Random) -> object:
    """Something that the wire can carry, near what the program knows or far from it."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice([*NAMES, rng.randbytes(24)])
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return rng.choice([0.0, -1.0, 1e300, float("nan"), float("inf")])
    most = MOSTS.get(field.type, (1 << 31) - 1)
    negative = field.type in (FieldDescriptor.TYPE_SFIXED64, FieldDescriptor.TYPE_INT64)
    if rng.random() < 0.1:
        return -most - 1 if negative and rng.random() < 0.5 else most
    return min(rng.choice(LONG_NUMBERS if most > 1 << 32 else NUMBERS), most)


def fill(message: Message, rng: random.Random) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name == "header" or rng.random() < 0.15:
            continue
        if field.is_repeated:
            for _ in range(rng.choice([0, 1, 3])):
                if field.message_type is not None:
                    fill(getattr(message, field.name).add(), rng)
                else:
                    getattr(message, field.name).append(value_of(field, rng))
        elif field.message_type is not None:
            fill(getattr(message, field.name), rng)
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, value_of(field, rng))


@pytest.fixture
def unharmed(cluster: RunningCluster, logs: Logs) -> Iterator[None]:
    """The same processes afterwards, which serve what they did; no bug in any log."""
    daemons = ["metaserver", "node-1", "node-2", "node-3"]

    def pids() -> list[object]:
        return [processes.living(cluster.dir / name / "pid") for name in daemons]

    before, client = pids(), cluster.client()
    content = b"kept" * 500_000
    client.chmod("/", 0o1777)
    # Requests name small inode numbers; who names an inode may settle its length, whoever he is.
    for number in range(12):
        if number % 3:
            client.write(f"/a{number}", b"x" * number, permissions=0o666)
        else:
            client.makedirs(f"/a{number}", 0o777, exist_ok=True)
    client.makedirs("/untouched", 0o700, exist_ok=True)
    client.write("/untouched/file", content)
    yield
    assert pids() == before
    assert client.read("/untouched/file") == content
    cluster.wait_healthy()
    verify_replicas(cluster)


def outcomes(
    stub: Stub, service: ServiceDescriptor, seed: int, only: tuple[str, ...] = ()
) -> Counter[tuple[str, str]]:
    """What random requests at every method come to; fails at the first that is a bug."""
    found: Counter[tuple[str, str]] = Counter()
    asked: list[Method] = [
        m for m in methods(service) if not m.streaming and (not only or m.python_name in only)
    ]
    rng = random.Random(seed)
    for turn in range(TURNS):
        for method in asked:
            request = method.request()
            fill(request, rng)
            who = Credentials(uid=1000 + turn % 2, gid=1000)
            code, detail = Code.OK, "done"
            try:
                getattr(stub, method.python_name)(request, who=who)
            except Fs3Error as error:
                code, detail = error.code, error.detail
            assert code is not Code.BUG, f"{method.name}: {detail}\n{request}"
            assert detail, f"{method.name}: {code.name} without a word\n{request}"
            found[method.name, code.name] += 1
    return found


@pytest.mark.parametrize("binding", ["frames", "grpc"])
def test_random_requests_at_the_namespace(cluster, unharmed, binding):
    specification = cluster.local.specification
    channel = (
        FrameChannel([specification.metaserver_frame_address], cluster.cluster_id)
        if binding == "frames"
        else GrpcChannel([specification.metaserver_grpc_address], cluster.cluster_id)
    )
    stub = Stub(channel, METADATA, cluster.cluster_id, client_id=4711)
    found = outcomes(stub, METADATA, seed=1)
    channel.close()
    assert len({code for _, code in found}) > 5, found  # they got somewhere


def test_random_requests_at_a_storageserver(cluster, unharmed):
    address = cluster.local.specification.nodes[0].data_address
    channel = FrameChannel([address], cluster.cluster_id)
    outcomes(Stub(channel, STORAGE, cluster.cluster_id, client_id=4712), STORAGE, seed=2)
    channel.close()


def test_random_questions_at_the_manager(cluster, unharmed):
    channel = FrameChannel(
        [cluster.local.specification.metaserver_frame_address], cluster.cluster_id
    )
    stub = Stub(channel, MANAGER, cluster.cluster_id, client_id=4713)
    outcomes(stub, MANAGER, seed=3, only=("get_routing", "get_status"))
    channel.close()
