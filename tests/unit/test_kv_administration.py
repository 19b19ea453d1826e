"""What storageservers count of a KV namespace is added up rightly."""

from __future__ import annotations

from fs3.client.kv_administration import total
from fs3.proto import storage_pb2


def test_what_is_stored_counts_once_a_chain_and_what_a_former_head_evicted_still_counts() -> None:
    same = {"chain": 1, "values": 10, "used_bytes": 1000, "stored": 77, "pinned": 3}
    rows = [
        storage_pb2.KvStats(**same, hits=1, evicted=36, evicted_bytes=3600, expired=2, heard=5),
        storage_pb2.KvStats(
            **same, head=True, hits=2, evicted=28, evicted_bytes=2800, expired=1, heard=4
        ),
    ]
    found = total(rows)
    once = {"values": 10, "used_bytes": 1000, "stored": 77, "pinned": 3}
    added = {"hits": 3, "evicted": 64, "evicted_bytes": 6400, "expired": 3, "heard": 9}
    assert {name: found[name] for name in once | added} == once | added
