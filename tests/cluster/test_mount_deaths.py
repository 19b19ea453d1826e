"""Processes of a cluster die or stop in the middle of work on a mount; every byte is compared."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from mounted import Death, Logs, Twins, verify_replicas
from running_cluster import RunningCluster

from fs3.client import mounts, processes
from fs3.client.api import Client
from fs3.client.cluster_directory import Shape

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

MIB = 1 << 20
DAEMONS = ("metaserver", "node-1", "node-2", "node-3")


def wait_until(condition: Callable[[], bool], workers: list[Future[None]], what: str) -> None:
    """Until it holds; a worker that failed says why at once."""
    pause = threading.Event()
    for _ in range(2400):
        if condition():
            return
        for worker in workers:
            if worker.done():
                worker.result()
        pause.wait(0.05)
    pytest.fail(f"it did not happen: {what}")


def test_random_work_is_right_while_every_storageserver_dies_in_turn(
    cluster: RunningCluster, mount: Path, tmp_path: Path
):
    names = [f"f{seed}" for seed in range(3)]
    twins = [Twins(mount / name, tmp_path / name) for name in names]
    done, stop = [0] * len(twins), threading.Event()

    def work(worker: int) -> None:
        rng = random.Random(worker)
        while not stop.is_set():
            twins[worker].step(rng)
            if done[worker] % 10 == 9:
                os.fsync(twins[worker].files[0])
            done[worker] += 1

    with ThreadPoolExecutor(len(twins)) as pool:
        running = [pool.submit(work, worker) for worker in range(len(twins))]
        try:
            for node in (1, 2, 3):
                start = min(done)
                with Death(cluster, node, at=start + 30, until=start + 70) as death:
                    for goal in range(start, start + 75, 5):
                        wait_until(lambda goal=goal: min(done) >= goal, running, f"{goal} steps")
                        death.reached(goal)
        finally:
            stop.set()
        for worker in running:
            worker.result()
    client = cluster.client()
    for name, twin in zip(names, twins, strict=True):
        twin.close()
        expected = (tmp_path / name).read_bytes()
        assert (mount / name).read_bytes() == expected
        assert client.read(f"/{mount.name}/{name}") == expected
    verify_replicas(cluster)


def test_what_was_closed_survives_the_death_of_every_process_at_once(
    cluster: RunningCluster, mount: Path
):
    written: dict[str, bytes] = {}
    stop = threading.Event()

    def work(worker: int) -> None:
        rng, number = random.Random(worker), 0
        while not stop.is_set():
            name, content = f"f{worker}-{number}", rng.randbytes(rng.randrange(2 * MIB))
            (mount / name).write_bytes(content)
            written[name] = content
            number += 1

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(work, worker) for worker in range(2)]
        try:
            for _ in range(2):
                before = len(written)
                wait_until(lambda before=before: len(written) >= before + 10, running, "files")
                for daemon in DAEMONS:
                    cluster.signal(daemon, signal.SIGKILL)
                cluster.wait_healthy(120)
        finally:
            stop.set()
        for worker in running:
            worker.result()
    client = cluster.client()
    for name, content in written.items():
        assert (mount / name).read_bytes() == content, name
        assert client.read(f"/{mount.name}/{name}") == content, name
    verify_replicas(cluster)


def test_the_last_replica_of_a_chain_keeps_everything(cluster: RunningCluster, mount: Path):
    """Two die and stay away while one goes on alone; then that one dies, too, and returns first."""
    written = {}

    def write(name: str) -> None:
        written[name] = os.urandom(MIB + 77)
        with (mount / name).open("wb") as file:
            file.write(written[name])
            file.flush()
            os.fsync(file.fileno())

    write("with-three")
    for node in (1, 3):
        cluster.hold(node)
        cluster.kill(node)
        write(f"without-{node}")
    (mount / "with-three").write_bytes(b"overwritten by the last")
    written["with-three"] = b"overwritten by the last"
    cluster.hold(2)
    cluster.kill(2)
    for node in (1, 3):  # they are behind: alone they must not serve
        cluster.release(node)
    pause = threading.Event()
    for _ in range(600):
        alive = {node.info.node for node in cluster.status().nodes if node.info.alive}
        if alive == {1, 3}:
            break
        pause.wait(0.1)
    else:
        pytest.fail("the two did not return")
    impatient = cluster.client(timeout_s=2.0)
    with pytest.raises(OSError, match=r"NOT_SERVING|UNREACHABLE|STALE_CHAIN"):
        impatient.read(f"/{mount.name}/with-three")
    cluster.release(2)
    cluster.wait_healthy(120)
    assert {name: (mount / name).read_bytes() for name in written} == written
    verify_replicas(cluster)


def test_a_storageserver_that_was_stopped_serves_nothing_old(cluster: RunningCluster, mount: Path):
    """SIGSTOP for longer than its lease; others write meanwhile; then it goes on."""
    path, folder = mount / "f", f"/{mount.name}/f"
    path.write_bytes(b"0" * MIB)
    clients = [cluster.client() for _ in range(6)]
    for victim in (1, 2, 3):
        for client in clients:  # connections to every replica are open
            client.read(folder)
        before = cluster.status().routing_version
        cluster.signal(f"node-{victim}", signal.SIGSTOP)
        try:
            new = bytes([victim]) * MIB
            path.write_bytes(new)
            wait_until(lambda before=before: cluster.status().routing_version > before, [], "death")
        finally:
            cluster.signal(f"node-{victim}", signal.SIGCONT)
        for _ in range(5):
            for client in clients:
                assert client.read(folder) == new
            assert path.read_bytes() == new
        cluster.wait_healthy(120)
    verify_replicas(cluster)


def test_what_is_removed_or_cut_while_a_node_is_away_does_not_come_back(
    cluster: RunningCluster, mount: Path
):
    """Removed, cut, replaced and written again: the node returns with what it had before."""
    inodes = {}
    for name in ("removed", "cut", "emptied", "replaced"):
        (mount / name).write_bytes(os.urandom(3 * MIB))
        inodes[name] = (mount / name).stat().st_ino
    new = os.urandom(2 * MIB)
    with Death(cluster, 2, at=0, until=1) as death:
        death.reached(0)
        (mount / "removed").unlink()
        os.truncate(mount / "cut", 1000)
        os.truncate(mount / "cut", 3 * MIB)
        os.truncate(mount / "emptied", 0)
        (mount / "new").write_bytes(new)
        os.rename(mount / "new", mount / "replaced")
        before = (mount / "cut").read_bytes()
        assert before[1000:] == bytes(3 * MIB - 1000)
        with cluster.local.administration() as calls:
            routing = calls.routing()
            alive = [t for t, info in routing.targets.items() if info.node != 2]
            wait_until(
                lambda: not any(list(calls.scan(routing, t, inodes["removed"])) for t in alive),
                [],
                "the removed file's chunks are gone where they can be",
            )
        death.reached(1)
    for victim in (1, 3):  # the one that was away must answer alone as the others did
        cluster.hold(victim)
        cluster.kill(victim)
    assert (mount / "cut").read_bytes() == before
    assert (mount / "emptied").read_bytes() == b""
    assert (mount / "replaced").read_bytes() == new
    assert sorted(os.listdir(mount)) == ["cut", "emptied", "replaced"]
    for victim in (1, 3):
        cluster.release(victim)
    cluster.wait_healthy(120)
    with cluster.local.administration() as calls:
        routing = calls.routing()
        gone = (inodes["removed"], inodes["replaced"])
        wait_until(
            lambda: not any(list(calls.scan(routing, t, i)) for t in routing.targets for i in gone),
            [],
            "no replica holds a chunk of a removed file",
        )
    verify_replicas(cluster)


WRITER = """
import os, sys
from fs3.client.api import connect
kind, target, cluster = sys.argv[1:]
if kind == "native":
    file = connect(cluster).open_file(target, "wb")
    write, sync = file.write, file.fsync
else:
    file = os.open(target, os.O_WRONLY | os.O_CREAT)
    write, sync = lambda data: os.write(file, data), lambda: os.fsync(file)
for number in range(1_000_000):
    write(b"%07d\\n" % number * 5000)
    if number % 10 == 9:
        sync()
        print(number + 1, flush=True)
"""


@pytest.mark.parametrize("kind", ["native", "mount"])
def test_what_a_writer_that_is_killed_had_fsynced_is_there(
    cluster: RunningCluster, mount: Path, kind: str
):
    target = str(mount / "f") if kind == "mount" else f"/{mount.name}/f"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, kind, target, str(cluster.dir)],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 100:
                writer.kill()
                break
    synced = 100 * 5000 * 8
    for found in ((mount / "f").read_bytes(), cluster.client().read(f"/{mount.name}/f")):
        assert len(found) >= synced
        assert found[:synced] == b"".join(b"%07d\n" % n * 5000 for n in range(100))
        whole, rest = divmod(len(found) - synced, 5000 * 8)
        expected = b"".join(b"%07d\n" % n * 5000 for n in range(100, 101 + whole))
        assert found[synced:] == expected[: whole * 5000 * 8 + rest]


def test_a_killed_mount_loses_nothing_that_was_closed_and_can_be_mounted_again(
    make_cluster: Callable[..., RunningCluster],
):
    cluster = make_cluster(
        Shape(nodes=3, targets_per_node=1), {"sessions": {"lease_ms": 2000, "prune_ms": 200}}
    )
    logs = Logs(cluster)
    first, second = cluster.mount("first"), cluster.mount("second")
    contents = {f"f{n}": os.urandom(n * 100_000) for n in range(10)}
    for name, content in contents.items():
        (first / name).write_bytes(content)
    unfinished = os.open(first / "unfinished", os.O_CREAT | os.O_RDWR)
    fsynced = os.urandom(2 * MIB)
    os.write(unfinished, fsynced)
    os.fsync(unfinished)
    os.write(unfinished, os.urandom(2 * MIB))
    orphan = os.open(first / "orphan", os.O_CREAT | os.O_RDWR)
    os.write(orphan, fsynced)
    os.fsync(orphan)
    inode = os.fstat(orphan).st_ino
    os.unlink(first / "orphan")
    files = mounts.MountFiles(cluster.local.files.mounts, mounts.absolute(first))
    process = processes.living(files.path("pid"))
    assert process is not None
    process.signal(signal.SIGKILL)
    for descriptor in (unfinished, orphan):
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pread(descriptor, 1, 0)
        with contextlib.suppress(OSError):  # it says so again
            os.close(descriptor)
    assert {name: (second / name).read_bytes() for name in contents} == contents
    assert (second / "unfinished").read_bytes()[: 2 * MIB] == fsynced
    cluster.run("umount", str(first), "--force", check=True)
    again = cluster.mount("first")
    assert {name: (again / name).read_bytes() for name in contents} == contents
    assert sorted(os.listdir(again)) == sorted([*contents, "unfinished"])
    (again / "unfinished").write_bytes(b"finished")
    assert (second / "unfinished").read_bytes() == b"finished"
    with cluster.local.administration() as calls:
        routing = calls.routing()
        wait_until(
            lambda: not any(list(calls.scan(routing, t, inode)) for t in routing.targets),
            [],
            "the chunks of the removed file that nobody has open any more are gone",
        )
    verify_replicas(cluster)
    assert logs.unexpected() == []


def test_a_client_that_dies_holds_no_names(cluster: RunningCluster, mount: Path, logs: Logs):
    """Its removed files go, its locks go, what it made is whole."""
    code = (
        "import os, sys\n"
        "from fs3.client.api import connect\n"
        "client = connect(sys.argv[1])\n"
        "client.mkdir(sys.argv[2] + '/d')\n"
        "client.write(sys.argv[2] + '/d/f', b'x' * 3_000_000)\n"
        "file = client.open_file(sys.argv[2] + '/d/g', 'wb')\n"
        "file.write(b'y' * 100)\n"
        "os._exit(9)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(cluster.dir), f"/{mount.name}"], check=False, timeout=60
    )
    assert ended.returncode == 9
    assert (mount / "d/f").read_bytes() == b"x" * 3_000_000
    assert (mount / "d/g").read_bytes() in (b"", b"y" * 100)
    (mount / "d/g").write_bytes(b"again")
    os.rename(mount / "d", mount / "e")
    client: Client = cluster.client()
    assert client.read(f"/{mount.name}/e/g") == b"again"
    client.rmtree(f"/{mount.name}/e")
    assert os.listdir(mount) == []
