"""The published routing table: what has left the manager, and who waits for the next.

Only durable versions are published. A reader takes the current snapshot without a lock, so an
event loop may. The last few snapshots are kept, so that a watcher that is a little behind gets a
delta; one that is further behind, or ahead (the metadata was restored), gets everything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from fs3 import wire
from fs3.proto import cluster_pb2
from fs3.routing import Routing


class RoutingFeed:
    """Published snapshots. One publisher, any number of readers."""

    def __init__(self, routing: Routing, history: int) -> None:
        self._changed = threading.Condition()
        self._history = history
        self._snapshots: OrderedDict[int, Routing] = OrderedDict({routing.version: routing})
        self._closed = False
        # Updates to the current version, by where they start from: many ask for the same.
        self._encoded: dict[int, cluster_pb2.RoutingUpdate] = {}
        self.current = routing

    def publish(self, routing: Routing) -> None:
        """Make ``routing`` current and wake everybody who waits."""
        with self._changed:
            self._snapshots[routing.version] = routing
            self.current = routing
            self._encoded = {}
            while len(self._snapshots) > self._history:
                self._snapshots.popitem(last=False)
            self._changed.notify_all()

    def update_since(self, known_version: int) -> cluster_pb2.RoutingUpdate:
        """From ``known_version`` to the current one; an empty delta when that is the same.

        To be read only: others get the same message.
        """
        encoded = self._encoded  # before self.current, lest an old update gets into the new dict
        known = self._snapshots.get(known_version)
        start = known.version if known is not None else 0
        update = encoded.get(start)
        if update is None:
            update = encoded[start] = wire.encode_update(known, self.current)
        return update

    def wait(self, known_version: int, timeout_s: float) -> bool:
        """True as soon as the current version is another one; False after the time-out."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self.current.version != known_version, timeout_s
            )
            return not self._closed and self.current.version != known_version

    @property
    def closed(self) -> bool:
        """True once the process drains: nothing will change any more."""
        return self._closed

    def close(self) -> None:
        """Send every waiting watcher home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
