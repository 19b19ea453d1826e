"""What clients use in the daemons is given back: descriptors, threads, memory, removed files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mounted import Logs
from running_cluster import RunningCluster

from fs3.client import mounts, processes
from fs3.client.api import connect

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]

DAEMONS = ("metaserver", "node-1", "node-2", "node-3")
CLIENTS, THREADS = 12, 4
ROUNDS_MAX = 16
MEMORY_SLACK_BYTES = 64 << 20  # allocators keep some; what leaks grows with every round


def pid_of(record: Path) -> int:
    found = processes.living(record)
    assert found is not None, record
    return found.pid


def usage(pids: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Descriptors and threads of each process."""
    return {
        name: (len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
        for name, pid in pids.items()
    }


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def settles(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.1)):
        if condition():
            return True
        pause.wait(0.1)
    return condition()


def work(cluster: RunningCluster, number: int) -> None:
    """A client's whole life, in which it leaves out nothing but an orderly end of its files."""
    client = connect(cluster.dir)
    folder = f"/client-{number}"
    client.makedirs(folder, exist_ok=True)

    def one(thread: int) -> None:
        path = f"{folder}/{thread}"
        client.write(path, bytes([thread]) * 3_000_000)
        assert client.read(path) == bytes([thread]) * 3_000_000
        file = client.open_file(f"{path}-open", "wb")
        file.write(b"x" * 100_000)
        file.flush()
        client.unlink(f"{path}-open")
        client.unlink(path)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(THREADS)))
    client.rmdir(folder)
    client.close()


def test_daemons_are_as_they_were_when_their_clients_have_gone(cluster: RunningCluster, logs: Logs):
    pids = {name: pid_of(cluster.dir / name / "pid") for name in DAEMONS}
    work(cluster, 0)  # pools, threads and connections between the daemons are there from here on
    assert settles(lambda: chunks(cluster) == 0)
    before = usage(pids)
    memory: list[dict[str, int]] = []
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: work(cluster, number), range(CLIENTS)))
        memory.append({name: resident_bytes(pid) for name, pid in pids.items()})
    # Threads of a pool come with load and stay; descriptors and connections do not.
    assert settles(
        lambda: all(now[0] <= before[name][0] + 2 for name, now in usage(pids).items())
    ), (before, usage(pids))
    for name, (_, threads) in usage(pids).items():
        assert threads <= before[name][1] + 40, name
        assert memory[-1][name] <= memory[0][name] + MEMORY_SLACK_BYTES, (name, memory)
    assert settles(lambda: chunks(cluster) == 0), "every removed file's chunks are freed"


def chunks(cluster: RunningCluster) -> int:
    with cluster.local.administration() as calls:
        routing = calls.routing()
        return sum(len(list(calls.scan(routing, target))) for target in routing.targets)


@pytest.mark.fuse
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_a_mount_is_as_it_was_when_its_files_are_closed(cluster: RunningCluster, mount: Path):
    files = mounts.MountFiles(cluster.local.files.mounts, mounts.absolute(mount.parent))
    pid = pid_of(files.path("pid"))

    def round_of_work() -> None:
        for number in range(150):
            path = mount / f"f{number}"
            path.write_bytes(b"x" * 100_000)
            assert len(path.read_bytes()) == 100_000
            with path.open("ab") as file:
                file.write(b"y")
        for number in range(150):
            (mount / f"f{number}").unlink()
        os.listdir(mount)

    # A thread that had no turn before gets connections of its own, each with the descriptors of
    # their server: that ends, what leaks goes on with every file.
    round_of_work()
    seen, memory = [usage({"mount": pid})["mount"]], []
    for _ in range(ROUNDS_MAX):
        round_of_work()
        seen.append(usage({"mount": pid})["mount"])
        memory.append(resident_bytes(pid))
        if len(seen) > 4 and all(
            now <= before + 2 for before, now in zip(*seen[-5::4], strict=True)
        ):
            break
    else:
        raise AssertionError(f"(descriptors, threads) grow and grow: {seen}")
    assert memory[-1] <= memory[0] + MEMORY_SLACK_BYTES, memory
