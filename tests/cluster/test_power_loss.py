"""The power of a whole real cluster is cut under load: what was fsynced is there, all is readable.

``FS3_POWER_SEEDS=0:50`` runs other seeds than the few that every run has.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from faulty_disk import why_no_mount
from mounted import verify_replicas
from power_work import Descriptor, MountWorker, NativeWorker, Worker
from powered_cluster import PoweredCluster, content, powered_cluster

from fs3.client import mounts
from fs3.client.api import connect
from fs3.client.cluster_directory import Shape

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
]
_first, _last = os.environ.get("FS3_POWER_SEEDS", "0:2").split(":")
SEEDS = range(int(_first), int(_last))
FOLDER = "/work"


@pytest.fixture(scope="module")
def powered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoweredCluster]:
    """Three nodes with two targets each; all tests cut the power of the same cluster."""
    directory = tmp_path_factory.mktemp("power")
    with powered_cluster(directory, Shape(nodes=3, targets_per_node=2, replicas=3)) as made:
        with connect(made.cluster.address, cluster_id=made.cluster.cluster_id) as client:
            client.mkdir(FOLDER)
        yield made


@pytest.fixture(scope="module")
def mountpoint(powered: PoweredCluster) -> Iterator[Path]:
    """A mount on another machine: it lives through everything."""
    directory = powered.disk.path.parent
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    where = ["--address", powered.cluster.address, "--cluster-id", powered.cluster.cluster_id]
    registry = directory / "registry"
    mounts.start(registry, str(mountpoint), where)
    yield mountpoint
    mounts.force_unmount(mounts.MountFiles(registry, str(mountpoint)))


@contextmanager
def at_work(powered: PoweredCluster, workers: list[Worker]) -> Iterator[None]:
    """The workers work inside, also when power returns; behind it they have ended."""
    stop = threading.Event()

    def progress(operations: int) -> None:
        goals = [worker.done + operations for worker in workers]
        powered.wait_until(
            "everybody makes progress",
            lambda: (
                any(f.done() for f in running)
                or all(w.done >= goal for w, goal in zip(workers, goals, strict=True))
            ),
        )

    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(worker.run, stop) for worker in workers]
        try:
            progress(5)
            yield
            progress(5)
        finally:
            stop.set()
        for worker in running:
            worker.result()


def judge(powered: PoweredCluster, mountpoint: Path, workers: list[Worker]) -> None:
    """Every file is read in both ways, and the replicas are compared."""
    folder = mountpoint / FOLDER[1:]
    with connect(powered.cluster.address, cluster_id=powered.cluster.cluster_id) as client:
        present = {entry.name for entry in client.scandir(FOLDER)}
        for worker in workers:
            found = worker.ledger.problems(lambda name: client.read(f"{FOLDER}/{name}"), present)
            assert found == [], worker.failures
    assert set(os.listdir(folder)) == present
    for worker in workers:
        found = worker.ledger.problems(lambda name: (folder / name).read_bytes(), present)
        assert found == [], worker.failures
    verify_replicas(powered.cluster)
    assert powered.cluster.status().problems == []


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_fsynced_is_there_after_a_power_cut(
    powered: PoweredCluster, mountpoint: Path, seed: int
) -> None:
    random = Random(seed)
    address, cluster_id = powered.cluster.address, powered.cluster.cluster_id
    with connect(address, cluster_id=cluster_id) as client:
        workers: list[Worker] = [
            NativeWorker(f"native-{seed}", client, FOLDER),
            NativeWorker(f"other-{seed}", client, FOLDER),
            MountWorker(f"mount-{seed}", mountpoint / FOLDER[1:]),
        ]
        with at_work(powered, workers):
            powered.lose_power(seed, after_changes=random.randint(1, 1000))
        judge(powered, mountpoint, workers)


def test_an_fsync_does_not_vouch_for_what_a_power_cut_took_before_it(
    powered: PoweredCluster, mountpoint: Path
) -> None:
    """The writer lives on: its fsync comes when the power is back, and the bytes are gone."""
    address, cluster_id = powered.cluster.address, powered.cluster.cluster_id
    old, new = (content("vouched", 0, version) for version in (1, 2))
    path = f"{FOLDER}/vouched"
    with connect(address, cluster_id=cluster_id) as client:
        files = [
            client.open_file(path, "x+b"),
            Descriptor(mountpoint / f"{path[1:]}-mount", os.O_CREAT),
        ]
        for file in files:
            file.pwrite(old, 0)
            file.fsync()
            for node in (1, 2, 3):  # no sync of anybody else helps
                powered.disk.add_rule(
                    path=f"cluster/node-{node}", operations=["sync"], pretend=True
                )
            file.pwrite(new, 0)
            file.flush()
            powered.lose_power(7, after_changes=1, keep_some=False)
            with pytest.raises(OSError) as caught:
                file.fsync()
            assert caught.value.errno == errno.EIO
            file.fsync()  # told once
            file.pwrite(new, 0)
            file.fsync()
            file.close()
        assert client.read(path) == client.read(f"{path}-mount") == new


def test_a_disk_that_lies_about_its_syncs_is_found_out(powered: PoweredCluster) -> None:
    """What proves that the tests above can fail: an fsync that is not done is data that is lost."""
    with connect(powered.cluster.address, cluster_id=powered.cluster.cluster_id) as client:
        worker = NativeWorker("lying", client, FOLDER)
        worker.make()
        for node in (1, 2, 3):
            powered.disk.add_rule(path=f"cluster/node-{node}", operations=["sync"], pretend=True)
        worker.make()
        # Nobody writes behind the cut: that would put back what it took.
        powered.lose_power(1, after_changes=1, keep_some=False)
        present = {entry.name for entry in client.scandir(FOLDER)}
        found = worker.ledger.problems(lambda name: client.read(f"{FOLDER}/{name}"), present)
    assert any("lying-2" in problem for problem in found), found
    assert not any("lying-1" in problem for problem in found), found


def test_at_the_end_no_bad_byte_is_on_any_disk(powered: PoweredCluster) -> None:
    powered.scrub_finds_nothing()
    powered.check_offline()
