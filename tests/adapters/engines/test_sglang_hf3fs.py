"""SGLang's own backend for 3FS, as it is, on an fs3 mount, with deploy/hf3fs_fuse beside it.

The backend compiles a small extension with torch when it is imported first; it is kept in this
virtual environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from kv_cluster import eventually
from sglang_pools import (
    backup,
    controller,
    fill,
    mha_pool,
    pages,
    prefetch,
    process_group,
)
from sglang_rank import CASES, CONFIG, TOKENS

HERE = Path(__file__).resolve().parent
SHIM = HERE.parents[2] / "deploy" / "hf3fs_fuse"
EXTENSIONS = Path(sys.prefix) / "torch_extensions"
FILE_BYTES = 64 << 20
# Patient: what is late is a miss, and this machine may be busy.
SETTINGS = {"file_size": FILE_BYTES, "numjobs": 2, "entries": 8, "client_timeout": 60}
RANKS = 2
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: the backend compiles"),
]


@pytest.fixture(scope="module", autouse=True)
def _process_group(tmp_path_factory):
    with process_group(tmp_path_factory.mktemp("group")):
        yield


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct", "layer_first"])
def test_pages_come_back_as_they_were(layout, cluster, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SHIM))
    mountpoint = cluster.mount(layout)
    config = tmp_path / "hf3fs.json"
    config.write_text(json.dumps(SETTINGS | {"file_path_prefix": f"{mountpoint}/hicache"}))
    monkeypatch.setenv(CONFIG, str(config))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(EXTENSIONS))
    pool = mha_pool(layout)
    fill(pool, 1)
    stored, wanted = pool.alloc(len(TOKENS)), pool.alloc(len(TOKENS))
    with controller(pool, {}, backend="hf3fs") as running:
        assert backup(running, stored, TOKENS) == len(TOKENS)
        assert prefetch(running, wanted, TOKENS) == len(TOKENS)
        assert prefetch(running, wanted, TOKENS[::-1]) == 0
    assert pages(pool, wanted) == pages(pool, stored)
    assert (mountpoint / "hicache.0.bin").stat().st_size == FILE_BYTES


@contextlib.contextmanager
def metadata_servers() -> Iterator[str]:
    """The server that the backend's ranks share, SGLang's own: one for each of the cases."""
    from sglang.srt.mem_cache.storage.hf3fs.mini_3fs_metadata_server import Hf3fsMetadataServer

    app = FastAPI()
    for kind, layout in CASES:
        app.mount(f"/{kind}-{layout}", Hf3fsMetadataServer().app)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def run_ranks(directory: Path, config: Path) -> list[list[dict[str, object]]]:
    """What each of them says."""
    environ = os.environ | {
        CONFIG: str(config),
        "PYTHONPATH": str(SHIM),
        "TORCH_EXTENSIONS_DIR": str(EXTENSIONS),
    }
    logs = [directory / f"rank-{rank}.log" for rank in range(RANKS)]
    with contextlib.ExitStack() as files:
        running = [
            subprocess.Popen(
                [sys.executable, str(HERE / "sglang_rank.py"), str(rank), str(RANKS), directory],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=files.enter_context(log.open("w")),
                text=True,
            )
            for rank, log in enumerate(logs)
        ]
        try:
            said = [rank.communicate()[0] for rank in running]
        finally:
            for rank in running:
                rank.kill()
                rank.wait()
    for log in logs:
        print(log.read_text()[-4000:])
    assert [rank.returncode for rank in running] == [0] * RANKS
    return [[json.loads(line) for line in lines.splitlines()] for lines in said]


def test_ranks_share_the_pages_of_mla_and_the_first_one_writes_them(cluster, tmp_path):
    mountpoint = cluster.mount("ranks")
    config = tmp_path / "hf3fs.json"
    with metadata_servers() as url:
        places = {"file_path_prefix": f"{mountpoint}/hicache", "metadata_server_url": url}
        config.write_text(json.dumps(SETTINGS | places))
        said = run_ranks(tmp_path, config)
    for rank, seen in enumerate(said):
        for (kind, layout), case in zip(CASES, seen, strict=True):
            writes = rank == 0 or kind == "mha"
            assert case == {
                "case": f"{kind} {layout}",
                "completed": len(TOKENS) if writes else 0,
                "found": len(TOKENS),
                "others": 0,
                "equal": True,
            }
    files = {path.name: path.stat().st_size for path in mountpoint.glob("*.bin")}
    expected = [
        f"hicache-{kind}-{layout}.{rank}.bin"
        for kind, layout in CASES
        for rank in range(1 if kind == "mla" else RANKS)
    ]
    assert files == dict.fromkeys(expected, FILE_BYTES)
