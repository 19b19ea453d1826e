"""Disks that lie, lose files and fail under a real cluster: right bytes always, and whole again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from running_cluster import RunningCluster

from fs3.client.administration import ScrubStatus, TargetStatus
from fs3.client.cluster_directory import Shape
from fs3.core.types import LocalState, PublicState, TargetId
from fs3.errors import Code, Fs3Error

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CONTENT = Random(21).randbytes(6 << 20)
SMALL = Random(22).randbytes(5000)
MakeCluster = Callable[..., RunningCluster]


@pytest.fixture
def three(make_cluster: MakeCluster) -> RunningCluster:
    """Three nodes with a target each: one chain, everywhere the same; and two files on it."""
    made = make_cluster(Shape(nodes=3, targets_per_node=1, replicas=3))
    client = made.client()
    client.write("/large", CONTENT)
    client.write("/small", SMALL)
    return made


def target_directory(cluster: RunningCluster, node: int) -> Path:
    (found,) = (cluster.dir / f"node-{node}").glob("target-*")
    return found


def target_of(cluster: RunningCluster, node: int) -> TargetStatus:
    return next(t for t in cluster.status().targets if t.node == node)


def scrubs(cluster: RunningCluster, **change: bool) -> dict[int, ScrubStatus]:
    """By node; with ``start=True`` a pass is begun."""
    with cluster.local.administration() as calls:
        routing = calls.routing()
        return {
            int(info.node): calls.set_scrub(routing, target, **change)
            if change
            else calls.scrub_status(routing, target)
            for target, info in routing.targets.items()
        }


def wait_until(what: str, true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.05)):
        if true():
            return
        pause.wait(0.05)
    pytest.fail(f"never: {what}")


def scrub_everything(cluster: RunningCluster) -> dict[int, ScrubStatus]:
    """One pass on every target, to its end."""
    before = scrubs(cluster, start=True)
    wait_until(
        "a pass ends",
        lambda: all(
            not now.running and now.started_ns >= before[node].started_ns
            for node, now in scrubs(cluster).items()
        ),
    )
    return scrubs(cluster)


def flip(cluster: RunningCluster, node: int, position: int) -> None:
    """Flip a bit of /large, wherever it lies on the disk of that node."""
    good = CONTENT[position : position + 32]
    flipped = 0
    for path in target_directory(cluster, node).glob("blocks.*"):
        content = path.read_bytes()
        at = content.find(good)
        while at >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([good[0] ^ 1]))
            flipped += 1
            at = content.find(good, at + 1)
    assert flipped


def read_often(cluster: RunningCluster) -> None:
    """Every replica is asked for everything, and what comes is right."""
    client = cluster.client()
    for _ in range(6):
        assert client.read("/large") == CONTENT
        assert client.read("/small") == SMALL


def test_flipped_bits_are_read_around_repaired_and_gone(three: RunningCluster) -> None:
    for node, position in ((1, 100_000), (2, 1 << 20), (3, 5_000_000), (3, 100_000)):
        flip(three, node, position)
    read_often(three)
    wait_until(
        "everything found is repaired",
        lambda: all(not s.bad_waiting for s in scrubs(three).values()),
    )
    scrub_everything(three)
    wait_until(
        "everything bad was found and repaired",
        lambda: {n: s.repaired for n, s in scrubs(three).items()} == {1: 1, 2: 1, 3: 2},
    )
    assert {s.bad_in_pass for s in scrub_everything(three).values()} == {0}
    shown = three.run("scrub", "status")
    assert shown.returncode == 0, shown.stderr
    assert three.run("verify").returncode == 0
    assert three.status().problems == []


def test_an_overwrite_of_a_flipped_bit_succeeds_on_every_replica(three: RunningCluster) -> None:
    for node in (1, 2, 3):
        flip(three, node, 100_000 + node * (1 << 20))
    expected = bytearray(CONTENT)
    with three.client().open("/large", "r+b") as file:
        for node in (1, 2, 3):
            at = 100_001 + node * (1 << 20)
            file.seek(at)
            file.write(b"over")
            expected[at : at + 4] = b"over"
    for _ in range(6):
        assert three.client().read("/large") == expected
    assert {s.bad_in_pass for s in scrub_everything(three).values()} == {0}
    assert three.run("verify").returncode == 0


def test_scrubbers_are_held_and_begun_from_the_command_line(three: RunningCluster) -> None:
    assert three.run("scrub", "rate", "0").returncode == 0
    refused = three.run("scrub", "start")
    assert refused.returncode == 1
    assert "rate of target" in refused.stderr
    assert {s.bytes_per_s for s in scrubs(three).values()} == {0}
    some = target_of(three, 2).target
    assert three.run("scrub", "rate", "1GiB", "--target", str(some)).returncode == 0
    before = scrubs(three)[2].finished_ns
    shown = three.run("scrub", "start", "--target", str(some))
    assert shown.returncode == 0, shown.stderr
    assert "1.0 GiB/s" in shown.stdout
    wait_until("it has ended", lambda: scrubs(three)[2].finished_ns > before)
    assert {n: s.bytes_per_s for n, s in scrubs(three).items()} == {1: 0, 2: 1 << 30, 3: 0}
    assert three.run("scrub", "status", "--target", "9").returncode == 1


@pytest.mark.long
def test_a_data_file_cut_short_under_a_running_server_is_made_whole(three: RunningCluster) -> None:
    for path in target_directory(three, 2).glob("blocks.*"):
        os.truncate(path, 70_000)
    read_often(three)
    scrub_everything(three)
    wait_until("all is repaired", lambda: scrubs(three)[2].bad_waiting == 0)
    assert scrubs(three)[2].repaired >= 6
    assert scrub_everything(three)[2].bad_in_pass == 0
    three.kill(2)
    three.wait_healthy()
    read_often(three)


@pytest.mark.long
@pytest.mark.parametrize("lost", ["MANIFEST-*", "*.sst", "whole"])
def test_a_node_whose_records_are_lost_starts_says_so_and_can_be_filled_again(
    make_cluster: MakeCluster, lost: str
) -> None:
    cluster = make_cluster(Shape(nodes=3, targets_per_node=2, replicas=3))
    client = cluster.client()
    client.write("/large", CONTENT)
    client.write("/small", SMALL)
    cluster.kill(2)  # the next start puts the log into a table file
    cluster.wait_healthy()
    cluster.local.stop_node(2)
    directory, other = sorted((cluster.dir / "node-2").glob("target-*"))
    records = directory / "records"
    for path in records.glob("*" if lost == "whole" else lost):
        path.unlink()
    cluster.release(2)
    number, neighbour = TargetId(int(directory.name[7:])), TargetId(int(other.name[7:]))

    def states() -> dict[TargetId, TargetStatus]:
        return {target.target: target for target in cluster.status().targets}

    wait_until("the target is reported", lambda: "does not open" in states()[number].problem)
    wait_until(
        "its neighbour on the node serves",
        lambda: states()[neighbour].public_state is PublicState.SERVING,
    )
    assert states()[number].local_state is LocalState.OFFLINE
    shown = cluster.run("status")
    assert f"target {number}: its store does not open" in shown.stdout
    read_often(cluster)
    client.write("/more", SMALL)
    # The operator empties it; the next start fills it again.
    cluster.local.stop_node(2)
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    cluster.release(2)
    cluster.wait_healthy()
    assert cluster.run("verify").returncode == 0


@pytest.mark.long
def test_check_is_for_a_stopped_node_and_names_what_is_wrong(three: RunningCluster) -> None:
    def check() -> subprocess.CompletedProcess[str]:
        config = str(three.dir / "node-3" / "config.toml")
        command = [sys.executable, "-m", "fs3.storageserver", "--config", config, "--check"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    refused = check()
    assert refused.returncode == 1
    assert "in use by process" in refused.stderr
    three.local.stop_node(3)
    good = check()
    assert (good.returncode, good.stdout.strip().split()[-1]) == (0, "ok"), good.stdout
    flip(three, 3, 100_000)
    bad = check()
    assert bad.returncode == 1
    assert "1 PROBLEMS" in bad.stdout
    three.release(3)
    three.wait_healthy()
    scrub_everything(three)
    wait_until("it is repaired", lambda: scrubs(three)[3].repaired == 1)


@pytest.mark.long
def test_a_full_target_refuses_writes_and_keeps_what_it_has(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(Shape(nodes=1, targets_per_node=1, replicas=1))
    cluster.local.stop_node(1)
    config = cluster.dir / "node-1" / "config.toml"
    lines = [line for line in config.read_text().splitlines() if "capacity_bytes" not in line]
    config.write_text("\n".join([*lines, "capacity_bytes = 4194304", ""]))
    cluster.release(1)
    cluster.wait_healthy()
    client = cluster.client()
    client.write("/first", CONTENT[: 2 << 20])
    with pytest.raises(Fs3Error) as caught:
        client.write("/second", CONTENT)
    assert caught.value.code is Code.NO_SPACE
    assert client.read("/first") == CONTENT[: 2 << 20]
    assert cluster.status().problems == []
