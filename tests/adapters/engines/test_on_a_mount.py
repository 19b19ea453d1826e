"""What engines bring along for file systems, unchanged, on an fs3 mount.

LMCache's connector for 3FS finds 3FS's Python module (deploy/hf3fs_fuse) and so reads and writes
through rings, past the mount; vLLM's file tier uses plain files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lmcache_in_sglang import configuration, on_a_cpu, store_and_load
from running_cluster import RunningCluster
from vllm.v1.kv_offload.base import ReqContext
from vllm_engine import contents, engine

SHIM = Path(__file__).parents[3] / "deploy" / "hf3fs_fuse"
RINGS = {"hf3fs_iov_size": 100 << 20, "hf3fs_ior_entries": 128, "hf3fs_io_thread_num": 2}
pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="a mount needs root and FUSE"
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RunningCluster(tmp_path_factory.mktemp("cluster") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def mount(cluster) -> Path:
    return cluster.mount()


@pytest.fixture(autouse=True)
def _rings(monkeypatch):
    """``hf3fs_fuse`` as ``pip install deploy/hf3fs_fuse`` would bring it."""
    monkeypatch.syspath_prepend(str(SHIM))


def test_lmcaches_whole_engine_on_its_connector_for_3fs(mount, tmp_path, monkeypatch):
    on_a_cpu(monkeypatch)
    storage = {
        "remote_url": f"hf3fs://{mount}/engine",
        "extra_config": RINGS | {"hf3fs_mount_point": str(mount)},
    }
    store_and_load(configuration(tmp_path / "lmcache.yaml", storage))
    assert list((mount / "engine").glob("*.data"))


def test_vllms_file_tier(mount):
    tier = {"type": "fs", "root_dir": str(mount / "vllm"), "n_read_threads": 2}
    content = contents(1, 10)
    with engine(tier) as first:
        assert first.manager.secondary_tiers[0]._use_o_direct
        first.store(ReqContext("a"), content)
    with engine(tier, name="two") as second:
        missing = list(contents(2, 2))
        request = ReqContext("b")
        assert second.look_up(request, [*content, *missing]) == [True] * 10 + [False] * 2
        assert second.load(request, list(content)) == list(content.values())
    assert not list((mount / "vllm").rglob("*.tmp"))
