"""A disk of one node is slow, hangs, or is full, while clients work; all of it is judged.

The disk is a file system in memory that obeys the test (tests/disk).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_disk import Disk, why_no_mount

from . import namespaces
from .networked_cluster import NetworkedCluster, wait_for, wait_until_out
from .work import Work

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]
NODE = "node-2"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """Of node 2."""
    if reason := why_no_mount():
        pytest.skip(reason)
    with Disk(tmp_path_factory.mktemp("disk") / "disk") as made:
        yield made


@pytest.fixture(scope="module")
def module_cluster(
    disk: Disk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NetworkedCluster]:
    """Instead of the one in conftest.py."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    directory: Path = tmp_path_factory.mktemp("chaos") / "data"
    with NetworkedCluster(directory, disks={NODE: disk.path}) as cluster:
        yield cluster


@pytest.fixture
def restored(cluster: NetworkedCluster, disk: Disk) -> Iterator[None]:
    """Whatever happens, the disk is well afterwards."""
    yield
    disk.clear_rules()


def test_a_slow_disk_slows_its_chains_and_nothing_else(
    cluster: NetworkedCluster, work: Work, disk: Disk, restored: None
) -> None:
    with work.going_on():
        disk.add_rule(operations=["write", "sync"], delay_s=0.02)
        work.progress(100)
        disk.clear_rules()
        work.progress(50)
        cluster.wait_healthy()


def test_a_disk_that_hangs_takes_its_node_out_and_the_chains_go_on(
    cluster: NetworkedCluster, work: Work, disk: Disk, restored: None
) -> None:
    with work.going_on():
        disk.add_rule(operations=["write", "sync"], delay_s=8.0)
        wait_until_out(cluster, NODE)
        work.progress(50)
        disk.clear_rules()
        work.progress(50)


def test_a_full_disk_refuses_or_takes_its_targets_out_and_loses_nothing(
    cluster: NetworkedCluster, work: Work, disk: Disk, restored: None
) -> None:
    with work.going_on():
        failures = work.failures
        disk.add_rule(operations=["write"], errno="ENOSPC")
        before = cluster.status().routing_version

        def complaint() -> str | None:
            refused = work.failures > failures
            changed = cluster.status().routing_version > before
            return None if refused or changed else "nobody notices"

        wait_for(complaint)
        work.progress(50, files=False)
        disk.clear_rules()
        cluster.kill(NODE)  # what has failed for good stays out until its process starts anew
        cluster.start(NODE)
        work.progress(50)
        cluster.wait_healthy()
