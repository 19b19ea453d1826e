"""Asking the heads of chains to trim chunks, and which chunk is the last.

Whom to ask follows from the routing table that this process publishes itself, so a call that meets
a stale chain or a dead node waits for the next version and asks again, until its deadline. Both
calls may be repeated: trimming what is trimmed changes nothing.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fs3.core.types import Chain, ChainId, InodeId
from fs3.errors import Code, Fs3Error, Retry
from fs3.proto import storage_pb2
from fs3.routing import Routing
from fs3.rpc import FrameChannel, Stub
from fs3.types import Inode

from .manager_feed import RoutingFeed

CALL_TIMEOUT_S = 10.0
ITEMS_MAX = 1000  # files in one call
_PAUSE_S_MIN, _PAUSE_S_MAX = 0.01, 0.5
_AGAIN = (Retry.PAUSE, Retry.REFRESH, Retry.SAME_REQUEST)


class TrimItem(NamedTuple):
    """Of ``owner``: drop chunks from ``keep_slots`` on; cut ``cut`` = (slot, length in bytes)."""

    owner: InodeId
    keep_slots: int = 0
    cut: tuple[int, int] | None = None


class ChunkControl:
    """Calls to storageservers. Any thread may call; each has its own connections."""

    def __init__(
        self, feed: RoutingFeed, cluster_id: str, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._feed = feed
        self._cluster_id = cluster_id
        self._monotonic_s = monotonic_s
        self._client_id = secrets.randbits(63) | 1
        self._lock = threading.Lock()  # guards _channels and _stubs
        self._channels: dict[str, FrameChannel] = {}
        self._stubs: dict[str, Stub] = {}

    def trim(
        self, chain: ChainId, items: Sequence[TrimItem], chunks_max: int, wait_s: float
    ) -> int:
        """Trim until nothing is left; how many chunks were removed.

        Raises what the last attempt failed with once ``wait_s`` have passed; 0: tried once.
        """
        removed = 0
        deadline_s = self._monotonic_s() + wait_s
        for first in range(0, len(items), ITEMS_MAX):
            messages = [_encode(item) for item in items[first : first + ITEMS_MAX]]
            more = True
            while more:
                request = storage_pb2.TrimChunksRequest(items=messages, limit=chunks_max)
                reply = self._ask("trim_chunks", chain, request, deadline_s)
                removed += reply.removed
                more = reply.more
        return removed

    def written_length(self, inode: Inode, wait_s: float) -> int:
        """The length of a file by what is stored of it: the end of its last chunk."""
        deadline_s = self._monotonic_s() + wait_s
        length_bytes = 0
        for chain in dict.fromkeys(inode.layout.chains):
            request = storage_pb2.LastChunkRequest(owner=inode.inode)
            reply = self._ask("last_chunk", chain, request, deadline_s)
            if reply.found:
                end = reply.slot * inode.layout.chunk_bytes + reply.length_bytes
                length_bytes = max(length_bytes, end)
        return length_bytes

    def close(self) -> None:
        """Calls in progress fail."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
            self._stubs.clear()

    def _ask(
        self,
        method: str,
        chain_id: ChainId,
        request: storage_pb2.TrimChunksRequest | storage_pb2.LastChunkRequest,
        deadline_s: float,
    ) -> Any:  # noqa: ANN401 - the method's reply message
        """The answer of the chain's head, as soon as it has one."""
        pause_s = _PAUSE_S_MIN
        while True:
            routing = self._feed.current
            try:
                chain, stub = self._head(routing, chain_id)
                request.chain, request.chain_version = chain.chain, chain.version
                return getattr(stub, method)(request)
            except Fs3Error as error:
                left_s = deadline_s - self._monotonic_s()
                if error.retry not in _AGAIN or left_s <= 0 or self._feed.closed:
                    raise
            self._feed.wait(routing.version, min(pause_s, left_s))
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def _head(self, routing: Routing, chain_id: ChainId) -> tuple[Chain, Stub]:
        chain = routing.chain(chain_id)
        if not chain.serving:
            raise Fs3Error(Code.NOT_SERVING, f"chain {chain_id}: no target serves")
        return chain, self._stub(routing.address_of(chain.serving[0].target))

    def _stub(self, address: str) -> Stub:
        with self._lock:
            stub = self._stubs.get(address)
            if stub is None:
                self._drop_old_addresses()
                channel = FrameChannel([address], self._cluster_id)
                service = storage_pb2.DESCRIPTOR.services_by_name["StorageControl"]
                stub = Stub(channel, service, self._cluster_id, self._client_id, CALL_TIMEOUT_S)
                self._channels[address], self._stubs[address] = channel, stub
            return stub

    def _drop_old_addresses(self) -> None:
        """A storageserver that started with other ports left its old ones behind."""
        known = {node.data_address for node in self._feed.current.nodes.values()}
        for address in self._channels.keys() - known:
            self._channels.pop(address).close()
            del self._stubs[address]


def _encode(item: TrimItem) -> storage_pb2.TrimItem:
    message = storage_pb2.TrimItem(owner=item.owner, keep_slots=item.keep_slots)
    if item.cut is not None:
        message.cut_slot, message.cut_length_bytes = item.cut
        message.cut = True
    return message
