"""The client's copy of the routing table: fetched on demand, fetched anew when found stale.

Nothing is pushed to a client: a storageserver that is asked with an old chain version says so, and
the batch that was told asks for a refresh. Of many threads that are told at once, one asks the
metaserver; the others wait for what it brings, if only an error (single flight).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fs3.core.types import ChainId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.proto import cluster_pb2
from fs3.routing import Routing
from fs3.rpc import Stub
from fs3.wire import decode_update

_REFRESH_TIMEOUT_S = 2.0
_PAUSE_S = 0.1
_PASSING = frozenset((Code.UNREACHABLE, Code.MAYBE_APPLIED, Code.BUSY, Code.NOT_READY))
_log = get_logger(__name__)


class RoutingCache:
    """Any thread may ask. ``reset`` only while no other thread does."""

    def __init__(self, manager: Stub) -> None:
        self.reset(manager)

    def reset(self, manager: Stub) -> None:
        """Forget everything, and ask ``manager`` from now on (after a fork)."""
        self._manager = manager
        self._asking = threading.RLock()  # held by the one thread that asks; see ChunkBuffers
        self._refreshed_s = 0.0  # when the last attempt ended, well or not
        self._routing = Routing()

    @property
    def current(self) -> Routing:
        """The routing as last heard; version 0 if nothing was heard yet."""
        return self._routing

    def get(self, wait_s: float = 0.0) -> Routing:
        """The routing as last heard; asks the metaserver only the first time.

        Fs3Error UNREACHABLE or MAYBE_APPLIED if it does not answer within ``wait_s``.
        """
        if self._routing.version == 0:
            with self._asking:
                if self._routing.version == 0:
                    self._fetch_first(time.monotonic() + wait_s)
        return self._routing

    def _fetch_first(self, deadline_s: float) -> None:
        while True:
            try:
                return self._fetch()
            except Fs3Error as error:
                if error.code not in _PASSING or time.monotonic() >= deadline_s:
                    raise
            time.sleep(_PAUSE_S)

    def refresh(self, stale: Routing) -> Routing:
        """A routing newer than ``stale`` if there is one and it can be had, else the same.

        A metaserver that is away does not fail a batch: chains that still stand serve on.
        """
        began_s = time.monotonic()
        with self._asking:
            if self._routing is stale and self._refreshed_s < began_s:
                try:
                    self._fetch()
                except Fs3Error as error:
                    _log.info("routing_refresh_failed", error=str(error))
                self._refreshed_s = time.monotonic()
        return self._routing

    def _fetch(self) -> None:
        request = cluster_pb2.GetRoutingRequest(known_version=self._routing.version)
        update = decode_update(self._manager.get_routing(request, timeout_s=_REFRESH_TIMEOUT_S))
        try:
            self._routing = self._routing.apply(update)
        except Fs3Error as error:
            if error.code is not Code.STALE_CHAIN:
                raise
            whole = cluster_pb2.GetRoutingRequest(known_version=0)
            update = decode_update(self._manager.get_routing(whole, timeout_s=_REFRESH_TIMEOUT_S))
            self._routing = Routing().apply(update)


def versions_in(routing: Routing) -> Callable[[int], int]:
    """At which version a chain is asked; 0, which none has, for one that is not known."""

    def version(chain: int) -> int:
        known = routing.chains.get(ChainId(chain))
        return known.version if known is not None else 0

    return version
