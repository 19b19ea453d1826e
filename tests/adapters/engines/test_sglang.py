"""SGLang's HiCache on fs3: through its own controller, in every layout of its host pools."""

from __future__ import annotations

import pytest
import torch
from kv_cluster import eventually, kv_cluster, new_namespace
from sglang_pools import (
    PAGE,
    backup,
    controller,
    fill,
    hashes_of,
    mha_pool,
    mla_pool,
    pages,
    prefetch,
    process_group,
)

from fs3.errors import Fs3Error

TOKENS = list(range(1000, 1000 + 48 * PAGE))
MHA_LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_head"]
MLA_LAYOUTS = ["layer_first", "page_first", "page_first_direct"]
POOLS = [(mha_pool, layout) for layout in MHA_LAYOUTS] + [
    (mla_pool, layout) for layout in MLA_LAYOUTS
]


@pytest.fixture(scope="module", autouse=True)
def _process_group(tmp_path_factory):
    with process_group(tmp_path_factory.mktemp("group")):
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture
def extra(cluster):
    """The configuration of a namespace of the test's own."""
    return {
        "address": str(cluster.dir),
        "namespace": new_namespace(cluster),
        "interface_v1": 1,
        "deadline_s": 20,
    }


@pytest.mark.parametrize("zero_copy", [1, 0], ids=["v1", "generic"])
@pytest.mark.parametrize(("make", "layout"), POOLS)
def test_pages_that_one_engine_stored_are_found_by_another(make, layout, zero_copy, extra):
    extra["interface_v1"] = zero_copy
    here, there = make(layout), make(layout)
    fill(here, 1)
    stored = here.alloc(len(TOKENS))
    with controller(here, dict(extra)) as running:
        assert backup(running, stored, TOKENS) == len(TOKENS)
    there.alloc(5 * PAGE)  # other pages than those that they came from
    wanted = there.alloc(len(TOKENS))
    untouched = fill(there, 2)
    with controller(there, dict(extra)) as running:
        assert prefetch(running, wanted, TOKENS) == len(TOKENS)
    assert pages(there, wanted) == pages(here, stored)
    rest = there.alloc(10 * PAGE)
    for index in rest.tolist()[::PAGE]:
        assert torch.equal(
            there.get_data_page(index).view(torch.uint8),
            _page_of(there, untouched, index).view(torch.uint8),
        )


def _page_of(pool, content: torch.Tensor, index: int) -> torch.Tensor:
    """A page of an earlier content of a pool."""
    now = pool.kv_buffer
    pool.kv_buffer = content
    try:
        return pool.get_data_page(index)
    finally:
        pool.kv_buffer = now


def test_only_the_prefix_that_is_there_comes(extra):
    pool = mha_pool("page_first")
    fill(pool, 3)
    indices = pool.alloc(len(TOKENS))
    known = 20 * PAGE
    with controller(pool, extra) as running:
        assert backup(running, indices[:known], TOKENS[:known]) == known
        assert prefetch(running, indices, TOKENS) == known
        assert prefetch(running, indices, TOKENS[::-1]) == 0
        hashes = hashes_of(TOKENS, None, page_size=PAGE)
        assert running.storage_backend.exists(hashes[0])
        assert not running.storage_backend.exists(hashes[-1])


@pytest.mark.parametrize(
    "changed",
    [
        lambda extra: controller(mha_pool("page_first"), extra, model="org/other"),
        lambda extra: controller(mha_pool("layer_first"), extra),
        lambda extra: controller(mha_pool("page_first", torch.float16), extra),
        lambda extra: controller(mla_pool("page_first"), extra),
    ],
    ids=["model", "layout", "dtype", "kind"],
)
def test_pages_of_another_configuration_are_not_found(extra, changed):
    pool = mha_pool("page_first")
    fill(pool, 4)
    with controller(pool, dict(extra)) as running:
        assert backup(running, pool.alloc(len(TOKENS)), TOKENS) == len(TOKENS)
    with changed(dict(extra)) as running:
        assert prefetch(running, torch.arange(len(TOKENS)), TOKENS) == 0


def test_ranks_share_pages_only_where_they_hold_the_same_bytes():
    from dataclasses import replace

    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

    from fs3.client.adapters.sglang import _prefix

    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=2,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="m",
    )
    pool = mha_pool("page_first")

    def same(name: str, mla: bool, **changes: int) -> bool:
        one = replace(config, is_mla_model=mla)
        return _prefix(one, name, pool) == _prefix(replace(one, **changes), name, pool)

    assert not same("kv", False, tp_rank=1)
    assert same("kv", True, tp_rank=1)
    assert not same("mamba", True, tp_rank=1)
    assert not same("kv", True, pp_rank=1, pp_size=2)
    assert not same("kv", True, attn_cp_rank=1, attn_cp_size=2)


def test_pools_beside_the_pages_travel_in_the_same_call(extra):
    from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

    pool, states = mha_pool("page_first"), mla_pool("layer_first")
    fill(pool, 5)
    fill(states, 6)
    keys = hashes_of(TOKENS[: 8 * PAGE], None, page_size=PAGE)
    indices, others = pool.alloc(len(keys) * PAGE), states.alloc(len(keys) * PAGE)
    before = pages(pool, indices), pages(states, others)
    with controller(pool, extra) as running:
        storage = running.storage_backend
        storage.register_mem_host_pool_v2(states, PoolName.MAMBA)
        some = PoolTransfer(PoolName.MAMBA, others[4 * PAGE :], keys=keys[4:])
        kv = PoolTransfer(PoolName.KV, indices, keys=keys)
        assert storage.batch_set_v2([kv, some]) == {
            PoolName.KV: [True] * 8,
            PoolName.MAMBA: [True] * 4,
        }
        everywhere = PoolTransfer(PoolName.MAMBA, keys=keys)
        found = storage.batch_exists_v2(keys, [everywhere])
        assert (found.kv_hit_pages, found.extra_pool_hit_pages) == (0, {"kv": 8})
        last_two = PoolTransfer(
            PoolName.MAMBA, keys=keys[:2], hit_policy=PoolHitPolicy.TRAILING_PAGES
        )
        found = storage.batch_exists_v2([*keys, "missing"], [last_two])
        assert found.kv_hit_pages == 8
        assert found.restorable_prefix_pages == [6, 7, 8]
        fill(pool, 7)
        fill(states, 8)
        assert storage.batch_get_v2([kv, PoolTransfer(PoolName.MAMBA, others, keys=keys)]) == {
            PoolName.KV: [True] * 8,
            PoolName.MAMBA: [False] * 4 + [True] * 4,
        }
    assert pages(pool, indices) == before[0]
    assert pages(states, others[4 * PAGE :]) == before[1][4:]


def test_a_storageserver_that_is_away_makes_misses_and_no_failure(cluster, extra):
    pool = mha_pool("page_first")
    fill(pool, 9)
    indices = pool.alloc(len(TOKENS))
    victim = cluster.local.specification.nodes[0].node
    with controller(pool, dict(extra)) as running:
        assert backup(running, indices, TOKENS) == len(TOKENS)
    with controller(pool, extra | {"deadline_s": 2}) as running:
        cluster.hold(victim)
        cluster.kill(victim)
        came = prefetch(running, indices, TOKENS)
        assert 0 <= came < len(TOKENS)
        cluster.release(victim)
        cluster.wait_healthy()
        # What is heard of a returned server may take a call or two.
        eventually(lambda: prefetch(running, indices, TOKENS) == len(TOKENS))


def test_a_wrong_setting_is_refused_by_name(extra):
    made = controller(mha_pool("page_first"), extra | {"adress": "x"})
    with pytest.raises(Fs3Error, match="'adress' is not known: address"), made:
        pass
