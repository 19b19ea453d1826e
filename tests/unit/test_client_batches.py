"""Many ranges of many files at once: round trips, ends of files, refusals."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster

from fs3 import dataplane
from fs3.client.api import Client

# Requests are counted: those of the calls that are tested, and of nothing else.
pytestmark = pytest.mark.usefixtures("no_upkeep")


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


@pytest.fixture
def client(cluster) -> Client:
    """Never asks again, or for newer routing, because an answer takes long on a loaded machine."""
    patient = {"look_ms": 600_000, "request_ms": 600_000, "deadline_ms": 600_000}
    return cluster.client(**patient)


def random_bytes(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def test_ten_thousand_pieces_of_a_thousand_files_take_a_handful_of_round_trips(cluster, client):
    rng = random.Random(2)
    contents = [random_bytes(2 * CHUNK_BYTES, n) for n in range(20)]
    client.mkdir("/d")
    for n, content in enumerate(contents):
        client.write(f"/d/{n}", content)
    for n in range(20, 1000):
        client.link(f"/d/{n % 20}", f"/d/{n}")
    wanted = [(rng.randrange(1000), rng.randrange(2 * CHUNK_BYTES - 4096)) for _ in range(10_000)]
    before = {number: node.requests[dataplane.READ_BATCH] for number, node in cluster.nodes.items()}
    cluster.metadata_calls.clear()
    found = client.read_batch([(f"/d/{n}", offset, 4096) for n, offset in wanted])
    for (n, offset), got in zip(wanted, found, strict=True):
        assert got == contents[n % 20][offset : offset + 4096]
    for number, node in cluster.nodes.items():
        assert node.requests[dataplane.READ_BATCH] - before[number] <= 5
    assert cluster.metadata_calls == {"resolve": 1000}  # pipelined: four windows


def test_a_batch_of_open_files_asks_no_metaserver(cluster, client):
    for n in range(10):
        client.write(f"/{n}", random_bytes(5000, n))
    files = [client.open_file(f"/{n}") for n in range(10)]
    cluster.metadata_calls.clear()
    found = client.read_batch([(files[n], 1000, 100) for n in range(10)])
    assert [bytes(view) for view in found] == [random_bytes(5000, n)[1000:1100] for n in range(10)]
    assert not cluster.metadata_calls
    for file in files:
        file.close()


def test_batches_read_into_buffers_and_stop_at_the_end_of_files(client):
    content = random_bytes(3 * CHUNK_BYTES)
    client.write("/f", content)
    client.write("/empty", b"")
    array = np.zeros(2 * CHUNK_BYTES, np.uint8)
    found = client.read_batch(
        [
            ("/f", CHUNK_BYTES // 2, array),
            ("/f", 3 * CHUNK_BYTES - 10, 1 << 40),
            ("/f", 1 << 40, 10),
            ("/f", 5, bytearray(0)),
            ("/empty", 0, 10),
        ]
    )
    assert bytes(found[0]) == content[CHUNK_BYTES // 2 :][: 2 * CHUNK_BYTES] == array.tobytes()
    assert bytes(found[1]) == content[-10:]
    assert [len(view) for view in found[2:]] == [0, 0, 0]
    assert client.read_batch([]) == []


def test_batches_refuse_what_makes_no_sense(client):
    client.write("/f", b"x")
    client.mkdir("/d")
    for request, words in [
        (("/f", -1, 1), "offset -1"),
        (("/f", 0, -1), "length -1"),
        (("/f", 0, b"readonly"), "read-only"),
        (("/none", 0, 1), "/none"),
        (("/d", 0, 1), "directory"),
    ]:
        with pytest.raises(OSError, match=words):
            client.read_batch([("/f", 0, 1), request])


def test_batches_write_many_files_and_all_see_it(cluster, client):
    other = cluster.client()
    for n in range(50):
        client.write(f"/{n}", b"")
    with client.open_file("/0", "r+") as opened:
        cluster.metadata_calls.clear()
        client.write_batch(
            [(opened, 3, b"open")]
            + [(f"/{n}", n, bytes([n]) * (CHUNK_BYTES + 1)) for n in range(1, 50)],
            sync=True,
        )
        assert opened.pread(10, 0) == b"\0\0\0open"
        assert cluster.metadata_calls["close"] == 1
        assert cluster.metadata_calls["settle_length"] == 1
    assert other.read("/0") == b"\0\0\0open"
    for n in range(1, 50):
        assert other.read(f"/{n}") == bytes(n) + bytes([n]) * (CHUNK_BYTES + 1)
    assert all(synced for synced in cluster.synced.values())
    with pytest.raises(FileNotFoundError):
        client.write_batch([("/none", 0, b"x")])


def test_a_batch_sees_what_was_gathered(client):
    with client.open_file("/f", "w+") as file:
        file.write(b"gathered")
        assert client.read_batch([(file, 2, 3), ("/f", 0, 2)]) == [b"the", b"ga"]
        client.write_batch([(file, 8, b" here")])
        file.pwrite(b"G", 0)
        assert file.pread(100, 0) == b"Gathered here"
    assert client.read("/f") == b"Gathered here"


def test_a_file_removed_while_it_is_read_by_path_is_an_error_not_zeros(cluster, client):
    client.write("/f", b"x" * 100)

    def remove_everything() -> None:
        for node in cluster.nodes.values():
            node.chunks.clear()
            node.before_request = None

    for node in cluster.nodes.values():
        node.before_request = remove_everything
    resolve_many = client.context.metadata.resolve_many

    def resolve_then_unlink(paths):
        found = resolve_many(paths)
        client.unlink("/f")
        return found

    client.context.metadata.resolve_many = resolve_then_unlink
    with pytest.raises(FileNotFoundError, match="removed"):
        client.read_batch([("/f", 0, 10)])
