"""What a mount remembers of the inodes that its kernel holds."""

from __future__ import annotations

import threading
import time

from fs3.core.types import InodeId
from fs3.types import ROOT_INODE, Inode


class Node:
    """One inode that the kernel has a reference on, or has open."""

    __slots__ = ("cached_version", "fetched_s", "inode", "lookups", "no_capability_s")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode  # as the metaserver said last
        self.fetched_s = 0.0  # when; monotonic
        self.lookups = 0
        # The data version that the kernel's pages are of; -1: it has none that may be kept.
        self.cached_version = -1
        self.no_capability_s = 0.0  # when it was last known to have no security.capability


class Nodes:
    """The table of nodes, by inode id. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: dict[InodeId, Node] = {}
        self._names_changed_s = 0.0

    def learn(self, inode: Inode, lookups: int = 0) -> None:
        """What the metaserver just said; the kernel is given ``lookups`` references with it."""
        with self._lock:
            node = self._table.get(inode.inode)
            if node is None:
                if not lookups and inode.inode != ROOT_INODE:
                    return  # the kernel does not hold it, and will not say when it forgets it
                node = self._table[inode.inode] = Node(inode)
            node.inode = inode
            node.fetched_s = time.monotonic()
            node.lookups += lookups

    def find(self, inode: InodeId) -> Node | None:
        """The node, if there is one."""
        return self._table.get(inode)

    def fresh(self, inode: InodeId, age_s: float) -> Inode | None:
        """The attributes, if they are younger than ``age_s`` and than any change of names here."""
        node = self._table.get(inode)
        if node is None:
            return None
        since_s = max(time.monotonic() - age_s, self._names_changed_s)
        return node.inode if node.fetched_s > since_s else None

    def forget(self, inode: InodeId, lookups: int) -> None:
        """The kernel dropped so many references."""
        with self._lock:
            node = self._table.get(inode)
            if node is not None:
                node.lookups -= lookups
                if node.lookups <= 0:
                    del self._table[inode]

    def names_changed(self) -> None:
        """A link count somewhere changed through this mount."""
        self._names_changed_s = time.monotonic()
