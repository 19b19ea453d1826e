"""What replicas know of each other's uses of values, over real sockets and real stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from storage_cluster import CHAIN, StorageCluster

from fs3 import dataplane
from fs3.core.chunks import UpdateKind
from fs3.core.kv import NAMESPACE_FIRST, KvNamespace
from fs3.core.types import PublicState, chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.interface import Piece, ReadResult
from fs3.storageserver.eviction import Counts

S = PublicState.SERVING
BYTES = 1000


@pytest.fixture
def three(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 3) as cluster:
        cluster.set_chain((1, S), (2, S), (3, S))
        eventually(lambda: cluster.call(lambda: linked(cluster)))  # a hint is not sent again
        for node in cluster.nodes:
            values = node.target.values
            cluster.call(lambda values=values: values.load(tmp_path / f"recency-{id(values)}"))
        limit_to(cluster, 0)
        for slot in range(10):
            kind, data = UpdateKind.CREATE, bytes(BYTES)
            result, _ = cluster.write(slot, data, kind=kind, owner=NAMESPACE_FIRST)
            assert result["code"] == Code.OK
        yield cluster


def linked(cluster: StorageCluster) -> bool:
    links = [link for node in cluster.nodes for link in node.neighbours._links.values()]
    return len(links) == 6 and all(link.connected for link in links)


def limit_to(cluster: StorageCluster, values: int) -> None:
    """The capacity of the namespace, in values; 0: any."""
    namespace = KvNamespace(
        namespace=NAMESPACE_FIRST,
        name="values",
        table=1,
        chains=(CHAIN,),
        replicas=3,
        capacity_bytes=values * BYTES + BYTES // 2 if values else 0,  # and room for the margin
    )
    for node in cluster.nodes:
        known = node.target.values
        cluster.call(lambda known=known: known.know({NAMESPACE_FIRST: namespace}, 1 << 64))


def counts(cluster: StorageCluster, target: int) -> Counts:
    return cluster.call(lambda: cluster.nodes[target - 1].target.values.counts[NAMESPACE_FIRST])


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def there_at(cluster: StorageCluster, target: int) -> set[int]:
    pieces = [(slot, 0, 0) for slot in range(10)]
    results, _ = cluster.read(pieces, target, owner=NAMESPACE_FIRST)
    return {slot for slot in range(10) if results["code"][slot] == Code.OK}


def evict_down_to(cluster: StorageCluster, values: int) -> None:
    limit_to(cluster, values)
    cluster.call(cluster.nodes[0].target.values.background)
    eventually(lambda: len(there_at(cluster, 1)) <= values)


def test_a_value_read_at_the_tail_only_outlives_one_that_nobody_read(
    three: StorageCluster,
) -> None:
    results, _ = three.read([(2, 0, BYTES), (0, 0, BYTES)], 3, owner=NAMESPACE_FIRST)
    assert results["code"].tolist() == [Code.OK] * 2
    eventually(lambda: counts(three, 1).heard == 2)
    evict_down_to(three, 3)
    assert there_at(three, 1) == there_at(three, 3) == {0, 2, 9}
    evict_down_to(three, 2)
    assert there_at(three, 1) == {0, 2}
    evict_down_to(three, 1)
    assert there_at(three, 1) == {2}, "the first of a batch counts as used last"


def test_what_a_client_read_by_itself_at_a_middle_replica_is_told_to_the_head_too(
    three: StorageCluster,
) -> None:
    items = np.zeros(1, dataplane.READ_ITEM)
    items["chunk"] = np.frombuffer(chunk_id(NAMESPACE_FIRST, 1), "V24")
    items["chain"] = CHAIN
    three.request(2, dataplane.USED, items.tobytes())
    eventually(lambda: counts(three, 1).heard == 1)
    evict_down_to(three, 2)
    assert there_at(three, 1) == {1, 9}


def test_to_be_asked_for_beside_a_value_that_is_being_removed_is_no_use(
    three: StorageCluster,
) -> None:
    """Such a batch is answered piece by piece, as reads are."""
    three.read([(2, 0, BYTES), (0, 0, BYTES)], 1, owner=NAMESPACE_FIRST)
    values = three.nodes[0].target.values
    chunks = [chunk_id(NAMESPACE_FIRST, slot) for slot in range(10)]
    there = [ReadResult(Code.OK)] * 10
    three.call(lambda: values.read([Piece(chunk, 0, 0) for chunk in chunks], there))
    assert (counts(three, 1).found, counts(three, 1).hits) == (10, 2)
    evict_down_to(three, 2)
    assert there_at(three, 1) == {0, 2}


def test_uses_are_counted_where_they_were_and_nowhere_else(three: StorageCluster) -> None:
    three.read([(0, 0, BYTES)], 1, owner=NAMESPACE_FIRST)
    three.read([(0, 0, BYTES)], 3, owner=NAMESPACE_FIRST)
    eventually(lambda: counts(three, 1).heard == 1)
    assert [counts(three, target).hits for target in (1, 2, 3)] == [1, 0, 1]
    assert [counts(three, target).heard for target in (1, 2, 3)] == [1, 0, 0]


def test_a_new_head_hears_of_uses_from_then_on(three: StorageCluster) -> None:
    three.set_chain((2, S), (3, S))
    three.read([(4, 0, BYTES)], 3, owner=NAMESPACE_FIRST)
    eventually(lambda: counts(three, 2).heard == 1)
    assert counts(three, 1).heard == 0
