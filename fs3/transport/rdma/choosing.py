"""Whether a node is reached by RDMA, and by which ports: the transport as clients choose it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.routing import NodeInfo, RdmaEndpoint
from fs3.transport.interface import Place
from fs3.transport.rdma import discovery
from fs3.transport.rdma.client import PERMITTED_BYTES, RdmaConnection
from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.inventory import choose
from fs3.transport.rdma.ports import OpenPort, open_ports

_REFUSED_S = 60.0  # before a node that refused is asked again
_log = get_logger(__name__)


class Rdma:
    """The transport for nodes that announce RDMA endpoints: a :class:`Transport`.

    FS3_RDMA in the environment: ``off``, or what shall be used, separated by commas: devices,
    ports, interfaces or networks (:func:`inventory.usable`); unset: whatever is found.
    """

    name = "rdma"

    def __init__(self, wanted: Sequence[str] | None = None) -> None:
        """``wanted`` instead of what the environment says."""
        self._wanted = wanted
        self._lock = threading.Lock()
        # By node and incarnation: the pair that leads there; None: nothing does.
        self._ways: dict[tuple[int, int], tuple[OpenPort, RdmaEndpoint] | None] = {}
        self._refused: dict[tuple[int, int], float] = {}  # until when
        self._pid = os.getpid()
        self._threads = threading.local()

    def reaches(self, node: NodeInfo) -> bool:
        """See :class:`Transport`."""
        if not node.rdma:
            return False
        if self._refused.get((node.node, node.incarnation), 0.0) > time.monotonic():
            return False
        return self.way(node) is not None

    def connect(self, node: NodeInfo, cluster_id: str, place: Place) -> RdmaConnection:
        """See :class:`Transport`."""
        way = self.way(node)
        if way is None:
            raise Fs3Error(Code.UNREACHABLE, f"node {node.node} is not reached by RDMA")
        opened, endpoint = way

        def refused(_reason: str) -> None:
            self._refused[node.node, node.incarnation] = time.monotonic() + _REFUSED_S

        try:
            return RdmaConnection(
                node.data_address,
                cluster_id,
                place,
                opened,
                endpoint,
                permits=self._permits(),
                on_refused=refused,
            )
        except Fs3Error as error:
            raise Fs3Error(Code.UNREACHABLE, error.detail) from error

    def way(self, node: NodeInfo) -> tuple[OpenPort, RdmaEndpoint] | None:
        """The port here and the endpoint there that lead to a node; None if nothing does."""
        key = node.node, node.incarnation
        with self._lock:
            if self._pid != os.getpid():  # a forked child opens its own devices
                self._pid = os.getpid()
                self._ways.clear()
            if key not in self._ways:
                self._ways[key] = self._find_way(node)
            return self._ways[key]

    def _find_way(self, node: NodeInfo) -> tuple[OpenPort, RdmaEndpoint] | None:
        said = os.environ.get("FS3_RDMA", "")
        if said == "off" and self._wanted is None:
            return None
        names = [name.strip() for name in said.split(",") if name.strip()]
        ports, problem = open_ports(names if self._wanted is None else self._wanted)
        if not ports:
            _log.info("rdma_not_used", node=node.node, reason=problem)
            return None
        try:
            port, endpoint = choose([one.port for one in ports], node.rdma, discovery.route)
        except Fs3Error as error:
            _log.info("rdma_not_used", node=node.node, reason=error.detail)
            return None
        return next(one for one in ports if one.port == port), endpoint

    def _permits(self) -> Permits:
        """Those of this thread, over all its connections."""
        permits: Permits | None = getattr(self._threads, "permits", None)
        if permits is None:
            permits = self._threads.permits = Permits(PERMITTED_BYTES)
        return permits
