"""Members of chains come and go under load: drain, replace, rotate, cancel, a new disk."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from running_cluster import RunningCluster

from fs3.client.administration import Administration
from fs3.client.api import Client
from fs3.client.cluster_directory import Shape
from fs3.core.types import LocalState
from fs3.jobs import JobState

pytestmark = pytest.mark.cluster

KIB = 1 << 10
MIB = 1 << 20
FOUR = Shape(nodes=4, targets_per_node=1, replicas=3)
ENDLESS = {"resync": {"bytes_per_s": 32 * KIB}}  # however late a test looks, it goes on


class Load:
    """A client that writes, overwrites and reads back until it is stopped, and checks."""

    def __init__(self, client: Client) -> None:
        self.rounds = 0
        self.contents: dict[str, bytes] = {}
        self._client = client
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rng = random.Random(7)
        try:
            while not self._stop.is_set():
                path = f"/load-{self.rounds % 20}"
                self.contents[path] = rng.randbytes(rng.randrange(1, 300 * KIB))
                self._client.write(path, self.contents[path])
                old = rng.choice(sorted(self.contents))
                assert self._client.read(old) == self.contents[old], f"{old} is another"
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - belongs to the test
            self._failure = error

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What it went along with may have been over before it had its turn.
        while kind is None and self.rounds <= 3 and self._thread.is_alive():
            self._stop.wait(0.01)
        self._stop.set()
        self._thread.join(60)
        if self._failure is not None and kind is None:
            raise self._failure


@contextmanager
def verified(cluster: RunningCluster, contents: dict[str, bytes]) -> Iterator[None]:
    """Afterwards every replica is equal, and a new client reads everything."""
    yield
    cluster.run("verify", check=True)
    reader = cluster.client()
    assert {path: reader.read(path) for path in contents} == contents


def administration(cluster: RunningCluster) -> Administration:
    return cluster.local.administration()


def members(cluster: RunningCluster, chain: int = 1) -> list[int]:
    (found,) = (c for c in cluster.status().chains if c.chain == chain)
    return [int(r.target) for r in found.replicas if r.state.name == "SERVING"]


def wait_until_filling(cluster: RunningCluster) -> None:
    """Return when the new replica of the first job's move has part of its data."""
    with administration(cluster) as calls:
        while not any(progress.bytes_done for progress in calls.jobs()):
            assert not any(not progress.job.is_open for progress in calls.jobs())


def fill(client: Client, count: int = 12) -> dict[str, bytes]:
    """A file of a chunk each."""
    contents = {f"/file-{n}": random.Random(n).randbytes(MIB) for n in range(count)}
    for path, content in contents.items():
        client.write(path, content)
    return contents


def test_a_node_is_drained_under_load_and_taken_away(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(FOUR)
    client = cluster.client()
    contents = fill(client)
    before = members(cluster)
    with Load(client) as load:
        done = cluster.run("node", "drain", "1", check=True)
        assert "drain node 1 is DONE: 1 move" in done.stdout
        assert "MiB of" in done.stdout
    assert load.rounds > 3
    after = members(cluster)
    assert set(before) - set(after) == {101}
    assert len(after) == 3
    cluster.local.stop_node(1)
    with verified(cluster, contents | load.contents):
        assert "drain node 1" in cluster.run("job", "list", check=True).stdout


def test_a_drain_goes_on_when_the_metaserver_is_killed(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(FOUR, None, ENDLESS)
    client = cluster.client()
    contents = fill(client)
    with Load(client) as load, ThreadPoolExecutor(1) as pool:
        drain = pool.submit(cluster.run, "node", "drain", "2")
        wait_until_filling(cluster)
        cluster.local.restart_metaserver(signal.SIGKILL)
        # From here on it may come to its end. The metaserver is not back yet at first.
        while cluster.run("resync", "rate", "0").returncode:
            assert cluster.local.is_running()
        done = drain.result()
    assert (done.returncode, "is DONE" in done.stdout) == (0, True), done.stderr
    assert load.rounds > 3
    assert 201 not in members(cluster)
    with verified(cluster, contents | load.contents):
        assert len(members(cluster)) == 3


def test_a_dead_target_is_replaced_and_its_old_chunks_are_never_taken_for_anything(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(Shape(nodes=5, targets_per_node=1, replicas=2))
    client = cluster.client()
    contents = fill(client)
    dead, stays = members(cluster, 1)
    cluster.local.stop_node(dead // 100)
    cluster.run("target", "replace", str(dead), check=True)
    assert dead not in members(cluster, 1)
    assert stays in members(cluster, 1)
    # It returns with chunks of chain 1, and joins chain 2.
    cluster.release(dead // 100)
    with administration(cluster) as calls:
        while not any(
            t.target == dead and t.chunks and t.local_state is LocalState.ONLINE
            for t in calls.status().targets
        ):
            assert cluster.local.is_running()
    cluster.run("chain", "add", "2", str(dead), check=True)
    identity = cluster.dir / f"node-{dead // 100}" / f"target-{dead}" / "identity.json"
    assert json.loads(identity.read_text())["chain"] == 2
    assert dead in members(cluster, 2)
    with verified(cluster, contents):
        assert len(members(cluster, 2)) == 3


def test_a_target_may_be_replaced_by_one_of_the_same_node(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(Shape(nodes=2, targets_per_node=2, replicas=2))
    client = cluster.client()
    (spare,) = (t for t in members(cluster, 2) if t // 100 == 1)
    (old,) = (t for t in members(cluster, 1) if t // 100 == 1)
    contents = fill(client)
    cluster.run("chain", "remove", "2", str(spare), check=True)
    with Load(client) as load:
        cluster.run("target", "replace", str(old), str(spare), check=True)
    assert spare in members(cluster, 1)
    assert old not in members(cluster, 1)
    with verified(cluster, contents | load.contents):
        assert len(members(cluster, 1)) == 2


def test_an_exchanged_disk_is_filled_and_chains_rotate_back_under_load(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(FOUR)
    client = cluster.client()
    contents = fill(client)
    head, *others = members(cluster)
    disk = cluster.dir / f"node-{head // 100}" / f"target-{head}"
    with Load(client) as load:
        cluster.local.stop_node(head // 100)
        shutil.rmtree(disk)
        cluster.release(head // 100)
        cluster.wait_healthy()
        assert members(cluster) == [*others, head]
        cluster.run("chain", "rotate", check=True)
        assert members(cluster) == [head, *others]
    with verified(cluster, contents | load.contents):
        assert json.loads((disk / "identity.json").read_text())["chain"] == 1


def test_a_disk_in_the_wrong_slot_is_refused_by_name(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(Shape(nodes=1, targets_per_node=2, replicas=1))
    cluster.local.stop_node(1)
    node = cluster.dir / "node-1"
    (node / "target-101").rename(node / "elsewhere")
    (node / "target-102").rename(node / "target-101")
    (node / "elsewhere").rename(node / "target-102")
    cluster.release(1)
    wrong = "is the directory of target 102, not of 101"
    while wrong not in (node / "log").read_text():
        assert cluster.local.is_running()
    cluster.hold(1)


def test_a_cancelled_drain_leaves_the_chain_as_it_was(
    make_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = make_cluster(FOUR, None, ENDLESS)
    contents = fill(cluster.client())
    before = members(cluster)
    cluster.run("node", "drain", "1", "--detach", check=True)
    wait_until_filling(cluster)
    cluster.run("node", "undrain", "1", check=True)
    assert cluster.run("job", "watch", "1").returncode == 1
    with administration(cluster) as calls:
        assert calls.jobs()[0].job.state is JobState.CANCELLED
    assert members(cluster) == before
    with verified(cluster, contents):
        assert cluster.run("status").returncode == 0
