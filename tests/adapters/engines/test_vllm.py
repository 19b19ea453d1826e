"""vLLM's tiering offload with fs3 behind its CPU tier, driven through its own manager on a CPU."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from kv_cluster import kv_cluster, new_namespace
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.manager import (
    CPUPrimaryTierOffloadingManager,
    TieringOffloadingManager,
)
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

CHUNKS = 16
CHUNK_BYTES = 64 << 10
LIMIT_S = 60.0
STEP = ScheduleEndContext((), ())


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


class Engine:
    """What vLLM's scheduler and GPU worker do, without either."""

    def __init__(self, manager: TieringOffloadingManager, memory: np.ndarray) -> None:
        self.manager = manager
        self.memory = memory  # (chunks, bytes): the CPU tier's rows

    def store(self, request: ReqContext, content: dict[OffloadKey, bytes]) -> None:
        """After a prefill: from the GPU into the CPU tier, and from there to the cache."""
        self.manager.on_new_request(request)
        prepared = self.manager.prepare_store(list(content), request)
        chunks = prepared.store_spec.chunk_ids
        for key, chunk in zip(prepared.keys_to_store, chunks, strict=True):
            self.memory[chunk] = np.frombuffer(content[key], np.uint8)
        self.manager.complete_store(prepared.keys_to_store, request)
        self.manager.on_request_finished(request)
        self.until(lambda: not self.manager.has_pending_work())

    def look_up(self, request: ReqContext, keys: list[OffloadKey]) -> list[bool]:
        """Before a prefill: which chunks are or come into the CPU tier."""
        self.manager.on_new_request(request)
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            results = [self.manager.lookup(key, request) for key in keys]
            if not any(r in (LookupResult.RETRY, LookupResult.HIT_PENDING) for r in results):
                return [result is LookupResult.HIT for result in results]
            assert time.monotonic() < deadline_s, results
            self.manager.on_schedule_end(STEP)
            time.sleep(0.005)

    def load(self, request: ReqContext, keys: list[OffloadKey]) -> list[bytes]:
        """What the GPU would get."""
        chunks = self.manager.prepare_load(keys, request).chunk_ids
        content = [self.memory[chunk].tobytes() for chunk in chunks]
        self.manager.complete_load(keys, request)
        self.manager.on_request_finished(request)
        return content

    def until(self, condition: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline_s, "it never came"
            self.manager.on_schedule_end(STEP)
            time.sleep(0.005)


@contextmanager
def engine(tier: dict[str, Any], model: str = "org/model", name: str = "one") -> Iterator[Engine]:
    region = SharedOffloadRegion(f"fs3-{name}-{id(tier)}", CHUNKS, None, CHUNK_BYTES, CHUNK_BYTES)
    primary = CPUPrimaryTierOffloadingManager(CHUNKS, region)
    view = primary.get_kv_memoryview()
    spec = specification(model)
    second = SecondaryTierFactory.create_secondary_tier(tier, view, spec)
    manager = TieringOffloadingManager(primary, [second])
    memory = np.asarray(view)
    try:
        yield Engine(manager, memory)
    finally:
        del memory
        manager.shutdown()


def specification(model: str) -> TieringOffloadingSpec:
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("layer.0",), 0),),
        worker_kv_bytes_per_block=CHUNK_BYTES,
        enable_kv_cache_events=False,
        extra_config={"cpu_bytes_to_use": CHUNKS * CHUNK_BYTES, "block_size": 16},
        engine_id="fs3-test",
        model=OffloadingModelConfig(model, "bfloat16"),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
    )
    return TieringOffloadingSpec(config)


def contents(seed: int, count: int) -> dict[OffloadKey, bytes]:
    rng = np.random.default_rng(seed)
    return {
        make_offload_key(hashlib.sha256(b"%d %d" % (seed, i)).digest(), 0): rng.bytes(CHUNK_BYTES)
        for i in range(count)
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
