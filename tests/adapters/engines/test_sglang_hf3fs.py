"""SGLang's own backend for 3FS, as it is, on an fs3 mount, with deploy/hf3fs_fuse beside it.

The backend compiles a small extension with torch when it is imported first; it is kept in this
virtual environment.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from sglang_pools import PAGE, backup, controller, mha_pool, one_process_group, prefetch

SHIM = Path(__file__).resolve().parents[3] / "deploy" / "hf3fs_fuse"
TOKENS = list(range(1000, 1000 + 24 * PAGE))
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: the backend compiles"),
]


@pytest.fixture(scope="module", autouse=True)
def _process_group(tmp_path_factory):
    with one_process_group(tmp_path_factory.mktemp("group")):
        yield


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct", "layer_first"])
def test_pages_come_back_as_they_were(layout, cluster, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SHIM))
    mountpoint = cluster.mount(layout)
    config = tmp_path / "hf3fs.json"
    places = {"file_path_prefix": f"{mountpoint}/hicache", "file_size": 64 << 20}
    config.write_text(json.dumps(places | {"numjobs": 2, "entries": 8}))
    monkeypatch.setenv("SGLANG_HICACHE_HF3FS_CONFIG_PATH", str(config))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    pool = mha_pool(layout)
    raw = pool.kv_buffer.reshape(-1).view(torch.uint8)
    raw.copy_(torch.randint(0, 256, raw.shape, generator=torch.Generator().manual_seed(1)))
    stored, wanted = pool.alloc(len(TOKENS)), pool.alloc(len(TOKENS))
    with controller(pool, {}, backend="hf3fs") as running:
        assert backup(running, stored, TOKENS) == len(TOKENS)
        assert prefetch(running, wanted, TOKENS) == len(TOKENS)
        assert prefetch(running, wanted, TOKENS[::-1]) == 0
    for there, here in zip(wanted.tolist()[::PAGE], stored.tolist()[::PAGE], strict=True):
        assert torch.equal(
            pool.get_data_page(there).view(torch.uint8), pool.get_data_page(here).view(torch.uint8)
        )
    assert (mountpoint / "hicache.0.bin").stat().st_size == 64 << 20
