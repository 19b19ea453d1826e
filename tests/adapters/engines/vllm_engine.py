"""vLLM's own tiering manager on a CPU: what its scheduler and its GPU worker do, without either."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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
