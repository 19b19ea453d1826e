"""A cluster whose data travels by RDMA: three storageservers, a native client, a FUSE mount."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from counters import nic_packets
from running_cluster import RunningCluster

from fs3.client.api import Client

pytestmark = [pytest.mark.rdma, pytest.mark.cluster, pytest.mark.long]

CHUNK = 1 << 20


@pytest.fixture
def client(cluster: RunningCluster) -> Client:
    return cluster.client()


def test_nodes_announce_their_rdma_endpoints(cluster):
    nodes = [node.info for node in cluster.status().nodes]
    assert [bool(node.rdma) for node in nodes] == [True] * 3


def test_files_are_written_and_read_back_by_another_client(cluster, client):
    rng = random.Random(1)
    contents = {f"/files-{n}": rng.randbytes(rng.randrange(3 * CHUNK)) for n in range(8)}
    other = cluster.client()
    packets = sum(map(len, contents.values())) // 4096
    for _ in range(20):  # until a link is up, which its first request sees to, they go over TCP
        before = nic_packets()
        for path, content in contents.items():
            client.write(path, content)
        written = nic_packets() - before
        assert {path: other.read(path) for path in contents} == contents
        read = nic_packets() - before - written
        if written > packets and read > packets // 2:
            break
    else:
        pytest.fail(f"{written} packets written, {read} read for {packets} of content")


def test_chain_neighbours_forward_by_rdma(cluster, monkeypatch):
    monkeypatch.setenv("FS3_RDMA", "off")  # for this client: what NICs move is between neighbours
    client = cluster.client()
    moved = 0
    for _ in range(100):  # until all links are up, some frames go over TCP
        before = nic_packets()
        client.write("/forwarded", os.urandom(4 * CHUNK))
        moved = nic_packets() - before
        if moved >= 2 * 4 * CHUNK // 4096:  # from the head on to two neighbours
            break
    else:
        pytest.fail(f"{moved} packets for 4 MiB to two neighbours")
    logs = "".join(path.read_text() for path in cluster.dir.glob("node-*/log"))
    assert "peer_by_rdma" in logs


def test_a_batch_of_small_reads_over_many_files(cluster, client):
    contents = {f"/small-{n}": os.urandom(40_000) for n in range(20)}
    for path, content in contents.items():
        client.write(path, content)
    wanted = [(path, n * 97, 4096) for n, path in enumerate(list(contents) * 5)]
    for (path, offset, length), got in zip(wanted, client.read_batch(wanted), strict=True):
        assert got == contents[path][offset : offset + length]


def test_a_fuse_mount_reads_and_writes(cluster):
    before = nic_packets()
    mount = cluster.mount()
    content = os.urandom(5 * CHUNK + 123)
    (mount / "through").write_bytes(content)
    assert (mount / "through").read_bytes() == content
    copied = subprocess.run(["cp", mount / "through", mount / "copy"], check=False)
    assert copied.returncode == 0
    assert cluster.client().read("/copy") == content
    assert nic_packets() > before


def test_a_storageserver_that_is_killed_takes_no_data_with_it(cluster, client):
    content = os.urandom(4 * CHUNK)
    client.write("/survives", content)
    cluster.kill(1)
    assert client.read("/survives") == content
    client.write("/survives", content[::-1])
    assert client.read("/survives") == content[::-1]
    cluster.wait_healthy()
    assert client.read("/survives") == content[::-1]


@pytest.fixture
def cable() -> Iterator[Callable[[str], None]]:
    """``cable("down")`` takes the guest's only RDMA interface down; it is up again afterwards."""
    if "RDMA_VM" not in os.environ:
        pytest.skip("takes a network interface down: in a guest only")

    def set_link(state: str) -> None:
        subprocess.run(["ip", "link", "set", "rdma0", state], check=True)

    yield set_link
    set_link("up")


def test_when_the_nic_goes_down_reads_and_writes_go_on_over_tcp(cluster, client, cable):
    contents = [os.urandom(2 * CHUNK) for _ in range(3)]
    for n, content in enumerate(contents):
        client.write(f"/nic-{n}", content)
    before = nic_packets()
    # Each link comes up with its first request, which still goes over TCP.
    wait_until(lambda: client.read("/nic-0") == contents[0] and nic_packets() > before)
    failures: list[BaseException] = []
    done = threading.Event()
    rounds = 0

    def work() -> None:
        nonlocal rounds
        try:
            while not done.is_set():
                n = rounds % 3
                client.write(f"/nic-{n}", contents[n])
                assert client.read(f"/nic-{n}") == contents[n]
                rounds += 1
        except BaseException as error:  # noqa: BLE001 - the test raises it
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: rounds >= 2 or failures)
        cable("down")
        reached = rounds
        wait_until(lambda: rounds >= reached + 4 or failures)
        silent = nic_packets()
        wait_until(lambda: rounds >= reached + 6 or failures)
        assert nic_packets() - silent < 2 * 2 * CHUNK // 4096  # it is TCP that carries it
        cable("up")
        reached = rounds
        wait_until(lambda: rounds >= reached + 2 or failures)
    finally:
        done.set()
        thread.join(180)
    assert not thread.is_alive()
    assert failures == []


def wait_until(condition: Callable[[], object], timeout_s: float = 180.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)
