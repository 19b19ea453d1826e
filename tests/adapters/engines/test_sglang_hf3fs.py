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
    directory = cluster.mount("ranks") / "ranks"
    directory.mkdir()
    config = tmp_path / "hf3fs.json"
    with metadata_servers() as url:
        places = {"file_path_prefix": f"{directory}/hicache", "metadata_server_url": url}
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
    files = {path.name: path.stat().st_size for path in directory.iterdir()}
    expected = [
        f"hicache-{kind}-{layout}.{rank}.bin"
        for kind, layout in CASES
        for rank in range(1 if kind == "mla" else RANKS)
    ]
    assert files == dict.fromkeys(expected, FILE_BYTES)
