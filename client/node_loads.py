"""What a client has outstanding at each storageserver, and how fast each answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from fs3.core.pace import Pace
from fs3.core.request import NEAR_BYTES_MAX, Send
from fs3.core.types import Chain, ChainId, NodeId
from fs3.routing import NodeInfo, Routing
from fs3.transport.local import is_here

_REQUEST_BYTES = 64 << 10  # what one more request of a slow node is reckoned to cost


class NearNodes:
    """Which storageservers are on this machine; told quickly for routing that was asked before."""

    def __init__(self) -> None:
        self._last: tuple[Mapping[NodeId, NodeInfo], frozenset[NodeId]] = ({}, frozenset())

    def nodes(self, routing: Routing) -> frozenset[NodeId]:
        known, near = self._last
        if known is not routing.nodes:
            near = frozenset(n.node for n in routing.nodes.values() if is_here(n))
            self._last = routing.nodes, near
        return near


class NodeLoads:
    """Shared by all threads of a client."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # see ChunkBuffers
        self._bytes: dict[NodeId, int] = {}
        self._serving: dict[ChainId, tuple[Chain, tuple[NodeId, ...]]] = {}
        self._turn = 0
        self._near = NearNodes()
        self.pace = Pace()

    @property
    def by_node(self) -> Mapping[NodeId, int]:
        """Bytes, as of now, those of slow nodes counted for more; it may change meanwhile."""
        return self.pace.weighed(self._bytes, _REQUEST_BYTES, time.monotonic() * 1000)

    @property
    def outstanding(self) -> Mapping[NodeId, int]:
        """Bytes, as of now."""
        return self._bytes

    def add(self, send: Send, sign: int) -> None:
        """``sign``: 1 when it leaves, -1 when it has ended."""
        with self._lock:
            self._bytes[send.node] = self._bytes.get(send.node, 0) + sign * (send.bytes + 1)

    def answered(self, send: Send, taken_s: float) -> None:
        """A read came back."""
        with self._lock:
            self.pace.answered(send.node, send.bytes, taken_s * 1000, time.monotonic() * 1000)

    def near(self, routing: Routing) -> frozenset[NodeId]:
        """Storageservers on this machine."""
        return self._near.nodes(routing)

    def node_for(self, chain: Chain, near: frozenset[NodeId]) -> NodeId | None:
        """Who to ask for one piece of ``chain``: the least loaded, in turn; None: nobody serves.

        Those that are ``near`` come first.
        """
        found = self._serving.get(chain.chain)
        if found is None or found[0] is not chain:
            found = self._serving[chain.chain] = (chain, tuple(r.node for r in chain.serving))
        nodes = found[1]
        if not nodes:
            return None
        loads = self.by_node
        if near:
            close = tuple(n for n in nodes if n in near and loads.get(n, 0) <= NEAR_BYTES_MAX)
            nodes = close or nodes
        self._turn = turn = (self._turn + 1) % len(nodes)
        return min(nodes[turn:] + nodes[:turn], key=lambda node: loads.get(node, 0))
