"""The rate of resync is changed while a cluster runs, and counts for what is under way."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from mounted import verify_replicas
from running_cluster import RunningCluster

from fs3.client.cluster_directory import Shape
from fs3.core.types import PublicState

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(240)]
CONTENT = Random(31).randbytes(24 << 20)


def test_a_resync_under_way_is_slowed_and_let_go(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(Shape(nodes=3, targets_per_node=1, replicas=3))
    client = cluster.client()
    slow = cluster.run("resync", "rate", "4KiB", check=True)
    assert slow.stdout == "3 targets bring others up to date at most 4.0 KiB/s\n"
    cluster.local.stop_node(3)
    client.write("/file", CONTENT)
    cluster.release(3)
    shown = ""
    while "synced" not in shown:  # the test's own limit ends it
        shown = cluster.run("status").stdout
    assert "of 24 chunks" in shown
    assert "at most 4.0 KiB/s" in shown
    (behind,) = [t for t in cluster.status().targets if t.node == 3]
    assert behind.public_state is PublicState.SYNCING, "24 MiB at that rate take an hour and a half"
    cluster.run("resync", "rate", "0", check=True)
    cluster.wait_healthy()
    assert "KiB/s" not in cluster.run("status").stdout
    verify_replicas(cluster)
    assert client.read("/file") == CONTENT


def test_a_rate_that_makes_no_sense_is_refused(make_cluster: Callable[..., RunningCluster]) -> None:
    cluster = make_cluster(Shape(nodes=1, targets_per_node=1, replicas=1))
    assert cluster.run("resync", "rate", "fast").returncode == 2
    refused = cluster.run("resync", "rate", "1MiB", "--target", "9")
    assert refused.returncode == 1
    assert "there is no target 9; 101 are" in refused.stderr
    assert cluster.run("resync", "rate", "1MiB", "--target", "101").returncode == 0
