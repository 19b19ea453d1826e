"""Tests that run in environments of their own: see run.sh. Elsewhere they are not collected.

``cluster``   a cluster of three nodes, shared by the tests of a module, healthy before each test
``folder``    the URL of a directory of the test's own
``address``   where the cluster is, for FS3_ADDRESS, which is set
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cluster"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))

from running_cluster import RunningCluster

from fs3.client.shared_clients import close_shared_clients

collect_ignore_glob = [] if "FS3_ADAPTERS" in os.environ else ["*"]


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """The cluster behind ``cluster``."""
    with RunningCluster(tmp_path_factory.mktemp("cluster") / "data") as running:
        try:
            yield running
        finally:
            close_shared_clients()


@pytest.fixture
def cluster(
    module_cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningCluster]:
    """A healthy cluster that other tests of this module have used, too; it is FS3_ADDRESS."""
    for node in module_cluster.local.specification.nodes:
        module_cluster.release(node.node)
    module_cluster.wait_healthy()
    monkeypatch.setenv("FS3_ADDRESS", str(module_cluster.dir))
    yield module_cluster
    module_cluster.print_logs()


@pytest.fixture
def folder(cluster: RunningCluster, request: pytest.FixtureRequest) -> str:
    """``fs3:///NAME``, which exists."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    cluster.client().makedirs(f"/{name}")
    return f"fs3:///{name}"
