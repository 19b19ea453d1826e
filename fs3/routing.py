"""The routing table: who is where. An immutable snapshot, replaced whole at every update.

The manager makes new snapshots and sends what changed (:func:`fs3.wire.encode_update`); everybody
else applies updates. A reader takes the current snapshot once and works on it: nothing in it moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from fs3.core.kv import KvNamespace, NamespaceId
from fs3.core.types import Chain, ChainId, NodeId, TargetId
from fs3.errors import Code, Fs3Error

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaEndpoint:
    """One address of one RDMA port of a node."""

    gid: bytes  # 16 bytes
    lid: int  # of InfiniBand
    mtu_bytes: int
    infiniband: bool  # else Ethernet
    roce_v2: bool  # on Ethernet; else v1
    name: str  # device:port, for people
    iwarp: bool = False  # on Ethernet; the GID stands for an IP address then


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A process that serves targets."""

    node: NodeId
    host: str  # replicas of a chain are kept on different hosts
    data_address: str  # host:port of the frame port
    control_address: str  # host:port of gRPC
    incarnation: int  # drawn anew at each start
    alive: bool
    rdma: tuple[RdmaEndpoint, ...] = ()  # where queue pairs may lead to
    local_address: str = ""  # unix:... for clients on the same machine; empty: none
    boot_id: str = ""  # names that machine, as long as it runs


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """A directory on a disk."""

    target: TargetId
    node: NodeId
    chain: ChainId = ChainId(0)  # noqa: RUF009 - an int; 0: in none


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTable:
    """The chains that files and KV values of one kind are spread over."""

    table: int
    version: int
    chains: tuple[ChainId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingDelta:
    """What to put and what to drop to come from one version to another.

    ``from_version`` 0: from nothing; whatever was known before is forgotten.
    """

    from_version: int
    version: int
    nodes: tuple[NodeInfo, ...] = ()
    targets: tuple[TargetInfo, ...] = ()
    chains: tuple[Chain, ...] = ()
    tables: tuple[ChainTable, ...] = ()
    removed_nodes: tuple[NodeId, ...] = ()
    removed_targets: tuple[TargetId, ...] = ()
    removed_chains: tuple[ChainId, ...] = ()
    namespaces: tuple[KvNamespace, ...] = ()
    removed_namespaces: tuple[NamespaceId, ...] = ()
    namespaces_end: int = 0


def _nothing() -> MappingProxyType[_Key, _Value]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """One version of the table. ``Routing()`` knows nothing and has version 0."""

    version: int = 0
    nodes: Mapping[NodeId, NodeInfo] = field(default_factory=_nothing)
    targets: Mapping[TargetId, TargetInfo] = field(default_factory=_nothing)
    chains: Mapping[ChainId, Chain] = field(default_factory=_nothing)
    tables: Mapping[int, ChainTable] = field(default_factory=_nothing)
    namespaces: Mapping[NamespaceId, KvNamespace] = field(default_factory=_nothing)
    namespaces_end: int = 0  # one that is not listed is gone if it is below, else not known yet

    def apply(self, update: RoutingDelta) -> Routing:
        """The snapshot after ``update``; ``self`` if that is not newer.

        Fs3Error STALE_CHAIN if the update starts from another version than this: the holder must
        ask for everything again.
        """
        if update.version <= self.version and update.from_version:
            return self
        if update.from_version not in (0, self.version):
            raise Fs3Error(
                Code.STALE_CHAIN,
                f"routing update from version {update.from_version} to {update.version} does not"
                f" fit version {self.version}; ask for a full snapshot",
            )
        base = self if update.from_version else Routing()
        return replace(
            base,
            version=update.version,
            nodes=_merged(base.nodes, {n.node: n for n in update.nodes}, update.removed_nodes),
            targets=_merged(
                base.targets, {t.target: t for t in update.targets}, update.removed_targets
            ),
            chains=_merged(base.chains, {c.chain: c for c in update.chains}, update.removed_chains),
            tables=_merged(base.tables, {t.table: t for t in update.tables}, ()),
            namespaces=_merged(
                base.namespaces,
                {n.namespace: n for n in update.namespaces},
                update.removed_namespaces,
            ),
            namespaces_end=max(base.namespaces_end, update.namespaces_end),
        )

    def address_of(self, target: TargetId) -> str:
        """Where data requests for ``target`` go: ``host:port``.

        Fs3Error NOT_SERVING if the target or its node is not known here.
        """
        info = self.targets.get(target)
        node = self.nodes.get(info.node) if info else None
        if node is None:
            raise Fs3Error(
                Code.NOT_SERVING, f"target {target} is not in routing version {self.version}"
            )
        return node.data_address

    def chain(self, chain: ChainId) -> Chain:
        """The chain, or Fs3Error STALE_CHAIN if it is not known here."""
        found = self.chains.get(chain)
        if found is None:
            raise Fs3Error(
                Code.STALE_CHAIN, f"chain {chain} is not in routing version {self.version}"
            )
        return found


def _merged(
    old: Mapping[_Key, _Value], put: Mapping[_Key, _Value], removed: tuple[_Key, ...]
) -> Mapping[_Key, _Value]:
    if not put and not removed:
        return old
    new = {**old, **put}
    for key in removed:
        new.pop(key, None)
    return MappingProxyType(new)


def difference(old: Routing | None, new: Routing) -> RoutingDelta:
    """The update that makes ``new`` of ``old``; a full one when ``old`` is None or empty.

    A table that is gone can only be said by a full one.
    """
    if old is None or old.version == 0 or old.tables.keys() - new.tables.keys():
        old = Routing()
    return RoutingDelta(
        from_version=old.version,
        version=new.version,
        nodes=_changed(old.nodes, new.nodes),
        targets=_changed(old.targets, new.targets),
        chains=_changed(old.chains, new.chains),
        tables=_changed(old.tables, new.tables),
        removed_nodes=_gone(old.nodes, new.nodes),
        removed_targets=_gone(old.targets, new.targets),
        removed_chains=_gone(old.chains, new.chains),
        namespaces=_changed(old.namespaces, new.namespaces),
        removed_namespaces=_gone(old.namespaces, new.namespaces),
        namespaces_end=new.namespaces_end,
    )


def _changed(old: Mapping[_Key, _Value], new: Mapping[_Key, _Value]) -> tuple[_Value, ...]:
    return tuple(value for key, value in new.items() if old.get(key) != value)


def _gone(old: Mapping[_Key, _Value], new: Mapping[_Key, _Value]) -> tuple[_Key, ...]:
    return tuple(key for key in old if key not in new)
