"""Ctrl-C in the middle of a call, as in a notebook: the calls after it get answers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_cluster import FakeCluster, fake_cluster

from fs3.client import pipeline
from fs3.client.api import Client
from fs3.transport.blocking import BlockingConnection


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as made:
        yield made


@pytest.fixture
def client(cluster: FakeCluster) -> Client:
    made = cluster.client()
    for name in "ab":
        made.write(f"/{name}", name.encode() * 10)
    return made


def interrupt_once(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: type[BaseException]
) -> None:
    """The next wait for an answer ends with ``error``; those behind it are as ever."""
    original: Callable[..., Any] = getattr(owner, name)

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(owner, name, original)
        raise error

    monkeypatch.setattr(owner, name, interrupted)


def test_a_lookup_after_an_interrupted_one_gets_its_own_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_once(monkeypatch, pipeline, "drive", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        client.read_batch([("/a", 0, 10)])
    assert [bytes(view) for view in client.read_batch([("/b", 0, 10)])] == [b"b" * 10]


def test_a_control_call_after_an_interrupted_one_gets_its_own_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.stat("/a")  # there is a connection, whose answer would come late
    interrupt_once(monkeypatch, BlockingConnection, "_receive", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        client.stat("/a")
    assert client.stat("/b").st_ino != client.stat("/a").st_ino
    assert client.read("/b") == b"b" * 10
