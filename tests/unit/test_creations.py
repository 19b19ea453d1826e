"""Puts on a chain of one replica go past the core, and mean the same as those that do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_cluster import StorageCluster

from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.types import PublicState
from fs3.errors import Code

S, OFF = PublicState.SERVING, PublicState.OFFLINE
CREATE, REMOVE = UpdateKind.CREATE, UpdateKind.REMOVE


class Steps:
    """Counts the writes that the core of a target is stepped with."""

    def __init__(self, cluster: StorageCluster) -> None:
        self.writes = 0
        core: Any = cluster.nodes[0].target.core
        self._step: Callable[[m.Event, int], list[m.Effect]] = core.step
        core.step = self.step

    def step(self, event: m.Event, now_ms: int) -> list[m.Effect]:
        self.writes += isinstance(event, m.Write)
        return self._step(event, now_ms)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 1) as cluster:
        cluster.set_chain((1, S))
        yield cluster


def put(cluster: StorageCluster, slot: int, data: bytes, sequence: int, **more: Any) -> Any:
    return cluster.write(slot, data, kind=CREATE, tag=(5, 1, sequence), **more)[0]


def content(cluster: StorageCluster, slot: int) -> bytes:
    (result,), (found,) = cluster.read([(slot, 0, 1 << 20)], 1)
    return found if result["code"] == Code.OK else b"nothing"


def test_a_new_value_takes_no_step_of_the_core(alone: StorageCluster) -> None:
    steps = Steps(alone)
    data = os.urandom(100_000)
    result = put(alone, 1, data, 1)
    assert (result["code"], result["version"], result["length"]) == (Code.OK, 1, len(data))
    assert content(alone, 1) == data
    assert steps.writes == 0


def test_the_first_to_put_wins(alone: StorageCluster) -> None:
    put(alone, 1, b"first", 1)
    assert put(alone, 1, b"second", 2)["code"] == Code.OK
    assert content(alone, 1) == b"first"


def test_a_repeated_put_is_answered_alike_and_a_late_copy_changes_nothing(
    alone: StorageCluster,
) -> None:
    first = put(alone, 1, b"value", 1)
    assert put(alone, 1, b"value", 1) == first
    alone.write(1, b"", kind=REMOVE, tag=(6, 1, 1))
    assert put(alone, 1, b"value", 1) == first
    assert content(alone, 1) == b"nothing"
    put(alone, 1, b"anew", 3)
    alone.write(1, b"", kind=REMOVE, tag=(6, 1, 2))
    assert put(alone, 1, b"late", 2)["code"] == Code.STALE_UPDATE
    assert content(alone, 1) == b"nothing"


def test_bad_data_and_another_chain_version_are_refused(alone: StorageCluster) -> None:
    assert put(alone, 1, b"bad", 1, crc=7)["code"] == Code.CORRUPT
    assert put(alone, 1, b"old", 2, version=9)["code"] == Code.STALE_CHAIN
    assert content(alone, 1) == b"nothing"


def test_without_a_lease_nothing_is_stored(tmp_path: Path) -> None:
    with StorageCluster(tmp_path, 1) as cluster:
        cluster.set_chain((1, S), lease_ms=0)
        assert put(cluster, 1, b"value", 1)["code"] == Code.NOT_SERVING


def test_synced_puts_and_those_of_longer_chains_are_the_cores(tmp_path: Path) -> None:
    with StorageCluster(tmp_path, 2) as cluster:
        cluster.set_chain((1, S), (2, S))
        steps = Steps(cluster)
        put(cluster, 1, b"both", 1)
        assert steps.writes == 1
        assert cluster.read([(1, 0, 9)], 2)[1] == [b"both"]
        # A replica that is away must be told of what it missed: by the core, when it is back.
        cluster.set_chain((1, S), (2, OFF))
        steps.writes = 0
        put(cluster, 2, b"alone", 2)
        assert steps.writes == 1


def test_a_synced_put_waits_for_the_disk(alone: StorageCluster) -> None:
    steps = Steps(alone)
    assert put(alone, 1, b"durable", 1, sync=True)["code"] == Code.OK
    assert steps.writes == 1
