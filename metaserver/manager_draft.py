"""The next routing table while it is worked out: pure functions of snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from fs3.core.types import Chain, NodeId, TargetId
from fs3.routing import ChainTable, NodeInfo, Routing, RoutingDelta, TargetInfo


def put(
    routing: Routing,
    nodes: Iterable[NodeInfo] = (),
    targets: Iterable[TargetInfo] = (),
    chains: Iterable[Chain] = (),
    tables: Iterable[ChainTable] = (),
) -> Routing:
    """``routing`` with these records; ``routing`` itself if that changes nothing."""
    delta = RoutingDelta(
        from_version=routing.version,
        version=routing.version + 1,
        nodes=tuple(n for n in nodes if routing.nodes.get(n.node) != n),
        targets=tuple(t for t in targets if routing.targets.get(t.target) != t),
        chains=tuple(chains),
        tables=tuple(tables),
    )
    if not (delta.nodes or delta.targets or delta.chains or delta.tables):
        return routing
    return routing.apply(delta)


def targets_of(routing: Routing, node: NodeId) -> list[TargetId]:
    """The targets of ``node``, in chains or not."""
    return [info.target for info in routing.targets.values() if info.node == node]


def describe(chain: Chain) -> dict[str, object]:
    """A chain as log lines show it."""
    states = " ".join(f"{r.target}@{r.node}:{r.state.name}" for r in chain.replicas)
    return {"chain": chain.chain, "version": chain.version, "replicas": states}
