"""One tensor-parallel rank of an engine, as a process: SGLang's backend for 3FS on a mount.

    python sglang_rank.py RANK RANKS DIRECTORY

stores pages and brings them back, in every layout, with MLA and without, together with the other
ranks: they agree through torch.distributed, as SGLang's controllers do. Prints what it has seen as
a line of JSON for each layout. SGLANG_HICACHE_HF3FS_CONFIG_PATH says where the mount is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from sglang_pools import (
    PAGE,
    backup,
    controller,
    fill,
    mha_pool,
    mla_pool,
    pages,
    prefetch,
    process_group,
)

CASES = [
    ("mla", "page_first"),
    ("mla", "page_first_direct"),
    ("mla", "layer_first"),
    ("mha", "page_first"),
    ("mha", "page_first_direct"),
    ("mha", "layer_first"),
]
TOKENS = list(range(1000, 1000 + 24 * PAGE))
CONFIG = "SGLANG_HICACHE_HF3FS_CONFIG_PATH"


def run(kind: str, layout: str, rank: int) -> dict[str, object]:
    """One layout. With MLA all ranks have the same to store; here only rank 0 has what is right,
    so that whatever another one stored would be found out."""
    make = mla_pool if kind == "mla" else mha_pool
    pool, expected = make(layout), make(layout)
    fill(pool, 1 + rank)
    fill(expected, 1 if kind == "mla" else 1 + rank)
    stored, wanted = pool.alloc(len(TOKENS)), pool.alloc(len(TOKENS))
    with controller(pool, {}, backend="hf3fs") as running:
        torch.distributed.barrier()
        completed = backup(running, stored, TOKENS)
        torch.distributed.barrier()
        found = prefetch(running, wanted, TOKENS)
        others = prefetch(running, wanted, TOKENS[::-1])
        torch.distributed.barrier()  # it takes both to agree
    return {
        "case": f"{kind} {layout}",
        "completed": completed,
        "found": found,
        "others": others,
        "equal": pages(pool, wanted) == pages(expected, stored),
    }


def main(rank: int, ranks: int, directory: Path) -> None:
    """All layouts, each in files and with metadata of its own."""
    settings = json.loads(Path(os.environ[CONFIG]).read_text())
    mine = directory / f"rank-{rank}.json"
    os.environ[CONFIG] = str(mine)
    with process_group(directory, rank, ranks):
        for kind, layout in CASES:
            changed = {
                "file_path_prefix": f"{settings['file_path_prefix']}-{kind}-{layout}",
                "metadata_server_url": f"{settings['metadata_server_url']}/{kind}-{layout}",
            }
            mine.write_text(json.dumps(settings | changed))
            print(json.dumps(run(kind, layout, rank)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
