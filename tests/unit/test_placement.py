"""Which targets form a chain: different hosts, even load, and nothing left that could be used."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from fs3.core.chain import violation
from fs3.core.types import Chain, ChainId, NodeId, TargetId
from fs3.metaserver.manager_placement import FreeTarget, place, what_is_missing


def free(per_node: dict[int, int], hosts: dict[int, str] | None = None) -> list[FreeTarget]:
    return [
        FreeTarget(TargetId(100 * node + i), NodeId(node), (hosts or {}).get(node, f"h{node}"))
        for node, count in per_node.items()
        for i in range(1, count + 1)
    ]


def chains_of(per_node: dict[int, int], replicas: int, **more) -> list[Chain]:
    targets = free(per_node, **more)
    hosts = len({t.host for t in targets})
    return place(targets, replicas, hosts, ChainId(1), [])


def test_three_nodes_with_two_targets_make_two_chains_with_different_heads():
    made = chains_of({1: 2, 2: 2, 3: 2}, 3)
    assert [chain.chain for chain in made] == [1, 2]
    assert all(len({r.node for r in chain.replicas}) == 3 for chain in made)
    assert made[0].replicas[0].node != made[1].replicas[0].node


def test_heads_are_spread_evenly():
    made = chains_of({1: 6, 2: 6, 3: 6}, 3)
    assert Counter(chain.replicas[0].node for chain in made) == {1: 2, 2: 2, 3: 2}


def test_chains_of_six_nodes_do_not_all_pair_the_same_nodes():
    made = chains_of(dict.fromkeys(range(1, 7), 5), 3)
    pairs = {
        pair for chain in made for pair in combinations(sorted(r.node for r in chain.replicas), 2)
    }
    assert len(made) == 10
    assert len(pairs) == 15  # every pair of nodes shares a chain: all five help when one dies


def test_uneven_nodes_still_give_as_many_chains_as_possible():
    assert len(chains_of({1: 4, 2: 2, 3: 1, 4: 1}, 2)) == 4


def test_replicas_lie_on_different_hosts_when_there_are_enough():
    hosts = {1: "a", 2: "a", 3: "b", 4: "c"}
    made = chains_of({1: 1, 2: 1, 3: 1, 4: 1}, 3, hosts=hosts)
    assert len(made) == 1
    assert {hosts[r.node] for r in made[0].replicas} == {"a", "b", "c"}


def test_nodes_of_one_host_will_do_when_it_is_the_only_one():
    made = chains_of({1: 1, 2: 1, 3: 1}, 3, hosts=dict.fromkeys((1, 2, 3), "box"))
    assert [r.node for r in made[0].replicas] == [1, 2, 3]


def test_hosts_of_the_whole_cluster_count_not_those_that_are_free():
    """What is left over on one host must not become a chain that dies with it."""
    left = free({1: 1, 2: 1}, hosts={1: "a", 2: "a"})
    assert place(left, 2, 3, ChainId(1), []) == []
    assert "2 replicas need targets on 2 different hosts; 2 targets" in what_is_missing(left, 2, 3)


@given(
    per_node=st.dictionaries(st.integers(1, 8), st.integers(0, 6), min_size=1),
    replicas=st.integers(1, 4),
)
def test_every_chain_is_legal_and_no_further_one_is_possible(per_node, replicas):
    made = chains_of(per_node, replicas)
    used = Counter(r.node for chain in made for r in chain.replicas)
    targets = [r.target for chain in made for r in chain.replicas]
    assert len(targets) == len(set(targets)) == replicas * len(made)
    for chain in made:
        assert violation(chain) is None
        assert len({r.node for r in chain.replicas}) == replicas
    if len([n for n in per_node if per_node[n]]) >= replicas:
        left = [n for n, count in per_node.items() if count > used[n]]
        assert len(left) < replicas
