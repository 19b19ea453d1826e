"""The KV cache of inference nodes: :class:`KVCache`, and :class:`AsyncKVCache` for asyncio.

    cache = fs3.KVCache("./fs3-data", "llama-70b")
    present = cache.match(keys)                        # the longest prefix that is there
    sizes = cache.get_into(keys[:present], pages)      # straight into your own memory
    cache.put_from(keys[present:], new_pages)

A value is found without asking anybody: its chunk and its chain follow from the key's digest
(fs3/core/kv.py). So every call is one round trip to each storageserver that holds some of its keys,
in requests of a few MiB that do not wait for each other, and no metaserver is on the way.

A value is stored whole or not at all, never changes, and the first to store it wins. It may be gone
at any time: it is a cache. Every failure is a miss of the keys it concerns, within the deadline; an
exception is raised for misuse alone (a read-only buffer, a key that is too long).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.core import kv
from fs3.core.chunks import UpdateKind
from fs3.core.request import Codes, Limits
from fs3.errors import Code, Fs3Error, Retry
from fs3.log import get_logger
from fs3.routing import Routing

from .channels import UpdateChannels
from .kv_administration import find_namespace, node_stats, remove_all, total
from .kv_buffers import Parts, Registered, lengths_of, parts_of
from .kv_jobs import Gets, Items, Job, Lookups, Updates
from .kvdata import KvData

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from .api import Client

__all__ = ["AsyncKVCache", "KVCache"]

DEADLINE_S = 2.0
PIN_S = 60
CLEAR_PATIENCE_S = 10.0  # with chains that change
_CLEAR_PAUSE_S = 0.2
_SIZE_HINT = 64 << 10
_ATTEMPTS_ALONE = 2  # at a value with one replica, once more after looking who has it
_ATTEMPTS = 0  # where others may take over: until the deadline
_T = TypeVar("_T")
_log = get_logger(__name__)

Keys = Sequence[bytes]


class KVCache:
    """One namespace. Any thread may call; each has its own connections. Survives ``fork()``."""

    def __init__(
        self,
        client: Client | str | os.PathLike[str] | Sequence[str],
        namespace: str,
        *,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """``client``: a client, or what :func:`fs3.connect` takes.

        ``deadline_s``: no call takes longer; what is not there by then is a miss. Fs3Error
        NOT_FOUND for a namespace that does not exist (``fs3 kv create`` makes one), UNREACHABLE.
        """
        from .api import Client, connect  # loads much

        self._own = None if isinstance(client, Client) else connect(client)
        self._context = (self._own or client).context  # type: ignore[union-attr]
        self._deadline_ms = int(deadline_s * 1000)
        try:
            found = find_namespace(self._context.routing, namespace)
        except BaseException:
            self.close()
            raise
        self._namespace = found
        self._data = KvData(self._context.routing, self._context.cluster_id)
        self._channels = UpdateChannels()
        self._registered = Registered()
        self._pid = os.getpid()
        self._size_hint = min(_SIZE_HINT, found.value_bytes_max)

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what this object opened; idempotent."""
        if hasattr(self, "_data"):
            self._data.close()
        if self._own is not None:
            self._own.close()

    @property
    def namespace(self) -> kv.KvNamespace:
        """The namespace as it was last heard of."""
        known = self._context.routing.current.namespaces
        return known.get(self._namespace.namespace, self._namespace)

    def use_transports(self, names: Sequence[str]) -> None:
        """Go by these alone ("tcp", "local", "rdma"), to measure them; by default the best."""
        self._data.use(names)

    # -- is it there? ----------------------------------------------------------------------------

    def exists(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of ``keys`` have a value (False too where nobody answered)."""
        if not len(keys):
            return np.zeros(0, np.bool_)
        return _ok(self._run(Lookups(self._items(keys))))

    def match(self, keys: Keys) -> int:
        """How many of the first keys have a value: the longest prefix that is there."""
        missing = np.flatnonzero(~self.exists(keys))
        return int(missing[0]) if len(missing) else len(keys)

    # -- get -------------------------------------------------------------------------------------

    def get_into(self, keys: Keys, buffers: Sequence[Any]) -> NDArray[np.int64]:
        """Read values into ``buffers``; returns the size of each in bytes, -1 for a miss.

        A buffer is anything with the buffer protocol, a torch CPU tensor, or a list of these, which
        are filled one behind the other. It must hold the whole value, or that is a miss; what is
        behind a shorter value stays as it was. After a miss a buffer's content means nothing.
        """
        if len(keys) != len(buffers):
            raise Fs3Error(Code.INVALID, f"{len(buffers)} buffers for {len(keys)} keys")
        if not len(keys):
            return np.zeros(0, np.int64)
        return self._get(
            keys,
            [parts_of(buffer, writable=True, registered=self._registered) for buffer in buffers],
        )[0]

    def get(self, keys: Keys) -> list[bytes | None]:
        """The values, None for a miss.

        :meth:`get_into` is faster: it copies nothing. Values are expected to be about as long as
        those seen before; one that is longer takes a second round trip.
        """
        found: list[bytes | None] = [None] * len(keys)
        rooms = {index: self._size_hint for index in range(len(keys))}
        left_ms = self._deadline_ms
        end_s = time.monotonic() + left_ms / 1000
        while rooms:
            indexes = list(rooms)
            buffers = [memoryview(bytearray(rooms[index])) for index in indexes]
            chosen = [keys[i] for i in indexes]
            sizes, needed = self._get(chosen, [[b] for b in buffers], left_ms)
            for index, buffer, size in zip(indexes, buffers, sizes.tolist(), strict=True):
                if size >= 0:
                    found[index] = bytes(buffer[:size])
            rooms = {i: n for i, n in zip(indexes, needed.tolist(), strict=True) if n > rooms[i]}
            self._size_hint = max([self._size_hint, *rooms.values()])
            left_ms = int((end_s - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
        return found

    def _get(
        self, keys: Keys, buffers: list[Parts], deadline_ms: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        job = Gets(self._items(keys), keys, buffers)
        self._run(job, deadline_ms)
        return job.sizes, job.needed

    # -- put -------------------------------------------------------------------------------------

    def put_from(self, keys: Keys, buffers: Sequence[Any]) -> NDArray[np.bool_]:
        """Store values; True where the key has one now, this one or an earlier one.

        Buffers as in :meth:`get_into`; the parts of one become one value. Not fsynced: a value
        survives the death of any process, not a power cut. False: it is too long for the namespace,
        or nobody could store it in time.
        """
        if len(keys) != len(buffers):
            raise Fs3Error(Code.INVALID, f"{len(buffers)} values for {len(keys)} keys")
        if not len(keys):
            return np.zeros(0, np.bool_)
        values = [
            parts_of(buffer, writable=False, registered=self._registered) for buffer in buffers
        ]
        lengths = lengths_of(values)
        longest = self.namespace.value_bytes_max
        if max(lengths) <= longest:
            return self._put(keys, values, lengths)
        _log.warning("value_too_long", longest_bytes=max(lengths), allowed_bytes=longest)
        stored = np.zeros(len(keys), np.bool_)
        fit = [i for i, length in enumerate(lengths) if length <= longest]
        if fit:
            chosen = [values[i] for i in fit]
            stored[fit] = self._put([keys[i] for i in fit], chosen, [lengths[i] for i in fit])
        return stored

    def put(self, keys: Keys, values: Sequence[Any]) -> NDArray[np.bool_]:
        """:meth:`put_from` under the name that goes with :meth:`get`."""
        return self.put_from(keys, values)

    def _put(self, keys: Keys, values: list[Parts], lengths: list[int]) -> NDArray[np.bool_]:
        bodies: list[Parts] = [
            [memoryview(kv.header(key, length)), *parts]
            for key, parts, length in zip(keys, values, lengths, strict=True)
        ]
        return self._update(UpdateKind.CREATE, keys, bodies)

    def remove(self, keys: Keys) -> NDArray[np.bool_]:
        """Remove values; True where there is none now."""
        if not len(keys):
            return np.zeros(0, np.bool_)
        return self._update(UpdateKind.REMOVE, keys, [])

    def _update(self, kind: UpdateKind, keys: Keys, bodies: list[Parts]) -> NDArray[np.bool_]:
        if self._pid != os.getpid():
            self._channels, self._pid = UpdateChannels(), os.getpid()
        own = self._channels  # of two threads in a forked child each may have made some
        done = np.zeros(len(keys), np.bool_)
        end_s = time.monotonic() + self._deadline_ms / 1000
        for start in range(0, len(keys), dataplane.BATCH_ITEMS_MAX):
            part = slice(start, start + dataplane.BATCH_ITEMS_MAX)
            items = self._write_items(keys[part], bodies[part])
            items["kind"] = kind
            try:
                left_s = max(end_s - time.monotonic(), 0.0)
                channels, items["sequence"] = own.take(len(items), left_s)
            except Fs3Error as error:
                _log.warning("kv_update_failed", error=str(error))
                return done
            try:
                items["channel"] = channels
                job = Updates(items, bodies[part], own.client)
                left_ms = int((end_s - time.monotonic()) * 1000)
                done[part] = _ok(self._run(job, max(left_ms, 0)))
            finally:
                own.give(channels)
        return done

    def _write_items(self, keys: Keys, bodies: list[Parts]) -> Items:
        items = np.zeros(len(keys), dataplane.WRITE_ITEM)
        items["chunk"], items["chain"] = self._places(keys)
        if bodies:
            items["length"] = lengths_of(bodies)
        return items

    # -- keep and clear --------------------------------------------------------------------------

    def pin(self, keys: Keys, seconds: int = PIN_S) -> NDArray[np.bool_]:
        """Keep values from eviction for ``seconds``; True where there is one, pinned now.

        Pin again to keep it longer. A pin is in the memory of the head of the value's chain: it
        ends with that process.
        """
        return self._pin(keys, max(1, seconds))

    def unpin(self, keys: Keys) -> NDArray[np.bool_]:
        """Let values go again; True where there is one."""
        return self._pin(keys, 0)

    def _pin(self, keys: Keys, seconds: int) -> NDArray[np.bool_]:
        if not len(keys):
            return np.zeros(0, np.bool_)
        items = self._items(keys)
        items["length"] = seconds
        return _ok(self._run(Lookups(items, dataplane.PIN)))

    def clear(self) -> int:
        """Remove every value of the namespace; how many there were. May take a while.

        Fs3Error if a storageserver cannot be asked.
        """
        deadline_s = time.monotonic() + CLEAR_PATIENCE_S
        while True:
            try:
                return remove_all(self._fresh_routing(), self._context.cluster_id, self._namespace)
            except Fs3Error as error:
                # A chain that has just changed is found again under its newer version.
                if error.retry is not Retry.REFRESH or time.monotonic() > deadline_s:
                    raise
            time.sleep(_CLEAR_PAUSE_S)

    def register(self, buffer: Any) -> None:  # noqa: ANN401 - any buffer
        """Announce memory that values will be read into or put from, over and over.

        A NIC registers an array or a mapping with the first transfer, whole and once, as long as it
        lives; a torch tensor, and any part of it, as one once it is announced here, and it is kept
        alive until this object goes. Local transfers and TCP need to know nothing beforehand.
        """
        self._registered.add(buffer)

    def stat(self) -> Mapping[str, int]:
        """Counts of the namespace over all storageservers; Fs3Error if one cannot be asked."""
        return total(node_stats(self._fresh_routing(), self._context.cluster_id, self._namespace))

    def _fresh_routing(self) -> Routing:
        return self._context.routing.refresh(self._context.routing.get())

    # -- all of them -----------------------------------------------------------------------------

    def _places(self, keys: Keys) -> tuple[NDArray[Any], NDArray[np.uint32]]:
        longest = max(map(len, keys))
        if longest > kv.KEY_BYTES_MAX:
            detail = f"a key of {longest} bytes; 0 to {kv.KEY_BYTES_MAX} are allowed"
            raise Fs3Error(Code.INVALID, detail)
        return kv.slots_and_chains(self._namespace, keys)

    def _items(self, keys: Keys) -> Items:
        items = np.zeros(len(keys), dataplane.READ_ITEM)
        items["chunk"], items["chain"] = self._places(keys)
        return items

    def _run(self, job: Job, deadline_ms: int | None = None) -> Codes:
        replicas = self._namespace.replicas
        deadline_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        limits = Limits(
            deadline_ms=deadline_ms,
            request_ms=max(1, deadline_ms // replicas),
            attempts_max=_ATTEMPTS if replicas > 1 else _ATTEMPTS_ALONE,
        )
        try:
            return self._data.run(job, limits)
        except OSError as error:  # Fs3Error is one; so is having no descriptor left
            _log.warning("kv_call_failed", error=str(error))
            return np.full(len(job.items), Code.UNREACHABLE, np.uint32)


def _ok(codes: Codes) -> NDArray[np.bool_]:
    return np.equal(codes, Code.OK)


class AsyncKVCache:
    """The same calls as coroutines; they run on a few threads of the object's own."""

    def __init__(
        self,
        client: Client | str | os.PathLike[str] | Sequence[str],
        namespace: str,
        *,
        deadline_s: float = DEADLINE_S,
        threads: int = 4,
    ) -> None:
        """As :class:`KVCache`; connecting blocks, once."""
        from concurrent.futures import ThreadPoolExecutor

        self.sync = KVCache(client, namespace, deadline_s=deadline_s)
        self._threads: ThreadPoolExecutor = ThreadPoolExecutor(threads, "fs3-kv")

    async def __aenter__(self) -> AsyncKVCache:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: Callable[..., _T], *arguments: Any) -> _T:  # noqa: ANN401
        import asyncio

        loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, method, *arguments)

    async def close(self) -> None:
        """See :meth:`KVCache.close`; so for all."""
        await self._call(self.sync.close)
        self._threads.shutdown(wait=False)

    async def exists(self, keys: Keys) -> NDArray[np.bool_]:
        return await self._call(self.sync.exists, keys)

    async def match(self, keys: Keys) -> int:
        return await self._call(self.sync.match, keys)

    async def get_into(self, keys: Keys, buffers: Sequence[Any]) -> NDArray[np.int64]:
        return await self._call(self.sync.get_into, keys, buffers)

    async def get(self, keys: Keys) -> list[bytes | None]:
        return await self._call(self.sync.get, keys)

    async def put_from(self, keys: Keys, buffers: Sequence[Any]) -> NDArray[np.bool_]:
        return await self._call(self.sync.put_from, keys, buffers)

    async def put(self, keys: Keys, values: Sequence[Any]) -> NDArray[np.bool_]:
        return await self._call(self.sync.put, keys, values)

    async def remove(self, keys: Keys) -> NDArray[np.bool_]:
        return await self._call(self.sync.remove, keys)

    async def pin(self, keys: Keys, seconds: int = PIN_S) -> NDArray[np.bool_]:
        return await self._call(self.sync.pin, keys, seconds)

    async def unpin(self, keys: Keys) -> NDArray[np.bool_]:
        return await self._call(self.sync.unpin, keys)

    async def clear(self) -> int:
        return await self._call(self.sync.clear)

    async def register(self, buffer: Any) -> None:  # noqa: ANN401
        await self._call(self.sync.register, buffer)

    async def stat(self) -> Mapping[str, int]:
        return await self._call(self.sync.stat)
