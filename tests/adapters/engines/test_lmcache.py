"""LMCache on fs3: its engine's remote backend on a CPU, and its server's own bench with a check."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kv_cluster import eventually, kv_cluster, new_namespace
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

TOKENS, LAYERS, HEADS, HEAD_DIM = 32, 3, 2, 16


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


class Engine:
    """LMCache's remote backend with fs3 plugged in by configuration alone, and its CPU memory."""

    def __init__(self, settings: dict[str, object], loop: asyncio.AbstractEventLoop) -> None:
        extra = {
            "remote_storage_plugin.fs3.module_path": "fs3.client.adapters.lmcache",
            "remote_storage_plugin.fs3.class_name": "Fs3Connector",
            **settings,
        }
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=TOKENS,
            local_cpu=False,
            max_local_cpu_size=0.05,
            remote_storage_plugins=["fs3"],
            remote_serde="naive",
            blocking_timeout_secs=60,
            extra_config=extra,
        )
        metadata = LMCacheMetadata(
            model_name="org/model",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(LAYERS, 2, TOKENS, HEADS, HEAD_DIM),
            chunk_size=TOKENS,
        )
        self.memory = LocalCPUBackend(config, metadata, dst_device="cpu")
        self.backend = RemoteBackend(
            config, metadata, loop, self.memory, dst_device="cpu", plugin_name="fs3"
        )

    def chunk(self, seed: int, tokens: int = TOKENS):
        """A chunk of random values in LMCache's memory."""
        shape = torch.Size([2, LAYERS, tokens, HEADS * HEAD_DIM])
        made = self.memory.allocate(shape, torch.bfloat16, MemoryFormat.KV_2LTD)
        generator = torch.Generator().manual_seed(seed)
        raw = torch.randint(0, 256, (made.get_size(),), generator=generator, dtype=torch.uint8)
        memoryview(made.byte_array).cast("B")[:] = raw.numpy().tobytes()
        return made

    def close(self) -> None:
        self.backend.close()
        self.memory.memory_allocator.close()


@pytest.fixture
def settings(cluster) -> dict[str, object]:
    return {
        "remote_storage_plugin.fs3.address": str(cluster.dir),
        "remote_storage_plugin.fs3.namespace": new_namespace(cluster),
        "remote_storage_plugin.fs3.deadline_s": 20,
    }


@pytest.fixture(params=[True, False], ids=["with-head", "bare"])
def engine(settings, loop, request):
    made = Engine(settings | {"save_chunk_meta": request.param}, loop)
    yield made
    made.close()


def keys(first: int, count: int) -> list[CacheEngineKey]:
    return [
        CacheEngineKey("org/model", 1, 0, 0x1000 + i, torch.bfloat16)
        for i in range(first, first + count)
    ]


def content(chunk) -> bytes:
    return memoryview(chunk.byte_array).tobytes()


def test_chunks_are_stored_and_come_back_whole(engine):
    asked = keys(0, 12)
    chunks = [engine.chunk(i) for i in range(12)]
    before = [content(chunk) for chunk in chunks]
    engine.backend.batched_submit_put_task(asked, chunks)
    eventually(lambda: engine.backend.batched_contains(asked) == 12)
    back = engine.backend.batched_get_blocking(asked)
    assert [content(chunk) for chunk in back] == before
    assert all(chunk.meta.shape == chunks[0].meta.shape for chunk in back)
    for chunk in (*chunks, *back):
        chunk.ref_count_down()
    assert engine.memory.memory_allocator.memcheck()


def test_a_chunk_that_is_not_full_keeps_its_length(engine):
    (asked,) = keys(100, 1)
    short = engine.chunk(7, tokens=TOKENS // 4)
    before = content(short)
    engine.backend.submit_put_task(asked, short).result(60)
    back = engine.backend.get_blocking(asked)
    assert content(back) == before
    assert back.meta.shape[2] == TOKENS // 4


def test_a_missing_chunk_is_none_and_ends_a_prefix(engine, loop):
    asked = keys(200, 5)
    chunks = [engine.chunk(i) for i in range(5)]
    present = [0, 1, 3]
    engine.backend.batched_submit_put_task(
        [asked[i] for i in present], [chunks[i] for i in present]
    )
    eventually(lambda: engine.backend.contains(asked[3]))
    back = engine.backend.batched_get_blocking(asked)
    assert [chunk is not None for chunk in back] == [True, True, False, True, False]
    assert engine.backend.batched_contains(asked) == 2

    async def ask():
        count = await engine.backend.batched_async_contains("id", asked, pin=True)
        return count, await engine.backend.batched_get_non_blocking("id", asked)

    count, prefix = asyncio.run_coroutine_threadsafe(ask(), loop).result(60)
    assert count == len(prefix) == 2
    assert [content(chunk) for chunk in prefix] == [content(chunk) for chunk in chunks[:2]]
    assert engine.backend.remove(asked[0])
    assert not engine.backend.contains(asked[0])


def test_a_cluster_that_is_away_is_misses(cluster, settings, loop):
    engine = Engine(settings | {"remote_storage_plugin.fs3.deadline_s": 1}, loop)
    asked = keys(0, 4)
    engine.backend.batched_submit_put_task(asked, [engine.chunk(i) for i in range(4)])
    eventually(lambda: engine.backend.batched_contains(asked) == 4)
    for node in cluster.local.specification.nodes:
        cluster.hold(node.node)
        cluster.kill(node.node)
    assert engine.backend.batched_contains(asked) == 0
    assert engine.backend.batched_get_blocking(asked) == [None] * 4
    for node in cluster.local.specification.nodes:
        cluster.release(node.node)
    cluster.wait_healthy()
    engine.close()


def test_lmcaches_own_bench_of_its_server_verifies_every_byte(cluster):
    adapter = {
        "type": "native_plugin",
        "module_path": "fs3.client.adapters.lmcache",
        "class_name": "Fs3NativePlugin",
        "adapter_params": {
            "address": str(cluster.dir),
            "namespace": new_namespace(cluster),
            "deadline_s": 20,
        },
    }
    command = [
        Path(sys.executable).with_name("lmcache"),
        *("bench", "l2", "--l2-adapter", json.dumps(adapter)),
        *("--num-keys", "16", "--data-size-kb", "256", "--rounds", "3"),
        *("--lookup-max-hit-rate", "1.0", "--no-skip-verify", "--format", "json"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    print(ran.stdout)
    assert "verif" in (ran.stdout + ran.stderr).lower()
