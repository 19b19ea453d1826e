"""Daemons die, hang and lose each other while clients work; histories and files are judged."""

from __future__ import annotations

import os
import signal

import pytest

from .networked_cluster import NetworkedCluster, wait_for, wait_until_out
from .work import Work

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]


def wait_until_changed(cluster: NetworkedCluster, version: int) -> None:
    """Until routing is newer than ``version``."""

    def complaint() -> str | None:
        return None if cluster.status().routing_version > version else "no chain has changed"

    wait_for(complaint)


def test_every_daemon_is_killed_in_turn(cluster: NetworkedCluster, work: Work) -> None:
    with work.going_on():
        for daemon in cluster.daemons:
            cluster.kill(daemon)
            if daemon != "metaserver":
                wait_until_out(cluster, daemon)
                work.progress(50)
            cluster.start(daemon)
            work.progress(50)
            cluster.wait_healthy()


def test_storageservers_stop_for_longer_than_their_leases(
    cluster: NetworkedCluster, work: Work
) -> None:
    with work.going_on():
        for node in cluster.nodes:
            cluster.signal(node, signal.SIGSTOP)
            wait_until_out(cluster, node)
            work.progress(50)
            cluster.signal(node, signal.SIGCONT)
            work.progress(50)
            cluster.wait_healthy()


def test_the_metaserver_stops_for_longer_than_the_leases(
    cluster: NetworkedCluster, work: Work
) -> None:
    with work.going_on():
        cluster.signal("metaserver", signal.SIGSTOP)
        failures = work.failures
        wait_for(lambda: None if work.failures > failures else "nothing fails")
        cluster.signal("metaserver", signal.SIGCONT)
        work.progress(50)
        cluster.wait_healthy()


def test_a_node_is_unplugged(cluster: NetworkedCluster, work: Work) -> None:
    with work.going_on():
        cluster.network.unplug("node-1")
        wait_until_out(cluster, "node-1")
        work.progress(50)
        cluster.network.heal()
        work.progress(50)
        cluster.wait_healthy()


@pytest.mark.parametrize("ways", ["both", "from the node", "to the node"])
def test_a_node_and_the_manager_lose_each_other(
    cluster: NetworkedCluster, work: Work, ways: str
) -> None:
    """Clients still reach the node: it must refuse them when its lease is over."""
    with work.going_on():
        node = "node-1"
        if ways != "to the node":
            cluster.network.cut(node, "metaserver")
        if ways != "from the node":
            cluster.network.cut("metaserver", node)
        wait_until_out(cluster, node)
        work.progress(50)
        cluster.network.heal()
        work.progress(50)
        cluster.wait_healthy()


def test_clients_and_nodes_lose_each_other(cluster: NetworkedCluster, work: Work) -> None:
    """Each client another node; in one direction, which for TCP is as bad as both.

    Who cannot reach the head of a chain cannot write to it; everybody reads from whom he reaches.
    """
    with work.going_on():
        for client, node in zip(cluster.clients, cluster.nodes, strict=True):
            cluster.network.cut(client, node)
        work.progress(20, files=False)
        cluster.network.heal()
        work.progress(50)


def test_neighbours_of_a_chain_lose_each_other_while_both_reach_the_manager(
    cluster: NetworkedCluster, work: Work
) -> None:
    """Head and middle both ways, then middle and tail one way, of the chain as it is by then."""
    with work.going_on():
        for before, behind, both in ((0, 1, True), (1, 2, False)):
            nodes = cluster.members()
            version = cluster.status().routing_version
            cluster.network.cut(nodes[before], nodes[behind])
            if both:
                cluster.network.cut(nodes[behind], nodes[before])
            wait_until_changed(cluster, version)
            work.progress(100)
            cluster.network.heal()
            cluster.wait_healthy()
            work.progress(50)


def test_head_and_tail_need_not_reach_each_other(cluster: NetworkedCluster, work: Work) -> None:
    """Reads of a dirty chunk at the head ask the tail, and are answered when it is committed."""
    with work.going_on():
        nodes = cluster.members()
        cluster.network.cut(nodes[0], nodes[2])
        cluster.network.cut(nodes[2], nodes[0])
        work.progress(200)


def test_a_node_loses_all_others_but_not_the_manager(cluster: NetworkedCluster, work: Work) -> None:
    with work.going_on():
        for node in ("node-2", "node-3"):
            cluster.network.cut("node-1", node)
        wait_until_out(cluster, "node-1")
        work.progress(100)
        cluster.network.heal()
        cluster.wait_healthy()
        work.progress(50)
