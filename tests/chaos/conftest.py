"""A cluster in namespaces that the tests of a module share, and work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import namespaces
from .networked_cluster import NetworkedCluster
from .work import Work


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkedCluster]:
    """The cluster behind ``cluster``."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with NetworkedCluster(tmp_path_factory.mktemp("chaos") / "data") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def mountpoints(module_cluster: NetworkedCluster) -> tuple[Path, Path]:
    """Two mounts, at client-2 and client-3."""
    return module_cluster.mount("client-2"), module_cluster.mount("client-3")


@pytest.fixture
def cluster(
    module_cluster: NetworkedCluster, request: pytest.FixtureRequest
) -> Iterator[NetworkedCluster]:
    """A healthy cluster that other tests of this module have used, too."""
    module_cluster.repair()
    module_cluster.wait_healthy()
    yield module_cluster
    module_cluster.repair()
    module_cluster.print_logs()


@pytest.fixture
def work(
    cluster: NetworkedCluster, mountpoints: tuple[Path, Path], request: pytest.FixtureRequest
) -> Callable[[], Work]:
    """Workers on files of this test's own; use ``work.going_on()``."""
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    return Work(cluster, mountpoints, name)
