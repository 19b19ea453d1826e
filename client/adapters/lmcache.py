"""LMCache's remote storage on fs3: a connector for its engine, a plug-in for its server.

In an engine's configuration::

    remote_storage_plugins: ["fs3"]
    extra_config:
      remote_storage_plugin.fs3.module_path: fs3.client.adapters.lmcache
      remote_storage_plugin.fs3.class_name: Fs3Connector
      remote_storage_plugin.fs3.address: 10.0.0.1:7000
      remote_storage_plugin.fs3.namespace: kv

For ``lmcache server``, :class:`Fs3NativePlugin`::

    --l2-adapter '{"type": "native_plugin", "module_path": "fs3.client.adapters.lmcache",
                   "class_name": "Fs3NativePlugin",
                   "adapter_params": {"address": "10.0.0.1:7000", "namespace": "kv"}}'

A chunk is one value, sent from and received into LMCache's own memory. LMCache's keys say model,
ranks and dtype. What storage fails to do is a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.protocol import RemoteMetadata
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from fs3.client.kvcache import KVCache
from fs3.client.shared_clients import shared_client
from fs3.errors import Code, Fs3Error

from .batched_calls import BatchedCalls

DEADLINE_S = 5.0
_THREADS = 4
_SETTINGS = ("address", "namespace", "cluster_id", "deadline_s")
_T = TypeVar("_T")


class Fs3Connector(RemoteConnector):  # type: ignore[misc]  # LMCache's classes are untyped here
    """What LMCache's RemoteBackend calls, from its event loop and from an engine's threads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        local_cpu_backend: Any,
        config: Any,
        plugin_name: str = "fs3",
    ) -> None:
        """Settings are ``remote_storage_plugin.NAME.*`` of the extra configuration: address,
        namespace (default "kv"), cluster_id, deadline_s. Fs3Error if there is no such cluster or
        namespace."""
        super().__init__(local_cpu_backend.config, local_cpu_backend.metadata)
        # Of chunks as they are configured: not everybody tells LMCache's metadata of their size.
        shapes = local_cpu_backend.metadata.get_shapes(local_cpu_backend.config.chunk_size)
        self._whole = shapes, self.meta_dtypes, self.meta_fmt
        self._layer = _one_layer(shapes, self.meta_dtypes)
        extra = config.extra_config or {}
        prefix = f"remote_storage_plugin.{plugin_name}."
        said = {name: extra[prefix + name] for name in _SETTINGS if prefix + name in extra}
        self._kv = _open_cache(**said)
        self._loop = loop
        self._memory = local_cpu_backend
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fs3-lmcache")

    async def _run(self, call: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, call, *arguments)

    # -- is it there? ----------------------------------------------------------------------------

    async def exists(self, key: CacheEngineKey) -> bool:
        """Whether there is a chunk."""
        return await self._run(self.exists_sync, key)

    def exists_sync(self, key: CacheEngineKey) -> bool:
        """The same, for a thread that waits."""
        return bool(self._kv.exists(_names([key]))[0])

    def support_batched_contains(self) -> bool:
        """Yes."""
        return True

    def batched_contains(self, keys: list[CacheEngineKey]) -> int:
        """How many of the first chunks are there, without a gap."""
        return self._kv.match(_names(keys))

    async def batched_async_contains(
        self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False
    ) -> int:
        """The same, for who does not wait; ``pin`` keeps them from eviction for a while."""
        names = _names(keys)
        count = await self._run(self._kv.match, names)
        if pin and count:
            await self._run(self._kv.pin, names[:count])
        return count

    # -- get -------------------------------------------------------------------------------------

    def support_batched_get(self) -> bool:
        """Yes."""
        return True

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        """A chunk in LMCache's memory, None if there is none."""
        return (await self.batched_get([key]))[0]

    async def batched_get(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """Chunks in one call of the cache; None for each that is not there."""
        return await self._run(self._get, keys)

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: list[CacheEngineKey]
    ) -> list[MemoryObj]:
        """The first chunks, up to the first that is not there."""
        found = await self.batched_get(keys)
        count = found.index(None) if None in found else len(found)
        for further in found[count:]:
            if further is not None:
                further.ref_count_down()
        return [one for one in found[:count] if one is not None]

    def _get(self, keys: Sequence[CacheEngineKey]) -> list[MemoryObj | None]:
        chunks = [
            self._memory.allocate(
                *(self._layer if isinstance(key, LayerCacheEngineKey) else self._whole)
            )
            for key in keys
        ]
        asked = [i for i, chunk in enumerate(chunks) if chunk is not None]  # the memory may be full
        heads = [bytearray(self._head_bytes) for _ in asked]
        buffers = [
            [head, chunks[i].byte_array] if head else [chunks[i].byte_array]
            for i, head in zip(asked, heads, strict=True)
        ]
        sizes = self._kv.get_into(_names([keys[i] for i in asked]), buffers).tolist()
        for i, head, size in zip(asked, heads, sizes, strict=True):
            chunks[i] = self._settled(chunks[i], head, size - self._head_bytes)
        return chunks

    @property
    def _head_bytes(self) -> int:
        return self.remote_metadata_bytes if self.save_chunk_meta else 0

    def _settled(self, chunk: MemoryObj, head: bytearray, size: int) -> MemoryObj | None:
        """A received chunk as what it is: maybe shorter than a whole one, or of another form."""
        if size <= 0:
            chunk.ref_count_down()
            return None
        if not head:
            try:
                return self.reshape_partial_chunk(chunk, size)
            except ValueError:  # somebody else's bytes, or another configuration's
                chunk.ref_count_down()
                return None
        said = RemoteMetadata.deserialize(head)
        if said.length != size:
            chunk.ref_count_down()
            return None
        if said.shapes == chunk.get_shapes() and said.dtypes == chunk.get_dtypes():
            chunk.meta.fmt = said.fmt
            return chunk
        settled = self._memory.allocate(said.shapes, said.dtypes, said.fmt)
        if settled is not None:
            memoryview(settled.byte_array).cast("B")[:] = memoryview(chunk.byte_array).cast("B")[
                :size
            ]
        chunk.ref_count_down()
        return settled

    # -- put -------------------------------------------------------------------------------------

    def support_batched_put(self) -> bool:
        """Yes."""
        return True

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        """Store a chunk; who calls lets go of its memory afterwards."""
        await self.batched_put([key], [memory_obj])

    async def batched_put(
        self, keys: Sequence[CacheEngineKey], memory_objs: Sequence[MemoryObj]
    ) -> None:
        """Store chunks in one call of the cache. What cannot be stored will be a miss."""
        await self._run(self._kv.put_from, _names(keys), [self._parts(o) for o in memory_objs])

    def _parts(self, chunk: MemoryObj) -> list[Any]:
        if not self.save_chunk_meta:
            return [chunk.byte_array]
        head = RemoteMetadata(
            len(chunk.byte_array),
            chunk.get_shapes(),
            chunk.get_dtypes(),
            chunk.get_memory_format(),
        )
        return [head.serialize(), chunk.byte_array]

    # -- the rest --------------------------------------------------------------------------------

    def remove_sync(self, key: CacheEngineKey) -> bool:
        """Remove a chunk; True if it was there."""
        return bool(self._kv.remove(_names([key]))[0])

    async def list(self) -> list[str]:
        """Keys cannot be listed: a value is found by the digest of its key."""
        raise NotImplementedError("fs3 keeps no list of a namespace's keys")

    def support_ping(self) -> bool:
        """Yes."""
        return True

    async def ping(self) -> int:
        """0 if all storageservers that hold the namespace answer."""
        try:
            await self._run(self._kv.stat)
        except Fs3Error as error:
            return int(error.code)
        return 0

    async def close(self) -> None:
        """Let what is under way end."""
        self._threads.shutdown()
        self._kv.close()


class Fs3NativePlugin:
    """LMCache's duck type for clients that answer through a descriptor."""

    def __init__(
        self,
        address: str | None = None,
        namespace: str = "kv",
        cluster_id: str | None = None,
        deadline_s: float = DEADLINE_S,
        threads: int = _THREADS,
    ) -> None:
        """Fs3Error if there is no such cluster or namespace."""
        self._kv = _open_cache(address, namespace, cluster_id, deadline_s)
        self._calls = BatchedCalls(threads)

    def event_fd(self) -> int:
        """Readable when a call has ended."""
        return self._calls.fileno()

    def submit_batch_get(self, keys: Sequence[str], memoryviews: Sequence[Any]) -> int:
        """Fill each view with a value of exactly its length."""
        return self._calls.submit(self._get, [key.encode() for key in keys], memoryviews)

    def submit_batch_set(self, keys: Sequence[str], memoryviews: Sequence[Any]) -> int:
        """Store each view's bytes."""
        return self._calls.submit(self._kv.put_from, [key.encode() for key in keys], memoryviews)

    def submit_batch_exists(self, keys: Sequence[str]) -> int:
        """Which are there."""
        return self._calls.submit(self._kv.exists, [key.encode() for key in keys])

    def submit_batch_delete(self, keys: Sequence[str]) -> int:
        """Remove them."""
        return self._calls.submit(self._kv.remove, [key.encode() for key in keys])

    def drain_completions(self) -> list[tuple[int, bool, str, list[bool] | None]]:
        """What has ended: the call, whether it went well as a whole, why not, and for each key."""
        return [
            (ended.number, ended.error is None, str(ended.error or ""), _each(ended.result))
            for ended in self._calls.take()
        ]

    def close(self) -> None:
        """Let what is under way end."""
        self._calls.close()
        self._kv.close()

    def _get(self, keys: list[bytes], views: Sequence[Any]) -> Any:
        sizes = self._kv.get_into(keys, views)
        return sizes == [memoryview(view).nbytes for view in views]


def _open_cache(
    address: str | None = None,
    namespace: str = "kv",
    cluster_id: str | None = None,
    deadline_s: float = DEADLINE_S,
) -> KVCache:
    if not isinstance(namespace, str) or not namespace:
        raise Fs3Error(Code.INVALID, f"namespace {namespace!r}; the name of one is needed")
    client = shared_client(address, cluster_id)
    return KVCache(client, namespace, deadline_s=float(deadline_s))


def _one_layer(shapes: Sequence[Any], dtypes: Sequence[Any]) -> tuple[Any, Any, MemoryFormat]:
    """The form of what one key stands for when chunks travel layer by layer (``use_layerwise``).

    LMCache tells a connector that of all layers together: (1 for MLA or 2, layers, tokens, width),
    for each group of equal ones. Of unequal ones the largest is taken; the value says what it is.
    """

    def layer_bytes(group: tuple[Any, Any]) -> int:
        shape, dtype = group
        return int(shape.numel() * dtype.itemsize // shape[1])

    shape, dtype = max(zip(shapes, dtypes, strict=True), key=layer_bytes)
    parts, _, tokens, width = shape
    if parts == 1:
        return shape[2:], dtype, MemoryFormat.KV_MLA_FMT
    return type(shape)((tokens, parts, width)), dtype, MemoryFormat.KV_T2D


def _names(keys: Sequence[CacheEngineKey]) -> list[bytes]:
    return [key.to_string().encode() for key in keys]


def _each(result: Any) -> list[bool] | None:
    return None if result is None else [bool(one) for one in result]
