"""A local cluster comes up, survives what happens to it, and goes down without a trace."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_cluster import RunningCluster, processes_naming

from fs3.client import processes
from fs3.client.cluster_directory import Shape
from fs3.client.local_cluster import LocalCluster
from fs3.core.types import PublicState
from fs3.errors import Code, Fs3Error
from fs3.transport.address import parse

pytestmark = pytest.mark.cluster

SMALL = Shape(nodes=1, targets_per_node=1)
MakeCluster = Callable[..., RunningCluster]


@pytest.fixture
def small(make_cluster: MakeCluster) -> RunningCluster:
    return make_cluster(SMALL)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "made-by-the-test"
    yield path
    LocalCluster(path).down()


def pid_of(cluster: RunningCluster, daemon: str) -> int:
    record = processes.living(cluster.dir / daemon / "pid")
    assert record is not None, f"{daemon} does not run"
    return record.pid


def pids(cluster: RunningCluster) -> dict[str, int]:
    return {name: pid_of(cluster, name) for name in ("metaserver", "node-1", "node-2", "node-3")}


def members(cluster: RunningCluster) -> dict[int, set[int]]:
    """Of each chain; versions and orders also change when a lease is late on a busy machine."""
    chains = cluster.status().chains
    return {int(chain.chain): {int(r.target) for r in chain.replicas} for chain in chains}


def test_every_chain_has_its_replicas_on_different_hosts(cluster: RunningCluster) -> None:
    status = cluster.status()
    assert [node.info.host for node in status.nodes] == ["local-1", "local-2", "local-3"]
    assert len(status.chains) == 2
    for chain in status.chains:
        assert {r.state for r in chain.replicas} == {PublicState.SERVING}
        assert len({r.node for r in chain.replicas}) == 3
    assert status.problems == []


def test_up_on_a_running_cluster_changes_nothing(cluster: RunningCluster) -> None:
    before = members(cluster), pids(cluster)
    assert cluster.local.up() is False
    assert (members(cluster), pids(cluster)) == before


def test_two_ups_at_once_make_one_cluster(directory: Path) -> None:
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(LocalCluster(directory).up(SMALL)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False, True]
    assert len(LocalCluster(directory).status().nodes) == 1


def test_data_and_addresses_survive_down_and_up(small: RunningCluster) -> None:
    with small.client() as client:
        client.write("/kept", b"kept" * 1000)
    before = small.local.specification
    small.local.down()
    assert processes_naming(small.dir) == []
    assert small.local.up() is True
    assert small.local.specification == before
    assert small.client().read("/kept") == b"kept" * 1000


def test_down_is_idempotent_and_fine_without_a_cluster(
    small: RunningCluster, tmp_path: Path
) -> None:
    small.local.down()
    assert small.local.down() == []
    assert LocalCluster(tmp_path / "never-made").down() == []
    assert not (tmp_path / "never-made").exists()


def test_flags_that_contradict_the_data_are_refused(small: RunningCluster) -> None:
    with pytest.raises(Fs3Error, match="--nodes is 3, but the cluster") as caught:
        small.local.up(Shape(nodes=3))
    assert caught.value.code is Code.INVALID
    assert small.local.problems() == []


def test_a_killed_storageserver_is_started_again(cluster: RunningCluster) -> None:
    before = pid_of(cluster, "node-2")
    cluster.kill(2)
    cluster.wait_healthy()
    assert pid_of(cluster, "node-2") != before


def test_a_killed_metaserver_is_started_again_and_remembers(cluster: RunningCluster) -> None:
    client = cluster.client()
    client.write("/remembered", b"x")
    before = pid_of(cluster, "metaserver")
    cluster.local.restart_metaserver(signal.SIGKILL)
    assert client.read("/remembered") == b"x"
    assert pid_of(cluster, "metaserver") != before


def test_a_held_storageserver_stays_down_until_released(cluster: RunningCluster) -> None:
    cluster.hold(3)
    cluster.kill(3)
    # The supervisor starts what is not held within its pauses: node 2 is the proof that it looked.
    before = pid_of(cluster, "node-2")
    cluster.kill(2)
    while (again := processes.living(cluster.dir / "node-2" / "pid")) is None:
        threading.Event().wait(0.05)
    assert again.pid != before
    assert processes.living(cluster.dir / "node-3" / "pid") is None
    cluster.release(3)
    cluster.wait_healthy()
    assert pid_of(cluster, "node-3")


def test_stopping_a_node_is_orderly_and_keeps_it_down(cluster: RunningCluster) -> None:
    cluster.local.stop_node(1)
    assert cluster.local.is_held(1)
    assert processes.living(cluster.dir / "node-1" / "pid") is None


def test_nobody_else_is_given_the_ports_of_a_daemon_that_is_down(small: RunningCluster) -> None:
    (node,) = small.local.specification.nodes
    small.local.stop_node(1)
    small.release(1)
    small.wait_healthy()  # it may have them back
    small.local.stop_node(1)
    for address in (node.data_address, node.control_address):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(parse(address))


def test_daemons_outlive_a_killed_supervisor_and_a_new_one_adopts_them(
    small: RunningCluster,
) -> None:
    supervisor = processes.living(small.dir / "supervisor.pid")
    assert supervisor is not None
    before = pid_of(small, "node-1")
    supervisor.signal(signal.SIGKILL)
    assert supervisor.wait_gone(10)
    assert pid_of(small, "node-1") == before
    assert small.local.up() is True
    assert pid_of(small, "node-1") == before
    small.kill(1)
    small.wait_healthy()
    assert pid_of(small, "node-1") != before


def test_down_ends_daemons_whose_supervisor_was_killed(small: RunningCluster) -> None:
    supervisor = processes.living(small.dir / "supervisor.pid")
    assert supervisor is not None
    supervisor.signal(signal.SIGKILL)
    assert supervisor.wait_gone(10)
    small.local.down()
    assert processes_naming(small.dir) == []


def test_a_supervisor_that_is_terminated_takes_its_daemons_along(small: RunningCluster) -> None:
    supervisor = processes.living(small.dir / "supervisor.pid")
    assert supervisor is not None
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait_gone(30)
    assert processes_naming(small.dir) == []


def test_a_daemon_that_cannot_start_is_named_with_its_reason(directory: Path) -> None:
    cluster = LocalCluster(directory)
    with pytest.raises(Fs3Error) as caught:
        cluster.up(SMALL, storageserver_settings={"buffer_byte": 1})
    assert caught.value.code is Code.NOT_READY
    assert "node-1 ended 3 times" in caught.value.detail
    assert "buffer_bytes" in caught.value.detail  # the nearest name that exists
