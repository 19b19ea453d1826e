"""The native client against real daemons: kill -9, restarts, replicas that agree afterwards."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_cluster import RunningCluster

from fs3.client.api import Client
from fs3.errors import Code, Fs3Error

pytestmark = pytest.mark.cluster

CHUNK = 1 << 20


@pytest.fixture
def client(cluster: RunningCluster) -> Client:
    return cluster.client()


@pytest.fixture
def folder(client: Client, request: pytest.FixtureRequest) -> str:
    """A directory of the test's own."""
    path = f"/{request.node.name[:100]}"
    client.makedirs(path)
    return path


def test_files_are_read_back_by_another_client(cluster, client, folder):
    rng = random.Random(1)
    contents = {f"{folder}/{n}": rng.randbytes(rng.randrange(3 * CHUNK)) for n in range(12)}
    for path, content in contents.items():
        client.write(path, content)
    other = cluster.client()
    assert {path: other.read(path) for path in contents} == contents
    wanted = [(path, len(content) // 2, 5000) for path, content in contents.items()]
    for (path, offset, length), got in zip(wanted, other.read_batch(wanted), strict=True):
        assert got == contents[path][offset : offset + length]


def test_truncation_removes_what_was_cut(client, folder):
    content = os.urandom(3 * CHUNK)
    client.write(f"{folder}/f", content)
    client.truncate(f"{folder}/f", CHUNK + 1000)
    client.truncate(f"{folder}/f", 3 * CHUNK)
    expected = content[: CHUNK + 1000] + bytes(2 * CHUNK - 1000)
    assert client.read(f"{folder}/f") == expected


def test_an_unlinked_file_is_read_to_its_last_close(client, folder):
    content = os.urandom(CHUNK)
    client.write(f"{folder}/f", content)
    with client.open_file(f"{folder}/f") as file:
        client.unlink(f"{folder}/f")
        assert file.readall() == content


def test_appends_of_many_threads_and_clients_all_arrive(cluster, client, folder):
    client.write(f"{folder}/log", b"")
    clients = [client, cluster.client()]

    def append(number: int) -> None:
        with clients[number % 2].open_file(f"{folder}/log", "ab") as file:
            for i in range(10):
                file.write(f"{number:02} {i:02}\n".encode())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    lines = client.read(f"{folder}/log").decode().splitlines()
    assert sorted(lines) == [f"{number:02} {i:02}" for number in range(4) for i in range(10)]


def test_a_fork_reads_and_writes_on(client, folder):
    client.write(f"{folder}/f", b"before the fork")
    file = client.open_file(f"{folder}/f")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert file.pread(6, 0) == b"before"
            client.write(f"{folder}/g", b"of the child")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert client.read(f"{folder}/g") == b"of the child"
    file.close()


def test_a_metaserver_restart_is_a_pause(cluster, client, folder):
    client.write(f"{folder}/before", b"1")
    cluster.restart_metaserver()
    client.write(f"{folder}/after", b"2")
    assert client.listdir(folder) == ["after", "before"]
    assert client.read(f"{folder}/before") == b"1"


@pytest.mark.long
def test_fsynced_and_closed_data_survives_a_kill_and_the_replicas_agree(cluster, client, folder):
    """A node is killed while two threads write and read; nothing acknowledged may be lost."""
    written: dict[str, bytes] = {}
    stop = threading.Event()
    failures: list[str] = []

    def write() -> None:
        rng = random.Random(7)
        number = 0
        while not stop.is_set():
            path, content = f"{folder}/{number}", rng.randbytes(rng.randrange(1, 2 * CHUNK))
            with client.open_file(path, "wb") as file:
                file.write(content)
                if number % 3 == 0:
                    file.fsync()
            written[path] = content
            number += 1

    def read() -> None:
        rng = random.Random(8)
        while not stop.is_set():
            known = sorted(written)  # once: the writer adds to it meanwhile
            chosen = rng.sample(known, min(3, len(known)))
            failures.extend(path for path in chosen if client.read(path) != written[path])

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(write), pool.submit(read)]
        victim = cluster.local.specification.nodes[0].node
        wait_for(lambda: len(written) > 3, running)
        cluster.hold(victim)
        cluster.kill(victim)
        before = len(written)
        wait_for(lambda: len(written) > before + 5, running)
        cluster.release(victim)
        cluster.wait_healthy()
        stop.set()
        for future in running:
            future.result()
    assert failures == []
    for path, content in written.items():
        assert client.read(path) == content
    verified = cluster.run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def wait_for(condition, running, timeout_s: float = 60.0) -> None:
    """Until it holds, or a worker failed."""
    waiting = threading.Event()
    for _ in range(int(timeout_s / 0.05)):
        if condition():
            return
        for future in running:
            if future.done():
                future.result()
        waiting.wait(0.05)
    raise AssertionError("it did not happen in time")


def test_bad_input_is_one_clear_error(cluster, client, folder):
    for action, code in [
        (lambda: client.mkdir(f"{folder}/{'x' * 300}"), Code.NAME_TOO_LONG),
        (lambda: client.mkdir(f"{folder}/a\0b"), Code.INVALID),
        (lambda: client.set_layout(folder, chunk_bytes=3), Code.INVALID),
        (lambda: cluster.client(cluster_id="wrong"), Code.WRONG_CLUSTER),
    ]:
        with pytest.raises(Fs3Error) as caught:
            action()
        assert caught.value.code is code
    assert client.listdir(folder) == []
