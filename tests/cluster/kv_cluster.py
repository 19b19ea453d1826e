"""A cluster for tests of the KV cache, with chains of one and of three replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from running_cluster import RunningCluster

from fs3.client.cluster_directory import Shape
from fs3.client.daemon_configs import Extra
from fs3.client.kv_administration import NamespaceSettings, create_namespace
from fs3.client.kvcache import KVCache

_names = count()
LIMIT_S = 60.0


@contextmanager
def kv_cluster(
    directory: Path,
    storageserver_settings: Extra | None = None,
    metaserver_settings: Extra | None = None,
) -> Iterator[RunningCluster]:
    """Three nodes, two targets each in chains of three, and one each alone."""
    running = RunningCluster(
        directory, Shape(kv_targets=1), metaserver_settings, storageserver_settings
    )
    try:
        with running:
            yield running
    except BaseException:
        running.print_logs()
        running.local.down()
        raise


def new_namespace(cluster: RunningCluster, **settings: int) -> str:
    """A namespace of its own for a test; its name."""
    name = f"ns-{next(_names)}"
    with cluster.local.administration() as calls:
        create_namespace(calls.manager, name, NamespaceSettings(**settings))
    return name


def new_cache(cluster: RunningCluster, *, deadline_s: float = 20.0, **settings: int) -> KVCache:
    """A cache in a namespace of its own; patient, because test machines are loaded."""
    return KVCache(cluster.client(), new_namespace(cluster, **settings), deadline_s=deadline_s)


def eventually(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until it holds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.05)
