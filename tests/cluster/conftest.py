"""Real clusters for tests: daemons as processes on the loopback, always cleaned up.

``cluster``        a healthy cluster of three nodes with two targets each; the tests of a module
                   share it, and it is made healthy again before each
``make_cluster``   a function that starts another one, of any shape; it ends with the test
``mount``          a directory of the test's own on a FUSE mount of ``cluster``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mounted import Logs
from running_cluster import RunningCluster

from fs3.client.cluster_directory import Shape
from fs3.client.daemon_configs import Extra


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """The cluster behind ``cluster``."""
    running = RunningCluster(tmp_path_factory.mktemp("cluster") / "data")
    try:
        with running:
            yield running
    except BaseException:
        running.print_logs()
        running.local.down()
        raise


@pytest.fixture
def cluster(module_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """A healthy cluster that other tests of this module have used, too."""
    for node in module_cluster.local.specification.nodes:
        module_cluster.release(node.node)
    module_cluster.wait_healthy()
    yield module_cluster
    module_cluster.print_logs()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., RunningCluster]]:
    """``make_cluster(shape, metaserver_settings, storageserver_settings)`` for this test alone."""
    with ExitStack() as stack:
        made: list[RunningCluster] = []

        def make(
            shape: Shape | None = None,
            metaserver_settings: Extra | None = None,
            storageserver_settings: Extra | None = None,
        ) -> RunningCluster:
            directory = tmp_path / f"cluster-{len(made)}"
            running = RunningCluster(directory, shape, metaserver_settings, storageserver_settings)
            made.append(running)
            stack.callback(running.local.down)  # also when starting it fails
            return stack.enter_context(running)

        yield make
        for running in made:
            running.print_logs()


@pytest.fixture(scope="module")
def module_mount(module_cluster: RunningCluster) -> Path:
    """A mount of the module's cluster; it stays until the cluster ends."""
    return module_cluster.mount()


@pytest.fixture
def logs(cluster: RunningCluster) -> Iterator[Logs]:
    """The logs of ``cluster`` during the test; lines that tell of a failure fail it."""
    found = Logs(cluster)
    yield found
    assert found.unexpected() == []


@pytest.fixture
def mount(module_mount: Path, logs: Logs, request: pytest.FixtureRequest) -> Path:
    """A new directory on a mount of ``cluster``; nothing may go wrong in the daemons' logs."""
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    folder = module_mount / name[:100]
    folder.mkdir()
    return folder
