"""The metaserver is killed again and again under a workload of names: nobody sees an error."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounted import Logs, verify_replicas
from running_cluster import RunningCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

STEPS = 200  # of all workers, before each death and after the last
DEATHS = 4


class Names:
    """What one worker does with names of its own, and what there must be afterwards.

    Each step fails if it is done twice: exclusive creation, mkdir, link, rename, unlink, rmdir. So
    a request whose answer died with the metaserver must be answered as the first time.
    """

    def __init__(self, top: str, seed: int) -> None:
        self._top, self._rng = top, random.Random(seed)
        self.expected: dict[str, bytes | None] = {}  # None: a directory
        self._count = 0

    def step(self, calls) -> None:
        self._count += 1
        files = [name for name, content in self.expected.items() if content is not None]
        folders = [name for name, content in self.expected.items() if content is None]
        new = f"{self._top}/{self._count}"
        match self._rng.choice(["create"] * 4 + ["mkdir", "link", "rename", "unlink", "rmdir"]):
            case "link" if files:
                source = self._rng.choice(files)
                calls.link(source, new)
                self.expected[new] = self.expected[source]
            case "rename" if files:
                source = self._rng.choice(files)
                calls.rename(source, new)
                self.expected[new] = self.expected.pop(source)
            case "unlink" if files:
                name = self._rng.choice(files)
                calls.unlink(name)
                del self.expected[name]
            case "rmdir" if folders:
                name = self._rng.choice(folders)
                calls.rmdir(name)
                del self.expected[name]
            case "mkdir":
                calls.mkdir(new)
                self.expected[new] = None
            case _:
                content = self._rng.randbytes(self._rng.choice([0, 10, 5000]))
                calls.create(new, content)
                self.expected[new] = content


class OnMount:
    def __init__(self, mount: Path) -> None:
        self._mount = mount

    def create(self, name: str, content: bytes) -> None:
        with (self._mount / name).open("xb") as file:
            file.write(content)

    def link(self, source: str, target: str) -> None:
        os.link(self._mount / source, self._mount / target)

    def rename(self, source: str, target: str) -> None:
        os.rename(self._mount / source, self._mount / target)

    def unlink(self, name: str) -> None:
        os.unlink(self._mount / name)

    def rmdir(self, name: str) -> None:
        os.rmdir(self._mount / name)

    def mkdir(self, name: str) -> None:
        os.mkdir(self._mount / name)


class Native:
    def __init__(self, client, folder: str) -> None:
        self._client, self._folder = client, folder

    def create(self, name: str, content: bytes) -> None:
        with self._client.open_file(f"{self._folder}/{name}", "xb") as file:
            file.write(content)

    def link(self, source: str, target: str) -> None:
        self._client.link(f"{self._folder}/{source}", f"{self._folder}/{target}")

    def rename(self, source: str, target: str) -> None:
        self._client.rename(f"{self._folder}/{source}", f"{self._folder}/{target}")

    def unlink(self, name: str) -> None:
        self._client.unlink(f"{self._folder}/{name}")

    def rmdir(self, name: str) -> None:
        self._client.rmdir(f"{self._folder}/{name}")

    def mkdir(self, name: str) -> None:
        self._client.mkdir(f"{self._folder}/{name}")


@contextmanager
def at_work(workers: list[tuple[Names, object]]) -> Iterator[Callable[[], None]]:
    """The workers work inside; what is yielded returns when STEPS more have been done."""
    done, moved, stop = [0], threading.Condition(), threading.Event()

    def work(names: Names, calls: object) -> None:
        while not stop.is_set():
            names.step(calls)
            with moved:
                done[0] += 1
                moved.notify_all()

    def progress() -> None:
        with moved:
            goal = done[0] + STEPS
            while done[0] < goal and not any(future.done() for future in running):
                moved.wait(1.0)
        for future in running:
            if future.done():
                future.result()

    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(work, *worker) for worker in workers]
        try:
            yield progress
        finally:
            stop.set()
        for future in running:
            future.result()


def test_names_survive_a_metaserver_that_is_killed(mount: Path, cluster: RunningCluster):
    client, folder = cluster.client(), f"/{mount.name}"
    workers = []
    for number in range(4):
        top = f"worker-{number}"
        (mount / top).mkdir()
        calls = OnMount(mount) if number % 2 else Native(client, folder)
        workers.append((Names(top, number), calls))
    with at_work(workers) as progress:
        for _ in range(DEATHS):
            progress()
            cluster.local.restart_metaserver(signal.SIGKILL)
        progress()
    cluster.wait_healthy()
    for names, _ in workers:
        for name, content in names.expected.items():
            if content is None:
                assert (mount / name).is_dir(), name
            else:
                assert (mount / name).read_bytes() == content, name
                assert client.read(f"{folder}/{name}") == content, name
    found = {
        str(Path(top, name).relative_to(mount))
        for top, folders, files in os.walk(mount)
        for name in [*folders, *files]
    }
    tops = {f"worker-{number}" for number in range(4)}
    assert found == tops.union(*(names.expected for names, _ in workers))
    verify_replicas(cluster)


def test_data_goes_on_while_the_metaserver_is_away(
    cluster: RunningCluster, mount: Path, logs: Logs
):
    """Who has a file open and knows its routing needs the metaserver only to settle the length."""
    path = mount / "f"
    content = bytearray(os.urandom(4 << 20))
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as file:
        cluster.local.restart_metaserver(signal.SIGKILL)
        for offset in range(0, len(content), 300_000):
            os.pwrite(file.fileno(), b"new" * 1000, offset)
            content[offset : offset + 3000] = b"new" * 1000
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), len(content) + 10, 0) == content
    assert path.read_bytes() == content
    assert cluster.client().read(f"/{mount.name}/f") == content
