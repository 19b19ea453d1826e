"""The configurations on docs/engines.md, used as they are there, but for where the cluster is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from code_blocks import blocks_of
from kv_cluster import eventually, kv_cluster
from lmcache_in_sglang import TOKENS, on_a_cpu, slots, worker
from sglang_pools import PAGE, backup, controller, mha_pool, prefetch, process_group
from sglang_rank import CONFIG
from vllm.v1.kv_offload.base import ReqContext
from vllm_engine import contents, engine

from fs3.client.kv_administration import NamespaceSettings, create_namespace

PAGE_FILE = Path(__file__).resolve().parents[3] / "docs" / "engines.md"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        with running.local.administration() as calls:
            create_namespace(calls.manager, "kv", NamespaceSettings())
        yield running


@pytest.fixture
def files(cluster, tmp_path) -> dict[str, Path]:
    """The page's files by name."""
    found = {}
    for block in blocks_of(PAGE_FILE.read_text()):
        if block.file is not None:
            found[block.file] = tmp_path / block.file
            code = block.code.replace("10.0.0.1:7000", str(cluster.dir))
            code = code.replace("max_local_cpu_size: 5", "max_local_cpu_size: 0.05")  # GiB
            found[block.file].write_text(code)
    assert len(found) == 4
    return found


def test_sglang(files, tmp_path):
    pool, tokens = mha_pool("page_first"), list(range(8 * PAGE))
    with process_group(tmp_path):
        extra = json.loads(files["sglang.json"].read_text())
        with controller(pool, extra, backend="dynamic") as running:
            assert backup(running, pool.alloc(len(tokens)), tokens) == len(tokens)
            assert prefetch(running, pool.alloc(len(tokens)), tokens) == len(tokens)


def test_sglangs_own_backend_takes_its_configuration(files):
    """That it works on a mount is test_sglang_hf3fs.py's."""
    from sglang.srt.mem_cache.storage.hf3fs.storage_hf3fs import HiCacheHF3FS

    assert HiCacheHF3FS.default_env_var == CONFIG
    said = json.loads(files["hf3fs.json"].read_text())
    assert set(said) == {
        *("file_path_prefix", "file_size", "numjobs", "entries"),
        "metadata_server_url",
    }


def test_lmcache(files, monkeypatch):
    on_a_cpu(monkeypatch)
    tokens = (TOKENS * 2)[:256]  # one chunk of it
    places = slots(1)[: len(tokens)]
    with worker(files["lmcache.yaml"], chunk=256) as one:
        one.store(tokens, places)
        remote = ["RemoteBackend-fs3"]
        eventually(lambda: one.stored(tokens, remote) == len(tokens))
        assert one.load(tokens, places) == len(tokens)


def test_vllm(files):
    said = json.loads(files["vllm.json"].read_text())
    (tier,) = said["kv_connector_extra_config"]["secondary_tiers"]
    content = contents(1, 4)
    with engine(tier) as first:
        first.store(ReqContext("a"), content)
    with engine(tier, name="two") as second:
        assert second.look_up(ReqContext("b"), list(content)) == [True] * 4
