"""LMCache's whole engine on a CPU, with pages as SGLang has them and without a model.

Everything is LMCache's own: the engine with its look-ups, its storage manager, its CPU memory, its
connector to SGLang's pages and its copies between pages and chunks (which it has as torch
operations, too). Layer by layer it is the adapter that SGLang calls (``--enable-lmcache``), as it
is. In one piece the engine is called as that adapter would, because in LMCache 0.5.6 the adapter's
way of it is not whole (it takes keys and values for MLA's rows and leaves the values out), and two
lines of the connector ask for CUDA: :func:`on_a_cpu` takes their place and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")  # it would report to its makers

import pytest
import torch
from kv_cluster import eventually
from lmcache.integration.sglang.sglang_adapter import (
    LMCacheLayerwiseConnector,
    LoadMetadata,
    StoreMetadata,
)
from lmcache.integration.sglang.utils import ENGINE_NAME
from lmcache.utils import EngineType, mock_up_broadcast_fn, mock_up_broadcast_object_fn
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector import gpu_connectors
from lmcache.v1.metadata import LMCacheMetadata

CHUNK, LAYERS, HEADS, HEAD_DIM, SLOTS = 32, 3, 2, 16, 1024
ROW = 40  # of MLA: one for all heads
PLUGGED_IN = {
    "remote_storage_plugin.fs3.module_path": "fs3.client.adapters.lmcache",
    "remote_storage_plugin.fs3.class_name": "Fs3Connector",
}
ANSWER_S = 60.0


def on_a_cpu(patch: pytest.MonkeyPatch) -> None:
    """The two lines that want to see a CUDA device, and to wait for it."""

    def pointers(self: Any, caches: Any) -> torch.Tensor:
        found, caches = gpu_connectors.normalize_kv_and_discover_format(caches, EngineType.SGLANG)
        layers = range(gpu_connectors.get_num_layers(caches, found))
        self.engine_kv_format = found
        self.page_buffer_size = SLOTS
        addresses = gpu_connectors.get_group_data_ptrs(caches, found, list(layers))
        return torch.tensor(addresses, dtype=torch.int64)

    patch.setattr(gpu_connectors.SGLangGPUConnector, "_initialize_pointers", pointers)
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)


def configuration(path: Path, storage: dict[str, Any], **settings: Any) -> Path:
    """LMCache's file: ``storage`` is a URL, or the extra configuration of fs3 plugged in."""
    extra = {"save_only_first_rank": False}  # or rank 0 needs somebody to broadcast for it
    url = storage.get("remote_url")
    said = {
        "chunk_size": CHUNK,
        "local_cpu": False,
        "max_local_cpu_size": 0.05,
        "blocking_timeout_secs": 60,
        "remote_serde": "naive",
        "extra_config": extra | ({} if url else PLUGGED_IN) | storage.get("extra_config", {}),
    }
    said |= {"remote_url": url} if url else {"remote_storage_plugins": ["fs3"]}
    path.write_text(json.dumps(said | settings))  # which is YAML, too
    return path


class Worker:
    """One rank of an engine: its pages, and LMCache behind them. Whole chunks at once."""

    def __init__(
        self, config: Path, *, mla: bool, seed: int, rank: int, ranks: int, chunk: int
    ) -> None:
        self.mla, self.chunk = mla, chunk
        generator = torch.Generator().manual_seed(seed)
        shape = (SLOTS, 1, ROW) if mla else (SLOTS, HEADS, HEAD_DIM)
        layers = [
            torch.randint(-(1 << 15), 1 << 15, shape, generator=generator, dtype=torch.int16)
            for _ in range(LAYERS if mla else 2 * LAYERS)
        ]
        #: SLOTS tokens of each layer's keys, then of each layer's values.
        self.pages = [layer.view(torch.bfloat16) for layer in layers]
        keys, values = self.pages[:LAYERS], self.pages[LAYERS:]
        self.caches = keys if mla else [keys, values]
        self.answers: queue.Queue[tuple[str, int]] = queue.Queue()
        self.engine = self._make(config, rank, ranks)

    def _make(self, config: Path, rank: int, ranks: int) -> LMCacheEngine:
        width = ROW if self.mla else HEADS * HEAD_DIM
        shape = (1, ROW) if self.mla else (HEADS, HEAD_DIM)
        metadata = LMCacheMetadata(
            model_name="org/model",
            world_size=ranks,
            local_world_size=ranks,
            worker_id=rank,
            local_worker_id=rank,
            kv_dtype=torch.bfloat16,
            kv_shape=(LAYERS, 1 if self.mla else 2, self.chunk, *shape),
            use_mla=self.mla,
            chunk_size=self.chunk,
        )
        made = LMCacheEngineBuilder.get_or_create(
            ENGINE_NAME,
            LMCacheEngineConfig.from_file(str(config)),
            metadata,
            gpu_connectors.SGLangGPUConnector(width, LAYERS, use_mla=self.mla),
            mock_up_broadcast_fn,
            mock_up_broadcast_object_fn,
        )
        made.post_init(kvcaches=self.caches, async_lookup_server=self)
        return made

    def send_response_to_scheduler(self, lookup_id: str, tokens: int) -> None:
        """What LMCache's server of asynchronous look-ups does: hand the answer to who asked."""
        self.answers.put((lookup_id, tokens))

    def store(self, tokens: list[int], slots: torch.Tensor) -> None:
        """As after a prefill; it goes on behind the call."""
        self.engine.store(torch.tensor(tokens), kvcaches=self.caches, slot_mapping=slots, offset=0)

    def stored(self, tokens: list[int], where: list[str] | None = None) -> int:
        """How many of the first tokens are found (in these backends of the engine)."""
        return int(self.engine.lookup(torch.tensor(tokens), search_range=where))

    def load(self, tokens: list[int], slots: torch.Tensor) -> int:
        """As before a prefill; how many of the first tokens came."""
        came = self.engine.retrieve(
            torch.tensor(tokens), kvcaches=self.caches, slot_mapping=slots, offset=0, req_id="1"
        )
        count = int(came.sum())
        assert bool(came[:count].all())
        return count

    def rows(self, slots: torch.Tensor) -> list[bytes]:
        """What lies in these slots: of each layer the keys, then of each the values."""
        taken = [layer[slots].contiguous().view(torch.uint8) for layer in self.pages]
        return [layer.numpy().tobytes() for layer in taken]


class AskingAhead(Worker):
    """It looks up and fetches behind the request (``enable_async_loading``)."""

    def load(self, tokens: list[int], slots: torch.Tensor) -> int:
        """See :meth:`Worker.load`."""
        self.engine.async_lookup_and_prefetch("1", torch.tensor(tokens), pin=True)
        name, found = self.answers.get(timeout=ANSWER_S)
        assert name == "1"
        count = super().load(tokens, slots) if found else 0
        assert count == found
        return count


class LayerByLayer(Worker):
    """LMCache's adapter for SGLang, as SGLang calls it."""

    def _make(self, config: Path, rank: int, ranks: int) -> LMCacheEngine:
        model = SimpleNamespace(
            num_hidden_layers=LAYERS,
            head_dim=HEAD_DIM,
            get_num_kv_heads=lambda ranks: HEADS,
            model_path="org/model",
            attention_arch="MHA",
        )
        self.adapter = LMCacheLayerwiseConnector(model, ranks, rank, *self.caches, str(config))
        return self.adapter.lmcache_engine

    def store(self, tokens: list[int], slots: torch.Tensor) -> None:
        """See :meth:`Worker.store`."""
        self.adapter.store_kv(StoreMetadata(None, tokens, slots, 0))

    def load(self, tokens: list[int], slots: torch.Tensor) -> int:
        """See :meth:`Worker.load`."""
        count = int(self.adapter.start_load_kv(LoadMetadata(tokens, slots, 0)))
        for layer in range(LAYERS):
            self.adapter.load_kv_layerwise(layer)
        return count


@contextlib.contextmanager
def worker(
    config: Path,
    kind: type[Worker] = Worker,
    *,
    mla: bool = False,
    seed: int = 1,
    rank: int = 0,
    ranks: int = 1,
    chunk: int = CHUNK,
) -> Iterator[Worker]:
    """One, with its engine; there can be one at a time in a process, as LMCache has it.

    ``chunk``: tokens of one, as configured.
    """
    try:
        yield kind(config, mla=mla, seed=seed, rank=rank, ranks=ranks, chunk=chunk)
    finally:
        LMCacheEngineBuilder.destroy(ENGINE_NAME)


def slots(seed: int) -> torch.Tensor:
    """All places for tokens, in an order of an engine's own."""
    return torch.randperm(SLOTS, generator=torch.Generator().manual_seed(seed))


WHOLE = 5 * CHUNK
TOKENS = list(range(2000, 2000 + WHOLE + CHUNK // 2))


def store_and_load(
    config: Path, kind: type[Worker] = Worker, *, mla: bool = False, ranks: int = 1
) -> None:
    """Rank 0 stores, the last rank of an engine that knows nothing loads and compares."""
    here, there = slots(1)[: len(TOKENS)], slots(2)[: len(TOKENS)]
    with worker(config, kind, mla=mla, ranks=ranks) as one:
        assert one.stored(TOKENS) == 0
        one.store(TOKENS, here)
        eventually(lambda: one.stored(TOKENS) >= WHOLE)
        wanted = one.rows(here)
    others = slots(2)[len(TOKENS) :]
    with worker(config, kind, mla=mla, seed=2, rank=ranks - 1, ranks=ranks) as other:
        untouched = other.rows(others)
        count = other.load(TOKENS, there)
        assert count in (WHOLE, len(TOKENS))  # whether a chunk that is not full counts
        first = [layer[: len(layer) * count // len(TOKENS)] for layer in wanted]
        assert other.rows(there[:count]) == first
        assert other.rows(others) == untouched
        assert other.load(TOKENS[::-1], there) == 0
        assert other.engine.storage_manager.memcheck()
