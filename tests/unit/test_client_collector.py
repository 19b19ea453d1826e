"""The collector runs anywhere, also in the middle of a call, and may close a file there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_cluster import FakeCluster, fake_cluster

from fs3.client.api import Client
from fs3.transport.blocking import BlockingConnection


class Interrupted:
    """A lock in whose first hold the collector runs."""

    def __init__(self, lock: Any, collector: Callable[[], None]) -> None:
        self._lock = lock
        self._collector: Callable[[], None] | None = collector

    def __enter__(self) -> None:
        self._lock.__enter__()
        collector, self._collector = self._collector, None
        if collector is not None:
            collector()

    def __exit__(self, *reason: object) -> None:
        self._lock.__exit__(*reason)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


LOCKS: dict[str, tuple[Callable[[Client], object], str]] = {
    "buffers": (lambda client: client.context.files.buffers, "_lock"),
    "loads": (lambda client: client.context.data._loads, "_lock"),
    "written versions": (lambda client: client.context.data.written, "_lock"),
    "open files": (lambda client: client.context.files, "_lock"),
    "context": (lambda client: client.context, "_lock"),
    "routing": (lambda client: client.context.routing, "_asking"),
    "channels": (lambda client: client.context.data._channels, "_changed"),
    "control connections": (lambda client: client.context._channel, "_lock"),
}


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as made:
        yield made


def in_time(work: Callable[[], None]) -> None:
    """Run it; fails if it never ends."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - belongs to the test
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for itself"
    assert failures == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_file_that_is_closed_while_the_same_thread_has_a_lock_hangs_nobody(
    cluster: FakeCluster, name: str
) -> None:
    client = cluster.client()
    lost = client.open_file("/lost", "wb")
    lost.write(b"by the collector")
    owner, attribute = LOCKS[name][0](client), LOCKS[name][1]
    if name == "routing":
        client.context.routing.reset(client.context._manager_stub())
    setattr(owner, attribute, Interrupted(getattr(owner, attribute), lost.close))

    def work() -> None:
        client.write("/other", b"of the caller")
        assert client.read("/other") == b"of the caller"

    in_time(work)
    assert lost.closed
    assert client.read("/lost") == b"by the collector"


def test_a_control_call_in_the_middle_of_another_takes_none_of_its_answers(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client()
    client.write("/one", b"1")
    receive = BlockingConnection._receive
    inner: list[int] = []

    def interrupted(connection: BlockingConnection, deadline_s: float) -> Any:
        monkeypatch.setattr(BlockingConnection, "_receive", receive)
        inner.append(client.stat("/one").st_size)
        return receive(connection, deadline_s)

    monkeypatch.setattr(BlockingConnection, "_receive", interrupted)
    cluster.metadata_calls.clear()
    assert client.stat("/one").st_size == 1
    assert inner == [1]
    assert cluster.metadata_calls["resolve"] == 2  # neither had to be asked again
