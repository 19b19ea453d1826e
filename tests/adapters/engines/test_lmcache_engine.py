"""LMCache's whole engine on fs3: what one stored of a prompt another one loads, byte by byte."""

from __future__ import annotations

import pytest
import torch
from kv_cluster import eventually, kv_cluster, new_namespace
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache_in_sglang import (
    CHUNK,
    HEAD_DIM,
    HEADS,
    LAYERS,
    TOKENS,
    WHOLE,
    AskingAhead,
    LayerByLayer,
    Worker,
    configuration,
    on_a_cpu,
    slots,
    store_and_load,
    worker,
)

WAYS = [
    pytest.param(Worker, {}, id="whole"),
    pytest.param(AskingAhead, {"enable_async_loading": True}, id="ahead"),
    pytest.param(LayerByLayer, {"use_layerwise": True}, id="layer-by-layer"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    on_a_cpu(monkeypatch)


@pytest.fixture
def configured(cluster, tmp_path):
    """``configured(SETTING=...)``: a configuration file, with a namespace of the test's own."""

    def configure(*, deadline_s: float = 20, **settings: object):
        extra = {
            "remote_storage_plugin.fs3.address": str(cluster.dir),
            "remote_storage_plugin.fs3.namespace": new_namespace(cluster),
            "remote_storage_plugin.fs3.deadline_s": deadline_s,
        }
        return configuration(tmp_path / "lmcache.yaml", {"extra_config": extra}, **settings)

    return configure


@pytest.mark.parametrize(("kind", "settings"), WAYS)
def test_a_prompt_that_one_engine_stored_is_loaded_by_another(kind, settings, configured):
    store_and_load(configured(**settings), kind)


def test_all_ranks_of_mla_load_what_rank_0_stored(configured):
    store_and_load(configured(), mla=True, ranks=2)


def test_layer_by_layer_no_more_memory_is_asked_for_than_for_a_layer(configured, monkeypatch):
    """As much as for all of them would leave none for the next, and be copied from."""
    asked = []
    allocate = LocalCPUBackend.allocate

    def counted(self, shapes, *rest, **named):
        asked.append(torch.Size(shapes if isinstance(shapes, torch.Size) else shapes[0]))
        return allocate(self, shapes, *rest, **named)

    places = slots(1)[:WHOLE]
    with worker(configured(use_layerwise=True), LayerByLayer) as one:
        one.store(TOKENS[:WHOLE], places)
        eventually(lambda: one.stored(TOKENS) == WHOLE)
        monkeypatch.setattr(LocalCPUBackend, "allocate", counted)
        assert one.load(TOKENS[:WHOLE], places) == WHOLE
    chunks = WHOLE // CHUNK
    assert asked == [torch.Size([CHUNK, 2, HEADS * HEAD_DIM])] * chunks * LAYERS


def test_of_a_longer_prompt_the_part_that_is_there_is_loaded(configured):
    known, places = 2 * CHUNK, slots(1)[: len(TOKENS)]
    with worker(configured()) as one:
        before = one.rows(places)
        one.store(TOKENS[:known], places[:known])
        eventually(lambda: one.stored(TOKENS) == known)
        assert one.load(TOKENS, places) == known
        assert one.rows(places) == before


def test_with_storage_away_nothing_is_found_and_the_engine_goes_on(cluster, configured):
    places = slots(1)[: len(TOKENS)]
    with worker(configured(deadline_s=1)) as one:

        def stored() -> bool:
            one.store(TOKENS, places)  # again, if a second was too short on a loaded machine
            return one.stored(TOKENS) >= WHOLE

        eventually(stored)
        before = one.rows(slots(1))
        nodes = [node.node for node in cluster.local.specification.nodes]
        for node in nodes:
            cluster.hold(node)
            cluster.kill(node)
        assert one.stored(TOKENS) == 0
        assert one.load(TOKENS, places) == 0
        one.store(TOKENS[::-1], places)
        for node in nodes:
            cluster.release(node)
        cluster.wait_healthy()
        eventually(lambda: one.load(TOKENS, places) >= WHOLE)
        assert one.rows(slots(1)) == before
