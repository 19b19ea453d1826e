"""Namespaces of the KV cache as messages and back. See wire.py, which is the same for the rest."""

from __future__ import annotations

from fs3.core.kv import NAMESPACE_FIRST, KvNamespace, NamespaceId
from fs3.core.types import ChainId
from fs3.errors import Code, Fs3Error
from fs3.proto import cluster_pb2


def encode_namespace(namespace: KvNamespace) -> cluster_pb2.KvNamespace:
    """See the module."""
    return cluster_pb2.KvNamespace(
        namespace=namespace.namespace,
        name=namespace.name,
        table=namespace.table,
        chains=namespace.chains,
        replicas=namespace.replicas,
        capacity_bytes=namespace.capacity_bytes,
        ttl_s=namespace.ttl_s,
        value_bytes_max=namespace.value_bytes_max,
        uid=namespace.uid,
        gid=namespace.gid,
    )


def decode_namespace(message: cluster_pb2.KvNamespace) -> KvNamespace:
    """See the module."""
    if message.namespace < NAMESPACE_FIRST:
        what = f"namespace {message.name!r} has id {message.namespace}"
        raise Fs3Error(Code.INVALID, f"{what}; {NAMESPACE_FIRST} or more is allowed")
    if not message.chains:
        raise Fs3Error(Code.INVALID, f"namespace {message.name!r} has no chains")
    return KvNamespace(
        namespace=NamespaceId(message.namespace),
        name=message.name,
        table=message.table,
        chains=tuple(map(ChainId, message.chains)),
        replicas=message.replicas,
        capacity_bytes=message.capacity_bytes,
        ttl_s=message.ttl_s,
        value_bytes_max=message.value_bytes_max,
        uid=message.uid,
        gid=message.gid,
    )
