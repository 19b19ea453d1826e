"""What must hold, seen from outside the code under test, at every step and at the end.

* Who shows data is serving in the manager's newest chain: nobody is passed by a newer version of
  his chain while he still answers. This is what leases are for.
* Who acknowledges a write has it on everybody who serves in the manager's newest chain, staged or
  committed: so it is not lost as long as one of them is there.
* Who commits an update does it after everybody behind him: at that moment all later serving
  replicas of the chain, as he knows it, have the same version with the same content.
* Nobody fails, unless the disk was full.
* At the end, faults over: every replica serves, all copies are equal, nothing is pending. As long
  as nodes cannot reach each other: who serves can be written to, and who does not serve cannot
  reach the tail.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from fs3.core.chunks import Tag
from fs3.core.types import Chain, PublicState, Replica, TargetId

from .manager import Manager, describe
from .swarm import Settings
from .world import Violation


class Cluster(Protocol):
    """What a checker looks at."""

    nodes: dict[int, Any]
    manager: Manager


class Checker:
    """Watches one world."""

    def __init__(
        self, cluster: Cluster, settings: Settings, rift: Collection[tuple[str, str]]
    ) -> None:
        """``rift``: pairs of places that cannot reach each other now, in one direction."""
        self._cluster = cluster
        self._settings = settings
        self._rift = rift

    def shows(self, number: int, chunk: bytes | None, value: bytes | None) -> None:
        """A node answers a read with data."""
        place = self._cluster.manager.chain.replica(TargetId(number))
        if place is None or place.state is not PublicState.SERVING:
            now = describe(self._cluster.manager.chain)
            raise Violation(f"node {number} shows {value!r} of {chunk!r}, but: {now}")

    def committed(self, number: int, chunk: bytes, chain_version: int) -> None:
        """A node's store has committed what its core decided on in ``chain_version``."""
        mine = self._copy(number, chunk)
        core = self._cluster.nodes[number].core
        if core.chain.version != chain_version:
            return
        targets = [replica.target for replica in core.chain.serving]
        if TargetId(number) not in targets:
            return
        place = targets.index(TargetId(number))
        for at, target in enumerate(targets):
            other = self._cluster.nodes[int(target)]
            if other.core is None or other.core.chain.version != core.chain.version:
                continue
            theirs = self._copy(int(target), chunk)
            if theirs != mine and at > place:
                raise Violation(
                    f"node {number} has committed {mine} before node {target}, which has {theirs}"
                )
            if theirs != mine and theirs[0] == mine[0]:
                raise Violation(
                    f"two values of one version: {mine} on node {number}, {theirs} on {target}"
                )

    def acknowledged(self, number: int, chunk: bytes, tag: Tag) -> None:
        """A head tells a client that its write is done: nobody who serves may have missed it."""
        chain = self._cluster.manager.chain
        for replica in chain.serving:
            store = self._cluster.nodes[int(replica.target)].disk.store
            record = store.channel(tag.client, tag.channel)
            if record is None or record.sequence < tag.sequence:
                raise Violation(
                    f"node {number} acknowledges {tag} of {chunk!r}, but node {replica.target} has"
                    f" {record}: {describe(chain)}"
                )

    def _copy(self, number: int, chunk: bytes) -> tuple[int, bytes | None]:
        disk = self._cluster.nodes[number].disk
        meta = disk.store.meta(chunk)
        return (meta.version if meta is not None else 0), disk.read(chunk)

    def failed(self, number: int, reason: str) -> None:
        """A target took itself out."""
        if not (self._settings.full_disks and "NO_SPACE" in reason):
            raise Violation(f"node {number} failed: {reason}")

    def _may_be(self, chain: Chain, replica: Replica) -> bool:
        """At the end everybody serves, but who cannot reach the tail that it would sync from."""
        names = f"node {chain.serving[-1].node}", f"node {replica.node}"
        parted = names in self._rift or names[::-1] in self._rift
        allowed = (PublicState.SERVING, PublicState.WAITING) if parted else (PublicState.SERVING,)
        return replica.state in allowed

    def problem(self) -> str | None:
        """What is not yet as it must be at the end."""
        chain = self._cluster.manager.chain
        if not chain.serving or any(not self._may_be(chain, r) for r in chain.replicas):
            return f"not everybody serves: {describe(chain)}"
        copies = {}
        for replica in chain.serving:
            node = self._cluster.nodes[int(replica.target)]
            if node.core is None or node.core.chain.version != chain.version:
                return f"node {replica.target} does not know chain {chain.version}"
            if node.core.lanes:
                return f"node {replica.target} still works on {list(node.core.lanes.values())}"
            if not node.core.serves(node.clock_ms()):
                return f"node {replica.target} does not serve"
            copies[replica.target] = [
                (chunk, meta.version, meta.length, meta.checksum, meta.pending_version)
                for chunk, meta in node.disk.store.scan(None, 1000)
            ]
        first = copies[chain.replicas[0].target]
        for target, rows in copies.items():
            if rows != first:
                return f"copies differ: node {target} has {rows}, not {first}"
            if any(row[4] for row in rows):
                return f"node {target} has something pending: {rows}"
        return None
