"""Namespaces of the KV cache: made, changed and dropped while everything runs.

They are part of the routing table: whoever puts or evicts knows them from there, and a value costs
no call here. An id is never given out again, so that what is left of a namespace that was dropped
can be told from the values of every later one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fs3.core.kv import NAMESPACE_FIRST, VALUE_BYTES_MAX, KvNamespace, NamespaceId
from fs3.errors import Code, Fs3Error
from fs3.proto import cluster_pb2 as pb
from fs3.routing import ChainTable, Routing

from .manager import Manager
from .manager_store import ClusterState

NAME_BYTES_MAX = 128
NAMESPACES_MAX = 10_000


class Namespaces:
    """Any thread may call."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def create(self, asked: pb.KvNamespace) -> KvNamespace:
        """A new one, durable when this returns.

        Fs3Error EXISTS for a name that is taken, INVALID for limits that make no sense, NOT_READY
        if there are no chains with the wanted number of replicas.
        """
        _check_name(asked.name)

        def change(routing: Routing) -> KvNamespace:
            if _named(routing, asked.name) is not None:
                raise Fs3Error(Code.EXISTS, f"there is a KV namespace {asked.name!r} already")
            if len(routing.namespaces) >= NAMESPACES_MAX:
                detail = f"there are {NAMESPACES_MAX} KV namespaces, which is the most allowed"
                raise Fs3Error(Code.NO_SPACE, detail)
            table = _table(routing, asked.table, asked.replicas or 1)
            return _checked(
                KvNamespace(
                    namespace=NamespaceId(max(routing.namespaces_end, NAMESPACE_FIRST)),
                    name=asked.name,
                    table=table.table,
                    chains=table.chains,
                    replicas=asked.replicas or 1,
                    capacity_bytes=asked.capacity_bytes,
                    ttl_s=asked.ttl_s,
                    value_bytes_max=asked.value_bytes_max or VALUE_BYTES_MAX,
                    uid=asked.uid,
                    gid=asked.gid,
                )
            )

        return self._put(change)

    def set(self, name: str, said: Mapping[str, int]) -> KvNamespace:
        """Change its limits. Fs3Error NOT_FOUND, INVALID."""

        def change(routing: Routing) -> KvNamespace:
            values = dict(said)
            if values.get("value_bytes_max") == 0:
                values["value_bytes_max"] = VALUE_BYTES_MAX
            return _checked(replace(_existing(routing, name), **values))  # type: ignore[arg-type]

        return self._put(change)

    def drop(self, name: str) -> None:
        """Forget it: nobody finds its values any more, and storageservers remove them."""

        def change(state: ClusterState, _: object) -> ClusterState:
            gone = _existing(state.routing, name).namespace
            left = {k: v for k, v in state.routing.namespaces.items() if k != gone}
            return state._replace(routing=replace(state.routing, namespaces=left))

        self._manager.order(change)

    def _put(self, change: Callable[[Routing], KvNamespace]) -> KvNamespace:
        made: list[KvNamespace] = []

        def put(state: ClusterState, _: object) -> ClusterState:
            namespace = change(state.routing)
            made.append(namespace)
            routing = replace(
                state.routing,
                namespaces={**state.routing.namespaces, namespace.namespace: namespace},
                namespaces_end=max(state.routing.namespaces_end, namespace.namespace + 1),
            )
            return state._replace(routing=routing)

        self._manager.order(put)
        return made[-1]


def _named(routing: Routing, name: str) -> KvNamespace | None:
    return next((n for n in routing.namespaces.values() if n.name == name), None)


def _existing(routing: Routing, name: str) -> KvNamespace:
    found = _named(routing, name)
    if found is None:
        known = ", ".join(sorted(n.name for n in routing.namespaces.values())) or "none"
        raise Fs3Error(Code.NOT_FOUND, f"no KV namespace {name!r}; there are: {known}")
    return found


def _check_name(name: str) -> None:
    if not name or len(name.encode()) > NAME_BYTES_MAX or not name.isprintable():
        allowed = f"1 to {NAME_BYTES_MAX} bytes of printable text are allowed"
        raise Fs3Error(Code.INVALID, f"KV namespace {name[:NAME_BYTES_MAX]!r}: {allowed}")


def _checked(namespace: KvNamespace) -> KvNamespace:
    if not 0 < namespace.value_bytes_max <= VALUE_BYTES_MAX:
        detail = f"values of at most {namespace.value_bytes_max} bytes"
        raise Fs3Error(Code.INVALID, f"{detail}: 1 to {VALUE_BYTES_MAX} are allowed")
    return namespace


def _table(routing: Routing, wanted: int, replicas: int) -> ChainTable:
    """The table to take, or the first whose chains have so many replicas."""
    found: dict[int, set[int]] = {
        table.table: {len(routing.chains[c].replicas) for c in table.chains}
        for table in routing.tables.values()
        if table.chains
    }
    if wanted and wanted not in found:
        known = ", ".join(map(str, sorted(found))) or "none"
        raise Fs3Error(
            Code.NOT_READY, f"chain table {wanted} has no chains; those that have: {known}"
        )
    for number in (wanted,) if wanted else sorted(found):
        if found[number] == {replicas}:
            return routing.tables[number]
    have = "; ".join(
        f"table {t}: {', '.join(map(str, sorted(n)))}" for t, n in sorted(found.items())
    )
    raise Fs3Error(
        Code.NOT_READY,
        f"no chain table whose chains have {replicas} replicas (there are: {have or 'none'});"
        " make one of free targets, or ask for another number of replicas",
    )
