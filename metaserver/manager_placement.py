"""Placement: which targets form a chain. A pure function of what is free.

Replicas of one chain lie in different failure domains: on different hosts when the cluster has
enough of them, else at least on different nodes. Each chain takes the domains that have most
targets left, which makes as many chains as can be made; among equals, those that share fewest
chains so far, so that when a node dies many others help to restore its targets. The head of a chain
is the member that is head of the fewest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from fs3.core.chain import new_chain
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    NodeId,
    PublicState,
    Replica,
    TargetId,
)

REPLICAS_MAX = 16


class FreeTarget(NamedTuple):
    """A target that may become part of a chain."""

    target: TargetId
    node: NodeId
    host: str


def place(
    free: Iterable[FreeTarget], replicas: int, hosts: int, first: ChainId, taken: Sequence[Chain]
) -> list[Chain]:
    """As many chains of ``replicas`` targets as can be made, numbered from ``first``.

    ``hosts`` is how many the whole cluster has: it, not what happens to be free, decides whether
    replicas may share one. ``taken`` are the chains that exist, for balance. Deterministic.
    """
    by_domain: dict[str | NodeId, list[FreeTarget]] = {}
    for item in sorted(free):
        domain = item.host if hosts >= replicas else item.node
        by_domain.setdefault(domain, []).append(item)
    together = Counter(pair for chain in taken for pair in _pairs(_nodes(chain)))
    heads = Counter(chain.replicas[0].node for chain in taken if chain.replicas)
    made: list[Chain] = []
    while sum(bool(items) for items in by_domain.values()) >= replicas:
        members = _draw(by_domain, replicas, together)
        members.sort(key=lambda m: (heads[m.node], m))
        heads[members[0].node] += 1
        together.update(_pairs([m.node for m in members]))
        made.append(_chain(ChainId(first + len(made)), members))
    return made


def choose(
    free: Iterable[FreeTarget],
    staying: Sequence[Replica],
    host_of: Mapping[NodeId, str],
    taken: Iterable[Chain],
) -> FreeTarget | None:
    """The best of ``free`` beside the replicas that stay in a chain; None if none may be there.

    Not on a host where a replica stays, if the cluster has enough hosts; never on such a node.
    Among what is allowed, the node that has fewest replicas, so that load spreads.
    """
    nodes = {replica.node for replica in staying}
    hosts = {host_of[node] for node in nodes}
    apart = len(set(host_of.values())) > len(staying)
    load = Counter(replica.node for chain in taken for replica in chain.replicas)
    allowed = [
        item for item in free if item.node not in nodes and not (apart and item.host in hosts)
    ]
    return min(allowed, key=lambda item: (load[item.node], item.target), default=None)


def _draw(
    by_domain: dict[str | NodeId, list[FreeTarget]],
    replicas: int,
    together: Counter[tuple[NodeId, NodeId]],
) -> list[FreeTarget]:
    """One target out of each of ``replicas`` domains."""
    members: list[FreeTarget] = []
    open_domains = [domain for domain, items in by_domain.items() if items]
    for _ in range(replicas):
        best = min(
            open_domains,
            key=lambda domain: (
                -len(by_domain[domain]),
                sum(together[_pair(m.node, by_domain[domain][0].node)] for m in members),
                by_domain[domain][0],
            ),
        )
        open_domains.remove(best)
        members.append(_take(by_domain[best]))
    return members


def _take(items: list[FreeTarget]) -> FreeTarget:
    """The first target of the node that has most left in this domain."""
    left = Counter(item.node for item in items)
    chosen = min(items, key=lambda item: (-left[item.node], item))
    items.remove(chosen)
    return chosen


def _pair(a: NodeId, b: NodeId) -> tuple[NodeId, NodeId]:
    return (a, b) if a <= b else (b, a)


def _pairs(nodes: Iterable[NodeId]) -> list[tuple[NodeId, NodeId]]:
    return list(combinations(sorted(nodes), 2))


def _nodes(chain: Chain) -> list[NodeId]:
    return [replica.node for replica in chain.replicas]


def _chain(chain: ChainId, members: Sequence[FreeTarget]) -> Chain:
    replicas = tuple(Replica(m.target, m.node, PublicState.OFFLINE) for m in members)
    preferred = tuple(m.target for m in members)
    return new_chain(Chain(chain, ChainVersion(0), replicas, preferred))


def what_is_missing(free: Sequence[FreeTarget], replicas: int, hosts: int) -> str:
    """Why :func:`place` made nothing, for whoever asked."""
    on_hosts = hosts >= replicas
    where: Callable[[FreeTarget], object] = (lambda f: f.host) if on_hosts else (lambda f: f.node)
    found = len({where(item) for item in free})
    return (
        f"{replicas} replicas need targets on {replicas} different"
        f" {'hosts' if on_hosts else 'nodes'}; {len(free)} targets that are open, empty and in no"
        f" chain were found on {found}"
    )
