"""Neighbours that do not reach each other: what the manager makes of what nodes say in heartbeats.

The rules are in core/reach.py and test_reach.py; here is that leases, chains and status follow.
"""

from __future__ import annotations

import pytest
from test_manager import ALL_SERVE, SURE_END_MS, Cluster

from fs3.core.reach import RETURN_MS
from fs3.core.types import NodeId


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    for node in made.targets:
        made.register(node)
    made.manager.create_chains(3, 1)
    made.pass_ms(RETURN_MS)
    made.beat_all()
    return made


def tell(cluster: Cluster, span_ms: int, unreachable: dict[int, list[int]]) -> None:
    """Time passes, and heartbeats say whom nodes do not reach."""
    end_ms = cluster.clock.now_ms + span_ms
    while cluster.clock.now_ms < end_ms:
        cluster.clock.now_ms += 500
        for node in cluster.targets:
            cluster.beat(node, unreachable=unreachable.get(node, ()))
        cluster.manager.tick()


def test_no_lease_is_granted_from_the_decision_on_and_the_chain_changes_when_the_last_one_is_over(
    cluster: Cluster,
) -> None:
    cluster.beat(1, unreachable=[2])
    assert cluster.beat(3).leases
    assert not cluster.beat(2).leases  # it is heard, so what node 1 says counts
    assert cluster.beat(1, unreachable=[2]).leases
    decided_ms = cluster.clock.now_ms
    while cluster.clock.now_ms < decided_ms + SURE_END_MS - 1:
        assert cluster.states() == ALL_SERVE
        cluster.clock.now_ms = min(cluster.clock.now_ms + 400, decided_ms + SURE_END_MS - 1)
        cluster.beat(1, unreachable=[2])
        assert not cluster.beat(2).leases
        cluster.beat(3)
    assert cluster.states() == ALL_SERVE
    cluster.clock.now_ms += 1
    cluster.manager.tick()
    assert cluster.states() == "11:SERVING 31:SERVING 21:OFFLINE"


def test_it_comes_back_behind_the_tail_and_the_cut_may_stay(cluster: Cluster) -> None:
    cut = {1: [2], 2: [1]}
    tell(cluster, 2 * SURE_END_MS, cut)
    assert cluster.states() == "11:SERVING 31:SERVING 21:SYNCING"
    assert cluster.beat(2, unreachable=[1]).leases


@pytest.mark.parametrize("said", [{1: [2]}, {2: [1]}])
def test_a_cut_in_one_direction_is_one(cluster: Cluster, said: dict[int, list[int]]) -> None:
    tell(cluster, 2 * SURE_END_MS, said)
    assert cluster.states() == "11:SERVING 31:SERVING 21:SYNCING"


def test_a_node_that_died_is_taken_out_and_none_of_those_who_miss_it(cluster: Cluster) -> None:
    """The head: its successor and the tail say that they do not reach it."""
    for _ in range(20):
        cluster.clock.now_ms += 500
        for node in (2, 3):
            assert cluster.beat(node, unreachable=[1]).leases
        cluster.manager.tick()
    assert cluster.states() == "21:SERVING 31:SERVING 11:OFFLINE"


def test_a_manager_that_has_just_started_takes_nobody_out_whom_others_have_yet_to_find(
    cluster: Cluster,
) -> None:
    """Node 2 came back just before; its neighbour's link to it still waits to be tried again."""
    cluster.start_manager()
    tell(cluster, RETURN_MS - 500, {1: [2]})
    assert cluster.states() == ALL_SERVE
    assert cluster.beat(2).leases
    tell(cluster, 2 * SURE_END_MS, {1: [2]})
    assert cluster.states() == "11:SERVING 31:SERVING 21:SYNCING"


def test_what_was_held_back_goes_on_when_nobody_complains_any_more(cluster: Cluster) -> None:
    tell(cluster, 4 * SURE_END_MS, {1: [2, 3], 2: [3]})
    assert cluster.states() == "11:SERVING 21:WAITING 31:WAITING"
    tell(cluster, 1000, {})
    assert cluster.states() == "11:SERVING 21:SYNCING 31:WAITING"


def test_status_says_who_reaches_whom_not(cluster: Cluster) -> None:
    cluster.beat(1, unreachable=[3, 2])
    said = {status.node.node: status.unreachable for status in cluster.manager.status()}
    assert said == {NodeId(1): (NodeId(3), NodeId(2)), NodeId(2): (), NodeId(3): ()}
