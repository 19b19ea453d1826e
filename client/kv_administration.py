"""Namespaces of the KV cache from outside: made, changed, counted, emptied, dropped."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fs3.core.kv import KvNamespace
from fs3.core.types import ChainId
from fs3.errors import Code, Fs3Error
from fs3.proto import cluster_pb2, storage_pb2
from fs3.routing import Routing
from fs3.rpc import FrameChannel, Stub
from fs3.wire_kv import decode_namespace

from .routing import RoutingCache

_STORAGE = storage_pb2.DESCRIPTOR.services_by_name["StorageControl"]
_CALL_S = 15.0
_SUMS = ("values", "used_bytes", "stored", "stored_bytes", "pinned")  # every replica has the same
_EVERYWHERE = (
    *("hits", "misses", "read_bytes", "found", "not_found"),
    *("evicted", "evicted_bytes", "expired", "heard"),  # of each chain's head, at that time
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSettings:
    """What a new namespace is to be like; 0: the default, or no limit."""

    replicas: int = 1
    capacity_bytes: int = 0
    ttl_s: int = 0
    value_bytes_max: int = 0
    table: int = 0
    uid: int = 0
    gid: int = 0


def namespace_named(routing: Routing, name: str) -> KvNamespace | None:
    """The namespace of that name, if routing lists one."""
    return next((n for n in routing.namespaces.values() if n.name == name), None)


def find_namespace(routing: RoutingCache, name: str) -> KvNamespace:
    """The namespace of that name; Fs3Error NOT_FOUND if a metaserver knows none."""
    known = routing.get()
    found = namespace_named(known, name)
    if found is None:
        found = namespace_named(routing.refresh(known), name)
    if found is None:
        hint = f"make it with `fs3 kv create {name}`"
        raise Fs3Error(Code.NOT_FOUND, f"there is no KV namespace {name!r}; {hint}")
    return found


def create_namespace(manager: Stub, name: str, settings: NamespaceSettings) -> KvNamespace:
    """A new one, on stable storage when this returns. Fs3Error EXISTS, INVALID, NOT_READY."""
    asked = cluster_pb2.KvNamespace(
        name=name,
        table=settings.table,
        replicas=settings.replicas,
        capacity_bytes=settings.capacity_bytes,
        ttl_s=settings.ttl_s,
        value_bytes_max=settings.value_bytes_max,
        uid=settings.uid,
        gid=settings.gid,
    )
    reply = manager.create_namespace(cluster_pb2.CreateNamespaceRequest(namespace=asked))
    return decode_namespace(reply)


def set_namespace(manager: Stub, name: str, changes: Mapping[str, int]) -> KvNamespace:
    """Change ``capacity_bytes``, ``ttl_s``, ``value_bytes_max``, ``uid`` or ``gid``."""
    request = cluster_pb2.SetNamespaceRequest(name=name)
    for field, value in changes.items():
        setattr(request, field, value)
    return decode_namespace(manager.set_namespace(request))


def drop_namespace(manager: Stub, name: str) -> None:
    """Forget it; storageservers remove its values by and by. Fs3Error NOT_FOUND."""
    manager.drop_namespace(cluster_pb2.DropNamespaceRequest(name=name))


class StorageNodes:
    """Calls to storageservers by address; a context manager."""

    def __init__(self, cluster_id: str) -> None:
        self._cluster_id = cluster_id
        self._client_id = secrets.randbits(63) | 1
        self._channels: dict[str, FrameChannel] = {}

    def stub(self, address: str) -> Stub:
        """StorageControl of the storageserver at ``address``."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = FrameChannel((address,), self._cluster_id)
        return Stub(channel, _STORAGE, self._cluster_id, self._client_id, _CALL_S)

    def close(self) -> None:
        """Close every connection."""
        for channel in self._channels.values():
            channel.close()


@contextmanager
def storage_nodes(cluster_id: str) -> Iterator[StorageNodes]:
    """Calls to storageservers for a while."""
    with ExitStack() as stack:
        nodes = StorageNodes(cluster_id)
        stack.callback(nodes.close)
        yield nodes


def node_stats(
    routing: Routing, cluster_id: str, namespace: KvNamespace
) -> list[storage_pb2.KvStats]:
    """What each storageserver counts of a namespace, a row per target. Fs3Error if one is away."""
    wanted = {r.node for c in namespace.chains for r in routing.chain(c).replicas}
    rows: list[storage_pb2.KvStats] = []
    with storage_nodes(cluster_id) as nodes:
        for node in sorted(wanted):
            request = storage_pb2.GetKvStatsRequest(namespace=namespace.namespace)
            rows += nodes.stub(routing.nodes[node].data_address).get_kv_stats(request).stats
    return rows


def total(rows: list[storage_pb2.KvStats]) -> dict[str, int]:
    """The sums over all targets, and the greatest ages."""
    found = dict.fromkeys((*_EVERYWHERE, *_SUMS, "oldest_ms", "evicted_age_ms"), 0)
    for row in rows:
        for name in _EVERYWHERE:
            found[name] += getattr(row, name)
        for name in _SUMS:
            found[name] += getattr(row, name) if row.head else 0
        for name in ("oldest_ms", "evicted_age_ms"):
            found[name] = max(found[name], getattr(row, name) if row.head else 0)
    return found


def remove_all(routing: Routing, cluster_id: str, namespace: KvNamespace) -> int:
    """Remove every value, chain by chain, through the heads; how many there were."""
    removed = 0
    with storage_nodes(cluster_id) as nodes:
        for chain in namespace.chains:
            removed += _remove_from(nodes, routing, namespace, chain)
    return removed


def _remove_from(
    nodes: StorageNodes, routing: Routing, namespace: KvNamespace, chain_id: ChainId
) -> int:
    chain = routing.chain(chain_id)
    if not chain.serving:
        raise Fs3Error(Code.NOT_SERVING, f"nobody serves chain {chain_id} at the moment")
    stub = nodes.stub(routing.nodes[chain.serving[0].node].data_address)
    removed = 0
    while True:
        reply = stub.trim_chunks(
            storage_pb2.TrimChunksRequest(
                chain=chain_id,
                chain_version=chain.version,
                items=[storage_pb2.TrimItem(owner=namespace.namespace)],
            )
        )
        removed += int(reply.removed)
        if not reply.more:
            return removed
