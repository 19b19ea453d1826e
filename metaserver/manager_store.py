"""What the manager keeps in the metadata engine: nodes, targets, chains, tables, jobs, the version.

One row a record, so that a change writes only what changed. A value is a version byte and a message
of proto/cluster.proto, whose fields are never renumbered: a newer release reads old rows for ever,
and an older one skips what it does not know. Leases, heartbeats and local states are not kept: a
manager that starts waits one lease instead.

``save`` is a compare-and-set on the routing version: a second manager on the same engine, should
there ever be one, is refused and does not mix its chains with ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from fs3 import wire
from fs3.core.types import TargetId
from fs3.errors import Code, Fs3Error
from fs3.jobs import Job
from fs3.proto import cluster_pb2
from fs3.routing import Routing

from . import keys
from .kv.interface import Engine, Transaction

_FORMAT = b"\x01"
_PAGE = 1000  # rows read at a time
_Message = TypeVar("_Message", bound=Message)


class ClusterState(NamedTuple):
    """Everything that is kept. ``held``: targets an operator or a job takes out, and why."""

    routing: Routing
    held: Mapping[TargetId, str]
    jobs: Mapping[int, Job] = MappingProxyType({})


class ClusterStore:
    """The manager's rows. One thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self) -> ClusterState:
        """What was saved last; version 0 in a new cluster."""
        return self._engine.run(_load)

    def save(self, old: ClusterState, new: ClusterState) -> None:
        """Make ``new``, which came of ``old``, durable. Returns when it is.

        Fs3Error NOT_MANAGER if the rows do not stand at ``old``: somebody else manages too.
        """
        self._engine.run(_save, old, new)


def _load(txn: Transaction) -> ClusterState:
    message = cluster_pb2.RoutingUpdate(
        version=_version(txn),
        nodes=_messages(txn, keys.NODE, cluster_pb2.Node),
        targets=_messages(txn, keys.TARGET, cluster_pb2.Target),
        chains=_messages(txn, keys.CHAIN, cluster_pb2.ChainRecord),
        tables=_messages(txn, keys.CHAIN_TABLE, cluster_pb2.ChainTable),
        namespaces=_messages(txn, keys.KV_NAMESPACE, cluster_pb2.KvNamespace),
        namespaces_end=_number(txn, keys.NAMESPACES_END),
    )
    held = {
        TargetId(int.from_bytes(key[len(keys.HELD_TARGET) :], "big")): value[1:].decode()
        for key, value in _rows(txn, keys.HELD_TARGET)
    }
    jobs = map(wire.decode_job, _messages(txn, keys.JOB, cluster_pb2.Job))
    routing = Routing().apply(wire.decode_update(message))
    return ClusterState(routing, held, {job.number: job for job in jobs})


def _messages(txn: Transaction, prefix: bytes, kind: type[_Message]) -> Iterator[_Message]:
    return (_decode(kind, value, prefix) for _, value in _rows(txn, prefix))


def _rows(txn: Transaction, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    begin, end = prefix, keys.prefix_end(prefix)
    while page := txn.range(begin, end, _PAGE):
        yield from page
        begin = page[-1][0] + b"\0"


def _version(txn: Transaction) -> int:
    return _number(txn, keys.ROUTING_VERSION)


def _number(txn: Transaction, key: bytes) -> int:
    value = txn.get(key)
    return int.from_bytes(value[1:], "big") if value else 0


def _decode(kind: type[_Message], value: bytes, prefix: bytes) -> _Message:
    if value[:1] != _FORMAT:
        raise Fs3Error(
            Code.UNSUPPORTED,
            f"a {prefix!r} row of format {value[:1]!r}; this release reads {_FORMAT!r}:"
            " a newer release wrote it",
        )
    try:
        return kind.FromString(value[1:])
    except DecodeError as error:
        raise Fs3Error(Code.CORRUPT, f"a {prefix!r} row that is no {kind.__name__}") from error


def _save(txn: Transaction, old: ClusterState, new: ClusterState) -> None:
    found = _version(txn)
    if found != old.routing.version:
        raise Fs3Error(
            Code.NOT_MANAGER,
            f"the stored routing version is {found}, not {old.routing.version}:"
            " another manager works on this metadata",
        )
    message = wire.encode_update(old.routing, new.routing)
    for prefix, rows, key_of in (
        (keys.NODE, message.nodes, "node"),
        (keys.TARGET, message.targets, "target"),
        (keys.CHAIN, message.chains, "chain"),
        (keys.CHAIN_TABLE, message.tables, "table"),
    ):
        for row in rows:
            txn.set(_key(prefix, getattr(row, key_of)), _FORMAT + row.SerializeToString())
    for prefix, gone in (
        (keys.NODE, message.removed_nodes),
        (keys.TARGET, message.removed_targets),
        (keys.CHAIN, message.removed_chains),
        (keys.HELD_TARGET, old.held.keys() - new.held.keys()),
        (keys.JOB, old.jobs.keys() - new.jobs.keys()),
    ):
        for number in sorted(gone):
            txn.clear(_key(prefix, number))
    _save_namespaces(txn, message, old.routing.namespaces_end)
    for target, reason in new.held.items():
        if old.held.get(target) != reason:
            txn.set(_key(keys.HELD_TARGET, target), _FORMAT + reason.encode())
    for number, job in new.jobs.items():
        if old.jobs.get(number) != job:
            message_of_job = wire.encode_job(job)
            txn.set(_key(keys.JOB, number), _FORMAT + message_of_job.SerializeToString())
    txn.set(keys.ROUTING_VERSION, _FORMAT + new.routing.version.to_bytes(8, "big"))


def _save_namespaces(txn: Transaction, message: cluster_pb2.RoutingUpdate, old_end: int) -> None:
    for namespace in message.namespaces:
        key = keys.of(keys.KV_NAMESPACE, namespace.namespace)
        txn.set(key, _FORMAT + namespace.SerializeToString())
    for gone_namespace in message.removed_namespaces:
        txn.clear(keys.of(keys.KV_NAMESPACE, gone_namespace))
    if message.namespaces_end != old_end:
        txn.set(keys.NAMESPACES_END, _FORMAT + message.namespaces_end.to_bytes(8, "big"))


def _key(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(4, "big")
