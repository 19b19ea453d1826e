"""Ten thousand pieces of a thousand files are one call, and a handful of requests per server."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from mounted import Death, Logs, verify_replicas
from running_cluster import RunningCluster

from fs3.client import node_loads
from fs3.client.api import Client
from fs3.client.links import Links
from fs3.client.pipeline import Pipeline
from fs3.routing import NodeInfo

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]

FILES, PIECES, PIECE_BYTES = 1000, 10_000, 4096
REQUESTS_MAX = 5  # of one batch to one storageserver: 10,000 pieces / 3 servers, 4,096 at most each


@pytest.fixture
def client(cluster: RunningCluster) -> Client:
    return cluster.client()


@pytest.fixture(params=["network", "same-machine"])
def requests_max(
    cluster: RunningCluster, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> int:
    """How many requests one storageserver may get for one batch. To be asked for before ``client``.

    Over a network a batch is spread over all replicas. A client on a storageserver's machine asks
    that one alone, which gets what all would get.
    """
    if request.param == "same-machine":
        return REQUESTS_MAX * len(cluster.local.specification.nodes)
    monkeypatch.setattr(node_loads, "is_here", lambda _node: False)
    return REQUESTS_MAX


@pytest.fixture
def contents(client: Client, request: pytest.FixtureRequest) -> dict[str, bytes]:
    """The files; up to 100 KB, so that most batches cross every storageserver."""
    rng, folder = random.Random(31), f"/{request.node.name}"
    client.mkdir(folder)
    made = {
        f"{folder}/{n}": rng.randbytes(rng.randrange(PIECE_BYTES, 100_000)) for n in range(FILES)
    }
    for path, content in made.items():
        client.write(path, content)
    return made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Requests to each storageserver's address, counted where they leave the client."""
    found: Counter[str] = Counter()
    send = Links.send

    def counted(self: Links, node: NodeInfo, *arguments: object) -> object:
        found[node.data_address] += 1
        return send(self, node, *arguments)

    monkeypatch.setattr(Links, "send", counted)
    return found


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each exchange with the metaserver carried."""
    found: list[int] = []
    exchange = Pipeline.exchange

    def counted(self: Pipeline, method: object, requests: Sequence[object], timeout_s: float):
        found.append(len(requests))
        return exchange(self, method, requests, timeout_s)

    monkeypatch.setattr(Pipeline, "exchange", counted)
    return found


def pieces(contents: dict[str, bytes], seed: int) -> list[tuple[str, int, int]]:
    rng, paths = random.Random(seed), sorted(contents)
    chosen = [rng.choice(paths) for _ in range(PIECES)]
    return [
        (path, rng.randrange(len(contents[path]) - PIECE_BYTES), PIECE_BYTES) for path in chosen
    ]


def check(read: Callable[..., list[memoryview]], asked, contents: dict[str, bytes]) -> None:
    found = read(asked)
    assert len(found) == len(asked)
    for (path, offset, length), view in zip(asked, found, strict=True):
        assert view == contents[path][offset : offset + length], (path, offset)


def test_ten_thousand_pieces_are_a_handful_of_requests(
    cluster, requests_max, client, contents, sent, looked_up, logs: Logs
):
    check(client.read_batch, pieces(contents, 1), contents)
    assert 1 <= len(sent) <= len(cluster.local.specification.nodes)
    assert max(sent.values()) <= requests_max, sent
    assert looked_up == [len({path for path, _, _ in pieces(contents, 1)})]


def test_pieces_of_open_files_ask_no_metaserver(
    requests_max, client, contents, sent, looked_up, logs: Logs
):
    opened = {path: client.open_file(path) for path in contents}
    asked = [(opened[path], offset, length) for path, offset, length in pieces(contents, 2)]
    sent.clear()
    looked_up.clear()
    found = client.read_batch(asked)
    assert max(sent.values()) <= requests_max, sent
    assert sum(looked_up) == 0
    for (path, offset, length), view in zip(pieces(contents, 2), found, strict=True):
        assert view == contents[path][offset : offset + length]
    for file in opened.values():
        file.close()


def test_batches_stay_right_while_a_storageserver_dies_and_returns(
    cluster, client, contents, logs: Logs
):
    """Written and read in turns: what is read is what was written last, whoever answers."""
    rng, now = random.Random(33), {path: bytearray(content) for path, content in contents.items()}
    with Death(cluster, 2, at=3, until=8) as death:
        for turn in range(12):
            changes = {}
            for path, offset, length in pieces(contents, 100 + turn)[:500]:
                changes[path] = offset, rng.randbytes(length)
            client.write_batch([(path, *change) for path, change in changes.items()])
            for path, (offset, data) in changes.items():
                now[path][offset : offset + len(data)] = data
            check(client.read_batch, pieces(contents, turn), now)
            death.reached(turn)
    assert {path: client.read(path) for path in now} == now
    verify_replicas(cluster)
