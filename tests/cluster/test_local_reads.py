"""Clients on the storageservers' machine read data files by themselves, and nobody notices."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from mounted import Death, verify_replicas
from running_cluster import RunningCluster

from fs3 import dataplane
from fs3.client.api import Client
from fs3.client.data import DataClient
from fs3.client.ring import Iov, Ring, deregister_fd, register_fd
from fs3.transport.client import DataConnection
from fs3.transport.located import LocatedReader
from fs3.transport.remembered import Remembered

pytestmark = pytest.mark.cluster

CHUNK = 1 << 20
NODES = 3
PIECES_MIN = 1000  # that a hammer reads


@pytest.fixture
def client(cluster: RunningCluster) -> Client:
    return cluster.client()


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Pieces that were read by preadv here; and reads of what was remembered."""
    counted: Counter[str] = Counter()
    read = LocatedReader.read

    def count(self: LocatedReader, found, buffers):
        counted["pieces"] += len(found)
        return read(self, found, buffers)

    def counting(name: str, pieces_of: Callable[[Any], int]) -> None:
        plain = getattr(Remembered, name)

        def counted_read(self: Remembered, first: Any, *others: Any) -> Any:
            done = plain(self, first, *others)
            counted["remembered"] += bool(done)
            counted["pieces"] += pieces_of(first) if done else 0
            return done

        monkeypatch.setattr(Remembered, name, counted_read)

    counting("read_found", lambda found: len(found.items))
    counting("_read_few", len)
    counting("read_piece", lambda _: 1)
    monkeypatch.setattr(LocatedReader, "read", count)
    return counted


def test_reads_are_local_and_right(client, located):
    rng = random.Random(1)
    content = rng.randbytes(5 * CHUNK + 12_345)
    client.write("/local", content)
    assert client.read("/local") == content
    pieces = [(rng.randrange(len(content)), rng.randrange(1, 300_000)) for _ in range(200)]
    found = client.read_batch([("/local", offset, length) for offset, length in pieces])
    assert found == [content[offset : offset + length] for offset, length in pieces]
    assert located["pieces"] >= 200


def test_a_forked_child_reads_locally_on_connections_of_its_own(client, located):
    content = os.urandom(3 * CHUNK)
    client.write("/forked", content)
    assert client.read("/forked") == content
    before = located["pieces"]
    child = os.fork()
    if not child:
        good = client.read("/forked") == content and located["pieces"] > before
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.read("/forked") == content


def test_a_server_that_is_told_not_to_serves_over_the_network(make_cluster, located):
    running = make_cluster(None, None, {"local": {"enabled": False}})
    client = running.client()
    client.write("/f", b"x" * CHUNK)
    assert client.read("/f") == b"x" * CHUNK
    assert located["pieces"] == 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Requests to storageservers that left, by method."""
    counted: Counter[int] = Counter()
    send = DataConnection.send

    def count(self: DataConnection, method: int, *arguments: Any) -> None:
        counted[method] += 1
        send(self, method, *arguments)

    monkeypatch.setattr(DataConnection, "send", count)
    return counted


def test_what_was_read_once_is_read_again_without_a_word_to_any_server(client, sent):
    rng = random.Random(2)
    content = rng.randbytes(5 * CHUNK + 12_345)
    client.write("/again", content)
    pieces = [(rng.randrange(len(content)), rng.randrange(1, 300_000)) for _ in range(50)]
    expected = [content[offset : offset + length] for offset, length in pieces]
    with client.open_file("/again") as file:

        def requests() -> list[int]:
            """How many left while everything was read that has been read before."""
            for _ in range(NODES):  # each has its turn
                file.seek(0)
                assert file.readall() == content
            sent.clear()
            for _ in range(2 * NODES):
                asked = [(file, offset, length) for offset, length in pieces]
                assert client.read_batch(asked) == expected
                assert file.pread(5000, 12_345) == content[12_345:17_345]
            return [sent[method] for method in (dataplane.READ_BATCH, dataplane.LOCATE)]

        # On a busy machine a server may be late with its lease: who has none, or a chain that has
        # changed, must be asked anew.
        assert any(requests() == [0, 0] for _ in range(20))


def test_a_ring_reads_again_what_it_has_read_without_a_word_to_any_server(
    client, sent, monkeypatch
):
    begin = DataClient.begin_reads
    transfers: Counter[str] = Counter()

    def counted_begin(self: DataClient, *arguments: Any) -> Any:
        transfers["begun"] += 1
        return begin(self, *arguments)

    monkeypatch.setattr(DataClient, "begin_reads", counted_begin)
    rng = random.Random(3)
    content = rng.randbytes(5 * CHUNK + 12_345)
    client.write("/ring", content)
    pieces = [(rng.randrange(len(content) - 70_000), rng.randrange(1, 70_000)) for _ in range(50)]
    iov = Iov(50 * 70_000)
    with client.open_file("/ring") as file, Ring(64, "read") as ring:
        handle = register_fd(file)

        def read(ranges: list[tuple[int, int]], room: int) -> None:
            for at, (offset, length) in enumerate(ranges):
                ring.prep_io(handle, offset, iov[at * room : at * room + length], at)
            ring.submit()
            results = ring.wait()
            assert results["result"].tolist() == [length for _, length in ranges]
            for at, (offset, length) in enumerate(ranges):
                found = iov.memory[at * room : at * room + length]
                assert found == content[offset : offset + length]
                found[:] = bytes(length)

        def requests() -> list[int]:
            for _ in range(NODES):
                read([(at, 1) for at in range(0, len(content), CHUNK)], 1)
            sent.clear()
            transfers.clear()
            for _ in range(2 * NODES):
                read(pieces, 70_000)
            return [sent[dataplane.READ_BATCH], sent[dataplane.LOCATE], transfers["begun"]]

        assert any(requests() == [0, 0, 0] for _ in range(20))
        deregister_fd(handle)


@pytest.mark.long
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_server_that_is_away_shows_nothing_old_to_who_remembers(cluster, sent, end):
    """All replicas' places are remembered, and whatever is written meanwhile is seen at once."""
    client, writer = cluster.client(), cluster.client()
    path = f"/{end}"
    node = 2
    number = 0

    def write_and_read() -> None:
        nonlocal number
        number += 1
        content = number.to_bytes(8, "little") * (CHUNK // 8)
        writer.write_batch([(path, 0, content)])
        for _ in range(3 * NODES):
            assert file.pread(CHUNK, 0) == content

    writer.write(path, bytes(CHUNK))
    with client.open_file(path) as file:
        for _ in range(5):
            write_and_read()
        if end == "stopped":
            cluster.signal(f"node-{node}", signal.SIGSTOP)
        else:
            cluster.hold(node)
            cluster.kill(node)
        try:
            while serves(cluster, node):
                assert file.pread(8, 0) == number.to_bytes(8, "little")
            for _ in range(5):
                write_and_read()
        finally:
            if end == "stopped":
                cluster.signal(f"node-{node}", signal.SIGCONT)
            else:
                cluster.release(node)
        write_and_read()
        while not serves(cluster, node):
            write_and_read()
        sent.clear()
        for _ in range(5):
            write_and_read()
    assert sent[dataplane.LOCATE] > 0
    verify_replicas(cluster)


def serves(cluster: RunningCluster, node: int) -> bool:
    """Is it a serving replica of every chain?"""
    return all(node in [r.node for r in chain.serving] for chain in cluster.status().chains)


AS_NOBODY = """
import os, sys
import fs3
from fs3.transport.located import LocatedReader
def never(*_): raise AssertionError("a data file was read")
LocatedReader.read = never
with fs3.connect(sys.argv[1], cluster_id=sys.argv[2]) as client:
    os.seteuid(65534)  # with all modules loaded: nobody may not be allowed to see them
    print(client.read("/public")[:5].decode(), end="")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_over_the_network(cluster, client):
    client.write("/public", b"hello" * CHUNK)
    ended = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, cluster.address, cluster.cluster_id],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "hello"), ended.stderr


KILLED = """
import os, signal, sys
import fs3
from fs3.transport.located import LocatedReader
LocatedReader.read = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with fs3.connect(sys.argv[1], cluster_id=sys.argv[2]) as client:
    client.read("/f")
"""


def test_a_client_that_is_killed_while_it_reads_leaves_a_cluster_that_works(cluster, client):
    client.write("/f", b"x" * CHUNK)
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, cluster.address, cluster.cluster_id]
        assert subprocess.run(command, timeout=60, check=False).returncode == -9
        client.write("/f", os.urandom(CHUNK))
    assert len(client.read("/f")) == CHUNK
    verify_replicas(cluster)


class Hammer:
    """Files that one writer each changes in every way, and that anybody reads.

    Every 8 bytes of a file say which file and generation it is. A reader notes which generation was
    acknowledged before it asked, and which had been begun when it had its answer: what it gets must
    be one generation, all of it, between those two.
    """

    def __init__(self, client: Client, folder: str, files: int, seconds: float) -> None:
        self.folder = folder
        client.mkdir(folder)
        self.begun = [0] * files
        self.acknowledged = [0] * files
        self.read = Counter[str]()
        self.failures: list[BaseException] = []
        self._until_s = time.monotonic() + seconds
        for file in range(files):
            client.write(f"{folder}/{file}", self.content(file, 0, CHUNK))

    @property
    def running(self) -> bool:
        """Until the time is up and, on a busy machine, enough has been read."""
        if self.failures:
            return False
        return time.monotonic() < self._until_s or self.read["pieces"] <= PIECES_MIN

    @staticmethod
    def content(file: int, generation: int, length: int) -> bytes:
        return np.full(length // 8, file << 40 | generation, np.uint64).tobytes()

    def guarded(self, work, *arguments) -> threading.Thread:
        def run() -> None:
            try:
                while self.running:
                    work(*arguments)
            except BaseException as error:  # noqa: BLE001 - is raised by the test
                self.failures.append(error)

        return threading.Thread(target=run)

    def write(self, client: Client, rng: random.Random, files: range) -> None:
        file = rng.choice(files)
        path = f"{self.folder}/{file}"
        generation = self.begun[file] + 1
        length = 8 * rng.randrange(1, CHUNK // 8)
        self.begun[file] = generation
        match rng.randrange(4):
            case 0:
                with client.open_file(path, "wb") as opened:  # empties it first
                    opened.write(self.content(file, generation, length))
            case 1:
                client.write_batch([(path, 0, self.content(file, generation, CHUNK))])
            case 2:
                client.write_batch([(path, 0, self.content(file, generation, CHUNK))])
                client.truncate(path, length)
            case _:
                client.unlink(path)
                client.write(path, self.content(file, generation, length))
        self.acknowledged[file] = generation

    def check(self, client: Client, rng: random.Random) -> None:
        chosen = [rng.randrange(len(self.begun)) for _ in range(rng.choice([1, 8, 64]))]
        known = [self.acknowledged[file] for file in chosen]
        pieces = []
        for file in chosen:
            offset = 8 * rng.randrange(CHUNK // 8) if rng.random() < 0.7 else 0
            length = rng.choice([8, 4096, 65_536, CHUNK])
            pieces.append((f"{self.folder}/{file}", offset, length))
        try:
            found = client.read_batch(pieces)
        except FileNotFoundError:
            self.read["missing"] += 1
            return
        for file, least, piece, data in zip(chosen, known, pieces, found, strict=True):
            words = np.frombuffer(data, np.uint64)
            # A file that is being emptied and written anew may show nothing, or zeros.
            there = np.unique(words)
            there = there[there != 0] if file or least else there
            assert len(there) <= 1, f"{piece}: a mix of {there}"
            for word in there.tolist():
                assert word >> 40 == file, f"{piece}: bytes of file {word >> 40}"
                generation = word & (1 << 40) - 1
                assert least <= generation <= self.begun[file], (piece, least, generation)
                self.read["pieces"] += 1


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("deaths", [0, 3])
def test_readers_see_one_generation_whatever_writers_do(cluster, located, deaths):
    client = cluster.client()
    hammer = Hammer(client, f"/hammer-{deaths}", 24, 40.0)
    rng = random.Random(deaths)
    threads = [
        hammer.guarded(hammer.write, cluster.client(), random.Random(n), range(n * 6, n * 6 + 6))
        for n in range(4)
    ]
    threads += [
        hammer.guarded(hammer.check, cluster.client(), random.Random(10 + n)) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(deaths):
            with Death(cluster, rng.randrange(1, 4), at=0, until=sum(hammer.begun) + 30) as death:
                while hammer.running and death._state != "returned":
                    death.reached(sum(hammer.begun))
                    time.sleep(0.05)
                death.reached(1 << 60)
    finally:
        for thread in threads:
            thread.join()
    if hammer.failures:
        raise hammer.failures[0]
    assert hammer.read["pieces"] > PIECES_MIN
    assert located["pieces"] > 1000
    assert located["remembered"] > 20
    verify_replicas(cluster)
