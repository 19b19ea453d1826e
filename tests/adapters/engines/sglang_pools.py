"""SGLang's own host pools and HiCache controller on a CPU, without a model.

A device's pool is what a GPU would hold; nothing here moves it, so it is a few tensors of zeros.
SGLang imports torchvision on the way, for models that see; there is none here, and nothing is used
of it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

LAYERS, HEADS, HEAD_DIM = 3, 2, 8
LORA_RANK, ROPE_DIM = 16, 8
PAGE = 4
TOKENS = 512


class _Absent(types.ModuleType):
    """Any name of a module that is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name)


def _without_torchvision() -> None:
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():  # asked first: transformers remembers the answer
        return
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = _Absent(name)


_without_torchvision()

# ruff: noqa: E402 - they import torchvision
from sglang.srt.managers.cache_controller import HiCacheController, get_storage_hash_str
from sglang.srt.mem_cache.device_pool_info import (
    KVBufferLayout,
    KVBuffers,
    MHABufferInfo,
    MLABufferInfo,
)
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.runtime_context import get_parallel

hashes_of = get_storage_hash_str


def _pointers(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)


def mha_pool(layout: str, dtype: torch.dtype = torch.bfloat16) -> MHATokenToKVPoolHost:
    """Keys and values of several heads."""
    shape = (TOKENS, HEADS, HEAD_DIM)
    k = tuple(torch.zeros(shape, dtype=dtype) for _ in range(LAYERS))
    v = tuple(torch.zeros(shape, dtype=dtype) for _ in range(LAYERS))
    buffers = KVBuffers(
        k=k,
        v=v,
        k_data_ptrs=_pointers(k),
        v_data_ptrs=_pointers(v),
        layout=KVBufferLayout.NHD,
    )
    info = MHABufferInfo(
        buffers=buffers,
        page_size=PAGE,
        head_num=HEADS,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    return MHATokenToKVPoolHost(info, 2.0, 0, PAGE, layout, **_host_arguments())


def mla_pool(layout: str, dtype: torch.dtype = torch.bfloat16) -> MLATokenToKVPoolHost:
    """One compressed row for all heads: the same on all tensor-parallel ranks."""
    width = LORA_RANK + ROPE_DIM
    rows = tuple(torch.zeros((TOKENS, 1, width), dtype=dtype) for _ in range(LAYERS))
    info = MLABufferInfo(
        buffers=rows,
        data_ptrs=_pointers(rows),
        layer_indices=tuple(range(LAYERS)),
        device_layer_num=LAYERS,
        page_size=PAGE,
        kv_lora_rank=LORA_RANK,
        qk_rope_head_dim=ROPE_DIM,
        kv_cache_dim=width,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    return MLATokenToKVPoolHost(
        info, 2.0, 0, PAGE, layout, target_layer_num=LAYERS, **_host_arguments()
    )


def fill(pool: Any, seed: int) -> torch.Tensor:
    """Random bytes in all of a pool; returns a copy."""
    raw = pool.kv_buffer.reshape(-1).view(torch.uint8)
    raw.copy_(torch.randint(0, 256, raw.shape, generator=torch.Generator().manual_seed(seed)))
    return pool.kv_buffer.clone()


def pages(pool: Any, indices: torch.Tensor) -> list[bytes]:
    """The content of the pages that begin at every PAGE-th index."""
    firsts = indices[::PAGE].tolist()
    flat = [pool.get_data_page(first, flat=True).contiguous() for first in firsts]
    return [page.view(torch.uint8).numpy().tobytes() for page in flat]


def _host_arguments() -> dict[str, Any]:
    return {
        "pin_memory": False,
        "device": "cpu",
        "device_capacity_tokens": TOKENS,
        "start_layer": 0,
        "end_layer": LAYERS,
    }


class _Allocator:
    """Stands for the GPU's memory: it says of which kind it is."""

    def __init__(self, *, mla: bool) -> None:
        kind = MLATokenToKVPool if mla else MHATokenToKVPool
        self._pool = kind.__new__(kind)
        self._pool.device = "cpu"
        self._pool.layer_num = LAYERS
        self._pool.register_layer_transfer_counter = lambda _counter: None

    def get_kvcache(self) -> Any:
        return self._pool


@contextlib.contextmanager
def process_group(directory: Path, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """What torch.distributed and SGLang must know of tensor-parallel ranks."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/group", rank=rank, world_size=ranks
    )
    widths = {"tp_rank": rank, "tp_size": ranks, "pp_rank": 0, "pp_size": 1}
    try:
        with get_parallel().override(**widths, attn_dcp_size=1, attn_dcp_rank=0):
            yield
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def controller(
    pool: Any, extra: dict[str, Any], *, model: str = "org/model", backend: str = "dynamic"
) -> Iterator[HiCacheController]:
    """SGLang's own controller; ``dynamic`` is fs3, loaded as SGLang's documentation says."""
    named = {
        "backend_name": "fs3",
        "module_path": "fs3.client.adapters.sglang",
        "class_name": "Fs3HiCache",
    }
    made = HiCacheController(
        _Allocator(mla=isinstance(pool, MLATokenToKVPoolHost)),
        pool,
        PAGE,
        torch.distributed.group.WORLD,
        threading.Event(),
        storage_backend=backend,
        model_name=model,
        storage_backend_extra_config=extra if backend != "dynamic" else named | extra,
    )
    try:
        yield made
    finally:
        made.detach_storage_backend()


ACK_S = 60.0


def backup(running: HiCacheController, indices: torch.Tensor, tokens: list[int]) -> int:
    """Store pages as the engine does after a prefill; how many tokens were."""
    running.write_storage(indices, tokens, hashes_of(tokens, None, page_size=PAGE))
    return int(running.ack_backup_queue.get(timeout=ACK_S).completed_tokens)


def prefetch(running: HiCacheController, indices: torch.Tensor, tokens: list[int]) -> int:
    """Bring pages as the engine does before a prefill; how many tokens came."""
    running.prefetch("request", tokens)
    found = running.prefetch_hit_queue.get(timeout=ACK_S)
    found.host_indices = indices[: found.storage_hit_count]
    running.prefetch_buffer.put(found)
    completed = 0
    while not (ack := running.ack_prefetch_queue.get(timeout=ACK_S)).completed_req:
        completed = int(ack.completed_tokens)
    return completed
