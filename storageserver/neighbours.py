"""Links to the storageservers that hold the chains' other replicas: one per address.

Messages of a turn leave together: one PEER frame per neighbour, or a few if they are large. Copies
for a syncing target, which nobody waits for, leave behind them, and not many in a frame: a
neighbour handles a frame when it has all of it, and looks at its other connections between two.
What a broken link loses the cores send again, when told that it is up (``PeerUp``) or when time is
up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from fs3 import dataplane
from fs3.core.messages import Forward, Message
from fs3.core.types import TargetId
from fs3.log import get_logger
from fs3.reactor import Reactor
from fs3.routing import NodeInfo
from fs3.transport.rdma.choosing import Rdma
from fs3.transport.rdma.peer import RdmaPeer
from fs3.transport.tcp import FramePeer, open_frame_peer

from . import peerwire
from .jobs import Payload

_FRAME_BYTES = 8 << 20  # a frame is closed when its payload has reached this
_COPIES_BYTES = 1 << 20  # or this, if it brings copies
_FRAME_HEAD_BYTES = 1 << 20
_log = get_logger(__name__)


class _Frame:
    """A PEER frame in the making; ``full`` with so many bytes of payload."""

    def __init__(self, full_bytes: int) -> None:
        self._full_bytes = full_bytes
        self.head = bytearray()
        self.payloads: list[Payload] = []
        self.body_bytes = 0

    def add(self, record: bytes, payload: Payload | None) -> None:
        self.head += record
        if payload is not None and len(payload.view):
            self.payloads.append(payload)
            self.body_bytes += len(payload.view)

    @property
    def full(self) -> bool:
        return self.body_bytes >= self._full_bytes or len(self.head) >= _FRAME_HEAD_BYTES


class Neighbours:
    """Used in the reactor's thread only."""

    def __init__(
        self,
        reactor: Reactor,
        cluster_id: str,
        on_up: Callable[[frozenset[TargetId]], None],
        rdma: Rdma | None = None,
    ) -> None:
        """``rdma``: payload goes that way to nodes that it reaches."""
        self._reactor = reactor
        self._rdma = rdma
        self._cluster_id = cluster_id
        self._on_up = on_up
        self._address_of: Mapping[TargetId, str] = {}
        self._nodes: Mapping[str, NodeInfo] = {}  # by address
        self._links: dict[str, FramePeer | RdmaPeer] = {}
        self._frames: dict[str, list[_Frame]] = {}
        self._copies: dict[str, list[_Frame]] = {}

    def route(
        self,
        address_of: Mapping[TargetId, str],
        wanted: set[TargetId],
        nodes: Iterable[NodeInfo] = (),
    ) -> None:
        """Where targets are now; links to the ``wanted`` ones are opened, others closed.

        ``nodes``: what else is known of those at the addresses. When one has come back a target
        there may soon be brought up to date, and updates wait for it then: so a link to it that is
        down does not wait to be tried.
        """
        before, self._nodes = self._nodes, {node.data_address: node for node in nodes}
        known = self._nodes
        self._address_of = address_of
        addresses = {address_of[target] for target in wanted if target in address_of}
        for address in self._links.keys() - addresses:
            self._links.pop(address).close()
        for address, link in self._links.items():
            if address in known and _came_back(before.get(address), known[address]):
                link.hurry()
        for address in addresses - self._links.keys():
            self._links[address] = self._open(address, known.get(address))

    def _open(self, address: str, node: NodeInfo | None) -> FramePeer | RdmaPeer:
        def on_state(up: bool) -> None:
            self._on_state(address, up)

        if self._rdma is not None and node is not None and node.rdma:
            return RdmaPeer(self._reactor, node, self._cluster_id, on_state, self._rdma)
        return open_frame_peer(self._reactor, address, self._cluster_id, on_state)

    def address_of(self, target: TargetId) -> str | None:
        """The data port of the node that has ``target``, if routing knows it."""
        return self._address_of.get(target)

    def probe(self, address: str, head: bytes) -> None:
        """A PROBE frame, if there is a link."""
        if address in self._links:
            self._links[address].send(dataplane.PROBE, head)

    def renew(self, address: str, older_than_s: float) -> None:
        """Nothing comes back from there: make the link anew, unless that was just done."""
        if address in self._links:
            self._links[address].renew(older_than_s)

    def _on_state(self, address: str, up: bool) -> None:
        if up:
            there = frozenset(t for t, where in self._address_of.items() if where == address)
            self._on_up(there)

    def send(self, message: Message, payload: Payload | None) -> None:
        """With the next flush. Without a link it is dropped: the core sends it again."""
        address = self._address_of.get(message.route.destination)
        if address is None or address not in self._links:
            return
        copy = isinstance(message, Forward) and message.copy
        of_address, full_bytes = (
            (self._copies, _COPIES_BYTES) if copy else (self._frames, _FRAME_BYTES)
        )
        frames = of_address.setdefault(address, [])
        if not frames or frames[-1].full:
            frames.append(_Frame(full_bytes))
        frames[-1].add(peerwire.encode(message), payload)

    def flush(self) -> None:
        """Everything sent so far leaves."""
        if not self._frames and not self._copies:
            return
        waiting = [*self._frames.items(), *self._copies.items()]
        self._frames, self._copies = {}, {}
        for address, frames in waiting:
            link = self._links.get(address)
            for frame in frames if link is not None else ():
                assert link is not None
                keep = frame.payloads  # the closure holds the buffers until they are sent
                link.send(
                    dataplane.PEER,
                    bytes(frame.head),
                    [payload.view for payload in keep],
                    keep.clear,
                )

    def close(self) -> None:
        """Drop every link."""
        for link in self._links.values():
            link.close()
        self._links.clear()


def _came_back(before: NodeInfo | None, now: NodeInfo) -> bool:
    was_there = before is not None and before.alive and before.incarnation == now.incarnation
    return now.alive and not was_there
