"""SGLang's HiCache on fs3: its third level of KV cache, shared by every inference node.

SGLang loads it by name (``--hicache-storage-backend dynamic``), with this configuration::

    {"backend_name": "fs3", "module_path": "fs3.client.adapters.sglang", "class_name": "Fs3HiCache",
     "interface_v1": 1, "address": "10.0.0.1:7000", "namespace": "kv"}

A page is one value. Its parts (K and V, or one for each layer, as the layout of SGLang's host pool
has it) are sent from and received into the host pool itself. A value's key says all that decides
what the bytes mean: model, layout, dtype, page size and, unless all ranks hold the same bytes, as
with MLA, the tensor-parallel rank. No two configurations can read each other's pages.

Nothing here raises because storage failed: what cannot be had is a miss, what cannot be stored is
False for its page.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from fs3.client.kv_buffers import lengths_of, parts_of
from fs3.client.kvcache import KVCache
from fs3.client.shared_clients import shared_client
from fs3.errors import Code, Fs3Error

_SETTINGS = ("address", "namespace", "cluster_id", "deadline_s")
_DEADLINE_S = 5.0
_FOR_SGLANG = ("backend_name", "module_path", "class_name", "interface_v1")


class _Pages(NamedTuple):
    """Pages of one pool on their way: where each one's bytes are, and what to do at the end."""

    keys: list[bytes]
    buffers: list[list[Any]]
    finish: Callable[[NDArray[np.bool_]], None]


class Fs3HiCache(HiCacheStorage):  # type: ignore[misc]  # SGLang's classes are untyped here
    """One rank's connection to a namespace of an fs3 cluster."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: object = None) -> None:
        """``storage_config.extra_config``: address, namespace, and optionally cluster_id and
        deadline_s (of a call). Fs3Error if there is no such cluster or namespace."""
        extra = dict(storage_config.extra_config or {})
        unknown = [key for key in extra if key not in (*_SETTINGS, *_FOR_SGLANG)]
        if unknown:
            raise Fs3Error(
                Code.INVALID,
                f"extra config {unknown[0]!r} is not known: {', '.join(_SETTINGS)} are",
            )
        self._config = storage_config
        self._kv = KVCache(
            shared_client(extra.get("address"), extra.get("cluster_id")),
            extra.get("namespace", "kv"),
            deadline_s=float(extra.get("deadline_s", _DEADLINE_S)),
        )
        self._regions: dict[str, _Region] = {}
        self._prefixes: dict[str, bytes] = {}

    # -- pools -----------------------------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """SGLang's host pool of KV pages, whose memory is used in place."""
        super().register_mem_pool_host(mem_pool_host)
        self._register(str(PoolName.KV), mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        """A further pool: states and indices beside the KV pages."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._register(str(host_pool_name), host_pool)

    def _register(self, name: str, pool: Any) -> None:
        region = _Region(getattr(pool, "kv_buffer", None))
        if region.view is not None:
            self._kv.register(region.view)
        self._regions[name] = region
        self._prefixes[name] = _prefix(self._config, name, pool)

    def _pool(self, name: str) -> Any:
        if name == str(PoolName.KV):
            return self.mem_pool_host
        return self.registered_pools[name]

    def _keys(self, name: str, keys: Sequence[str]) -> list[bytes]:
        prefix = self._prefixes.get(name)
        if prefix is None:
            raise Fs3Error(
                Code.INVALID,
                f"pool {name!r} is not registered; {', '.join(self._prefixes) or 'none'} are",
            )
        return [prefix + key.encode() for key in keys]

    # -- pages, from and into the host pool ------------------------------------------------------

    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        """How many pages are there, from the first on, without a gap."""
        return self._kv.match(self._keys(str(PoolName.KV), keys))

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Fill pages; which were there whole."""
        transfer = PoolTransfer(name=PoolName.KV, host_indices=host_indices, keys=keys)
        return self.batch_get_v2([transfer], extra_info)[PoolName.KV]

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Store pages; which of them are in the cache now."""
        transfer = PoolTransfer(name=PoolName.KV, host_indices=host_indices, keys=keys)
        return self.batch_set_v2([transfer], extra_info)[PoolName.KV]

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The longest prefix that is usable: its KV pages are there, and what its other pools need.

        One call to the cache, whatever the number of pools.
        """
        transfers = pool_transfers or []
        asked = self._keys(str(PoolName.KV), keys)
        wanted = [(transfer, _wanted(transfer, keys)) for transfer in transfers]
        for transfer, names in wanted:
            asked += self._keys(str(transfer.name), names)
        found = self._kv.exists(asked)
        kv_pages = _leading(found[: len(keys)])
        hits: dict[str, int] = {str(PoolName.KV): kv_pages} if kv_pages else {}
        restorable = np.arange(1, kv_pages + 1)
        at = len(keys)
        for transfer, names in wanted:
            present = found[at : at + len(names)]
            at += len(names)
            if transfer.hit_policy is PoolHitPolicy.BLOCK_GROUPS:
                # A second form of the same pages: it says how far it reaches, and limits nothing.
                groups = _leading(present) // max(transfer.group_pages, 1)
                covered = groups * transfer.block_pages
                if covered:
                    hits[str(transfer.name)] = covered
                continue
            usable = _usable(transfer, present[:kv_pages])
            if len(usable):
                hits[str(transfer.name)] = int(usable[-1])
            restorable = np.intersect1d(restorable, usable)
        last = int(restorable[-1]) if len(restorable) else 0
        return PoolTransferResult(last, hits, restorable.tolist())

    def batch_get_v2(
        self,
        transfers: list[PoolTransfer],
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> dict[str, list[bool]]:
        """Fill pages of several pools, in one call to the cache; which were there whole."""
        pages = [self._pages(transfer, storing=False) for transfer in transfers]
        keys = [key for one in pages for key in one.keys]
        buffers = [parts for one in pages for parts in one.buffers]
        sizes = self._kv.get_into(keys, buffers)
        whole = sizes == np.array(lengths_of([parts_of(b, writable=True) for b in buffers]))
        return self._share_out(transfers, pages, whole)

    def batch_set_v2(
        self,
        transfers: list[PoolTransfer],
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> dict[str, list[bool]]:
        """Store pages of several pools, in one call to the cache; which are there now."""
        pages = [self._pages(transfer, storing=True) for transfer in transfers]
        keys = [key for one in pages for key in one.keys]
        stored = self._kv.put_from(keys, [parts for one in pages for parts in one.buffers])
        return self._share_out(transfers, pages, stored)

    @staticmethod
    def _share_out(
        transfers: Sequence[PoolTransfer], pages: Sequence[_Pages], done: NDArray[np.bool_]
    ) -> dict[str, list[bool]]:
        results: dict[str, list[bool]] = {}
        at = 0
        for transfer, one in zip(transfers, pages, strict=True):
            mine = done[at : at + len(one.keys)]
            at += len(one.keys)
            one.finish(mine)
            results[transfer.name] = mine.tolist()
        return results

    def _pages(self, transfer: PoolTransfer, *, storing: bool) -> _Pages:
        name = str(transfer.name)
        keys = self._keys(name, transfer.keys or [])
        pool = self._pool(name)
        page_size = getattr(pool, "page_size", 1) or 1
        indices = transfer.host_indices
        have = 0 if indices is None else indices.numel()
        if have != len(keys) * page_size:
            raise Fs3Error(
                Code.INVALID,
                f"pool {name!r}: {have} host indices for {len(keys)} pages of {page_size} tokens",
            )
        if not keys:
            return _Pages([], [], _nothing)
        try:
            addresses, sizes = pool.get_page_buffer_meta(indices)
        except (AttributeError, NotImplementedError, ValueError):
            # This pool or layout has no pages in one place: they are copied out and in.
            return self._copied(pool, keys, indices[::page_size].tolist(), storing=storing)
        parts = self._regions[name].parts(addresses, sizes)
        per_page = len(parts) // len(keys)
        buffers = [parts[i : i + per_page] for i in range(0, len(parts), per_page)]
        return _Pages(keys, buffers, _nothing)

    @staticmethod
    def _copied(
        pool: Any,
        keys: list[bytes],
        firsts: Sequence[int],
        *,
        storing: bool,
    ) -> _Pages:
        if storing:
            flat = [pool.get_data_page(first, flat=True).contiguous() for first in firsts]
            return _Pages(keys, [[page] for page in flat], _nothing)
        flat = [pool.get_dummy_flat_data_page() for _ in firsts]

        def finish(found: NDArray[np.bool_]) -> None:
            for first, page, here in zip(firsts, flat, found.tolist(), strict=True):
                if here:
                    pool.set_from_flat_data_page(first, page)

        return _Pages(keys, [[page] for page in flat], finish)

    # -- single tensors: what SGLang calls without "interface_v1" ---------------------------------

    def get(
        self,
        key: str,
        target_location: torch.Tensor | None = None,
        target_sizes: object = None,
    ) -> torch.Tensor | None:
        """``target_location`` filled, or a new tensor of bytes; None if the page is not there."""
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self,
        keys: list[str],
        target_locations: Sequence[torch.Tensor | None] | None = None,
        target_sizes: object = None,
    ) -> list[torch.Tensor | None]:
        """The same for many."""
        names = self._keys(str(PoolName.KV), keys)
        given = [location for location in target_locations or [] if location is not None]
        if len(given) < len(keys):
            values = self._kv.get(names)
            return [
                None if value is None else torch.frombuffer(bytearray(value), dtype=torch.uint8)
                for value in values
            ]
        sizes = self._kv.get_into(names, given)
        return [
            location if size == location.numel() * location.element_size() else None
            for location, size in zip(given, sizes.tolist(), strict=True)
        ]

    def set(
        self,
        key: str,
        value: torch.Tensor | None = None,
        target_location: torch.Tensor | None = None,
        target_sizes: object = None,
    ) -> bool:
        """True if the page is in the cache now."""
        page = value if value is not None else target_location
        return self.batch_set([key], [page])

    def batch_set(
        self,
        keys: list[str],
        values: Sequence[torch.Tensor | None] | None = None,
        target_locations: Sequence[torch.Tensor | None] | None = None,
        target_sizes: object = None,
    ) -> bool:
        """True if all are."""
        pages = values if values is not None else target_locations
        if pages is None or any(page is None for page in pages):
            raise Fs3Error(Code.INVALID, "no value to set: a tensor for each key is needed")
        values = [page.contiguous() for page in pages if page is not None]
        return bool(self._kv.put_from(self._keys(str(PoolName.KV), keys), values).all())

    def exists(self, key: str) -> bool:
        """Whether a page is there."""
        return bool(self._kv.exists(self._keys(str(PoolName.KV), [key]))[0])

    def clear(self) -> None:
        """Remove everything in the namespace, of all models and ranks."""
        self._kv.clear()

    def close(self) -> None:
        """Let go of the cluster."""
        self._kv.close()


class _Region:
    """A host pool's memory: views of it that keep it alive."""

    def __init__(self, buffer: object) -> None:
        self.view: memoryview | None = None
        self._base = 0
        if isinstance(buffer, torch.Tensor) and buffer.is_contiguous() and not buffer.is_cuda:
            (self.view,) = parts_of(buffer, writable=True)
            self._base = buffer.data_ptr()

    def parts(self, addresses: Sequence[int], sizes: Sequence[int] | int) -> list[memoryview]:
        """Memory by address and size."""
        lengths = [sizes] * len(addresses) if isinstance(sizes, int) else sizes
        view, base = self.view, self._base
        if view is None or not addresses:
            return [_memory(a, n) for a, n in zip(addresses, lengths, strict=True)]
        end = base + len(view)
        return [
            view[a - base : a - base + n] if base <= a <= end - n else _memory(a, n)
            for a, n in zip(addresses, lengths, strict=True)
        ]


def _memory(address: int, length: int) -> memoryview:
    """Memory that SGLang named by its address, and keeps while a call lasts."""
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")


def _nothing(_done: NDArray[np.bool_]) -> None:
    """The bytes went straight from or to where they belong."""


def _prefix(config: HiCacheStorageConfig, name: str, pool: Any) -> bytes:
    """What all keys of a pool begin with: everything that decides what a page's bytes mean."""
    parts = [
        "sglang",
        config.model_name or "",
        name,
        str(getattr(pool, "layout", "")),
        str(getattr(pool, "dtype", "")),
        f"page{getattr(pool, 'page_size', 1)}",
    ]
    # Mamba's state is split over ranks even where the KV pages are the same on all.
    if not config.is_mla_model or name == str(PoolName.MAMBA):
        parts.append(f"tp{config.tp_rank}of{config.tp_size}")
    if config.pp_size > 1:
        parts.append(f"pp{config.pp_rank}of{config.pp_size}")
    if config.attn_cp_size > 1:
        parts.append(f"cp{config.attn_cp_rank}of{config.attn_cp_size}")
    if config.dcp_size > 1:
        parts.append(f"dcp{config.dcp_rank}of{config.dcp_size}of{config.logical_page_size}")
    return "|".join(part.replace("|", "/") for part in parts).encode() + b"|"


def _wanted(transfer: PoolTransfer, keys: list[str]) -> list[str]:
    if transfer.hit_policy is PoolHitPolicy.BLOCK_GROUPS:
        return transfer.keys or []
    return keys


def _leading(present: NDArray[np.bool_]) -> int:
    """How many are True before the first that is not."""
    gaps = np.flatnonzero(~present)
    return int(gaps[0]) if len(gaps) else len(present)


def _usable(transfer: PoolTransfer, present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The prefix lengths, ascending, that a pool allows, of pages that are there or not."""
    lengths: NDArray[np.int64] = np.arange(1, len(present) + 1)
    if transfer.hit_policy is PoolHitPolicy.ALL_PAGES:
        return lengths[: _leading(present)]
    window = max(1, len(transfer.keys or ()))
    # The last ``window`` pages of the prefix must be there, or all of a shorter one.
    missing = np.concatenate(([0], np.cumsum(~present)))
    first = np.maximum(lengths - window, 0)
    usable: NDArray[np.int64] = lengths[missing[lengths] == missing[first]]
    return usable
