"""LMCache on fs3: its engine's remote backend on a CPU, and its server's own bench with a check."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from kv_cluster import eventually, kv_cluster, new_namespace
from lmcache_engine import TOKENS, Engine, content, keys, running_loop


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture
def loop():
    with running_loop() as running:
        yield running


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
    asked, patient = keys(0, 4), Engine(settings, loop)
    patient.backend.batched_submit_put_task(asked, [patient.chunk(i) for i in range(4)])
    eventually(lambda: patient.backend.batched_contains(asked) == 4)
    patient.close()
    engine = Engine(settings | {"remote_storage_plugin.fs3.deadline_s": 1}, loop)
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
