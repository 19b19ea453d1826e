"""LMCache's own remote backend on a CPU, without a model and without its engine's front."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

TOKENS, LAYERS, HEADS, HEAD_DIM = 32, 3, 2, 16


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread, as an engine has it."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


class Engine:
    """LMCache's remote backend and its CPU memory.

    ``settings`` are its extra configuration: with fs3 plugged in, unless ``url`` names another.
    """

    def __init__(
        self,
        settings: dict[str, object],
        loop: asyncio.AbstractEventLoop,
        url: str | None = None,
    ) -> None:
        plugged = {
            "remote_storage_plugin.fs3.module_path": "fs3.client.adapters.lmcache",
            "remote_storage_plugin.fs3.class_name": "Fs3Connector",
        }
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=TOKENS,
            local_cpu=False,
            max_local_cpu_size=0.05,
            remote_storage_plugins=None if url else ["fs3"],
            remote_url=url,
            remote_serde="naive",
            blocking_timeout_secs=60,
            extra_config=settings if url else plugged | settings,
        )
        metadata = LMCacheMetadata(
            model_name="org/model",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(LAYERS, 2, TOKENS, HEADS, HEAD_DIM),
            chunk_size=TOKENS,
        )
        self.memory = LocalCPUBackend(config, metadata, dst_device="cpu")
        self.backend = RemoteBackend(
            config,
            metadata,
            loop,
            self.memory,
            dst_device="cpu",
            plugin_name=None if url else "fs3",
        )

    def chunk(self, seed: int, tokens: int = TOKENS):
        """A chunk of random values in LMCache's memory."""
        shape = torch.Size([2, LAYERS, tokens, HEADS * HEAD_DIM])
        made = self.memory.allocate(shape, torch.bfloat16, MemoryFormat.KV_2LTD)
        generator = torch.Generator().manual_seed(seed)
        raw = torch.randint(0, 256, (made.get_size(),), generator=generator, dtype=torch.uint8)
        memoryview(made.byte_array).cast("B")[:] = raw.numpy().tobytes()
        return made

    def close(self) -> None:
        self.backend.close()
        self.memory.memory_allocator.close()


def keys(first: int, count: int) -> list[CacheEngineKey]:
    return [
        CacheEngineKey("org/model", 1, 0, 0x1000 + i, torch.bfloat16)
        for i in range(first, first + count)
    ]


def content(chunk) -> bytes:
    return memoryview(chunk.byte_array).tobytes()
