"""vLLM's tiering offload with fs3 behind its CPU tier, driven through its own manager on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
from kv_cluster import kv_cluster, new_namespace
from vllm.v1.kv_offload.base import ReqContext
from vllm_engine import CHUNK_BYTES, contents, engine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture
def tier(cluster) -> dict[str, Any]:
    """The configuration of a tier in a namespace of the test's own."""
    return {
        "type": "Fs3Tier",
        "module_path": "fs3.client.adapters.vllm",
        "address": str(cluster.dir),
        "namespace": new_namespace(cluster),
        "deadline_s": 20.0,
    }


def test_chunks_that_one_engine_stored_are_loaded_by_another(tier):
    content = contents(1, 10)
    with engine(tier) as first:
        first.store(ReqContext("a"), content)
    with engine(tier, name="two") as second:
        keys = list(content)
        missing = list(contents(2, 2))
        request = ReqContext("b")
        assert second.look_up(request, keys + missing) == [True] * 10 + [False] * 2
        assert second.load(request, keys) == list(content.values())


def test_chunks_that_the_cpu_tier_had_to_give_up_come_back(tier):
    with engine(tier) as running:
        stored = {}
        for round in range(4):  # 40 chunks through 16 rows
            content = contents(10 + round, 10)
            running.store(ReqContext(f"store {round}"), content)
            stored[round] = content
        for round, content in stored.items():
            request = ReqContext(f"load {round}")
            assert running.look_up(request, list(content)) == [True] * 10
            assert running.load(request, list(content)) == list(content.values())


def test_another_models_chunks_are_not_found(tier):
    content = contents(3, 4)
    with engine(tier) as first:
        first.store(ReqContext("a"), content)
    with engine(tier, model="org/other", name="two") as other:
        assert other.look_up(ReqContext("b"), list(content)) == [False] * 4


def test_a_chunk_that_went_between_look_up_and_load_is_a_miss_and_the_others_are_kept(
    tier, monkeypatch
):
    content = contents(4, 6)
    keys = list(content)
    with engine(tier) as first:
        first.store(ReqContext("a"), content)
    with engine(tier, name="two") as second:
        fs3_tier = second.manager.secondary_tiers[0]
        found = fs3_tier._lookups.batch_lookup

        def then_remove(asked, context):
            answer = found(asked, context)
            fs3_tier._kv.remove([fs3_tier._prefix + keys[2]])
            return answer

        monkeypatch.setattr(fs3_tier._lookups, "batch_lookup", then_remove)
        request = ReqContext("b")
        there = second.look_up(request, keys)
        assert there == [True, True, False, True, True, True]
        kept = [key for key, here in zip(keys, there, strict=True) if here]
        assert second.load(request, kept) == [content[key] for key in kept]


def test_storage_that_is_away_makes_misses_and_every_job_ends(cluster, tier):
    tier["deadline_s"] = 1.0
    content = contents(5, 10)
    with engine(tier) as first:
        first.store(ReqContext("a"), content)
    with engine(tier, name="two") as second:
        for node in cluster.local.specification.nodes:
            cluster.hold(node.node)
            cluster.kill(node.node)
        assert second.look_up(ReqContext("b"), list(content)) == [False] * 10
        second.store(ReqContext("c"), contents(6, 4))  # fails, and ends
        for node in cluster.local.specification.nodes:
            cluster.release(node.node)
        cluster.wait_healthy()


def test_draining_waits_for_all_jobs(tier):
    content = contents(7, 8)
    with engine(tier) as running:
        request = ReqContext("a")
        running.manager.on_new_request(request)
        prepared = running.manager.prepare_store(list(content), request)
        running.manager.complete_store(prepared.keys_to_store, request)
        fs3_tier = running.manager.secondary_tiers[0]
        fs3_tier.drain_jobs()
        results = list(fs3_tier.get_finished_jobs())
        assert [result.success for result in results] == [True]
        assert results[0].transfer_bytes == 8 * CHUNK_BYTES
        fs3_tier._done += results
        running.until(lambda: not running.manager.has_pending_work())
