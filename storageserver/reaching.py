"""Whom this node reaches: probes to the nodes that share a chain with it, and answers to theirs.

A probe and its answer each travel on the asking side's own link, the way that forwards and
acknowledgements take. Both are a PROBE frame, one way, with ``PROBE`` as its head.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from fs3.clock import Clock
from fs3.core.reach import Prober
from fs3.core.types import NodeId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.transport.tcp import Caller, Request

from .neighbours import Neighbours

PROBE = struct.Struct("<BxxxIQ")  # question or answer, the sender's node, when it was asked (ms)
_QUESTION, _ANSWER = 1, 2
_log = get_logger(__name__)


class Reaching:
    """Used in the reactor's thread only."""

    def __init__(
        self,
        node: NodeId,
        bound_ms: int,
        neighbours: Neighbours,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._prober = Prober(bound_ms)
        self._neighbours = neighbours
        self._clock = clock
        self._on_change = on_change
        self._address_of: Mapping[NodeId, str] = {}

    @property
    def unreachable(self) -> list[NodeId]:
        """Who has not answered for too long."""
        return sorted(self._prober.unreachable)

    def route(self, address_of: Mapping[NodeId, str]) -> None:
        """The nodes that share a chain with this one, and where they are."""
        self._address_of = {n: where for n, where in address_of.items() if n != self._node}

    def tick(self) -> None:
        """Every few tens of milliseconds."""
        before, now_ms = self._prober.unreachable, self._clock.monotonic_ms()
        for node in self._prober.tick(self._address_of, now_ms):
            self._send(node, _QUESTION, now_ms)
        for node in self._prober.unreachable:
            # A connection that has lost packets for long sends them again ever more seldom.
            self._neighbours.renew(self._address_of[node], self._prober.bound_ms / 1000)
        if self._prober.unreachable != before:
            _log.warning("unreachable_nodes", nodes=self.unreachable)
            self._on_change()

    def _send(self, node: NodeId, kind: int, asked_ms: int) -> None:
        address = self._address_of.get(node)
        if address is not None:
            self._neighbours.probe(address, PROBE.pack(kind, self._node, asked_ms))

    def on_frame(self, connection: Caller, request: Request) -> None:
        """A probe or an answer has come."""
        try:
            kind, node, asked_ms = _decode(request)
        except Fs3Error as error:
            connection.fail(request, error)
            return
        if kind == _QUESTION:
            self._send(node, _ANSWER, asked_ms)
        else:
            self._prober.answered(node, asked_ms, self._clock.monotonic_ms())


def _decode(request: Request) -> tuple[int, NodeId, int]:
    if len(request.head) != PROBE.size or request.body is not None:
        what = f"a PROBE of {len(request.head)} bytes"
        raise Fs3Error(Code.PROTOCOL, f"{what}: {PROBE.size} without a body are allowed")
    kind, node, asked_ms = PROBE.unpack(request.head)
    if kind not in (_QUESTION, _ANSWER):
        raise Fs3Error(Code.PROTOCOL, f"a PROBE of kind {kind}: 1 and 2 are allowed")
    return kind, NodeId(node), asked_ms
