"""A target and its chain: what its directory says, and what becomes of an older one's chunks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from storage_cluster import CHAIN, StorageCluster

from fs3.core.types import ChainId, LocalState, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.storageserver.identity import FILE, Identity
from fs3.storageserver.opening import open_target
from fs3.storageserver.settings import TargetSettings

S, L, Y, OFF = (
    PublicState.SERVING,
    PublicState.LASTSRV,
    PublicState.SYNCING,
    PublicState.OFFLINE,
)
OTHER = ChainId(2)
T = TargetId(11)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 2) as cluster:
        yield cluster


def chain_of(cluster: StorageCluster, node: int, directory: Path) -> int:
    return int(json.loads((directory / f"target-{node}" / FILE).read_text())["chain"])


def slots(cluster: StorageCluster, node: int) -> int:
    return cluster.call(lambda: len(cluster.nodes[node - 1].target.store.scan(None, 10_000)))


def state(cluster: StorageCluster, node: int) -> LocalState:
    return cluster.call(lambda: cluster.nodes[node - 1].target.report.state)


def on_change(cluster: StorageCluster, node: int) -> threading.Event:
    """Set whenever the target tells the manager of a change."""
    changed = threading.Event()
    cluster.nodes[node - 1].state_changed = changed.set  # type: ignore[method-assign]
    return changed


# --- what the directory says ----------------------------------------------------------------------


def test_a_new_directory_says_whose_it_is_and_remembers_its_chain(tmp_path: Path) -> None:
    identity = Identity(tmp_path, "prod", T)
    assert identity.chain == 0
    identity.bind(ChainId(7))
    assert Identity(tmp_path, "prod", T).chain == 7
    assert json.loads((tmp_path / FILE).read_text()) == {
        "format": 1,
        "cluster": "prod",
        "target": 11,
        "chain": 7,
    }


@pytest.mark.parametrize(
    ("cluster", "target", "code", "why"),
    [
        ("test", 11, Code.WRONG_CLUSTER, "belongs to cluster 'prod', not to 'test'"),
        ("prod", 12, Code.INVALID, "directory of target 11, not of 12"),
    ],
)
def test_somebody_elses_directory_is_refused_and_left_alone(
    tmp_path: Path, cluster: str, target: int, code: Code, why: str
) -> None:
    Identity(tmp_path, "prod", T).bind(ChainId(7))
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(Fs3Error, match=why) as error:
        open_target(TargetSettings(id=target, path=tmp_path), cluster)
    assert error.value.code is code
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format":1,"cluster":"prod","target":"x","chain":0}']
)
def test_a_file_that_makes_no_sense_loses_the_target_not_the_server(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(Fs3Error) as error:
        Identity(tmp_path, "prod", T)
    assert error.value.code is Code.CORRUPT
    opened = open_target(TargetSettings(id=11, path=tmp_path), "prod")
    assert "says nothing that makes sense" in (opened.store.failed or "")
    opened.close()


def test_a_newer_format_and_a_store_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    with pytest.raises(Fs3Error, match="that says whose"):
        Identity(tmp_path, "prod", T)
    (tmp_path / FILE).write_text('{"format": 2, "cluster": "prod", "target": 11, "chain": 0}')
    with pytest.raises(Fs3Error, match="format 2; this release reads 1") as error:
        Identity(tmp_path, "prod", T)
    assert error.value.code is Code.UNSUPPORTED


# --- chains come and go ---------------------------------------------------------------------------


def test_a_target_is_bound_to_its_chain_before_it_serves(
    two: StorageCluster, tmp_path: Path
) -> None:
    assert chain_of(two, 1, tmp_path) == 0
    two.set_chain((1, S))
    assert chain_of(two, 1, tmp_path) == CHAIN
    assert state(two, 1) is LocalState.UPTODATE


def test_leaving_keeps_the_chunks_and_coming_back_finds_them(
    two: StorageCluster, tmp_path: Path
) -> None:
    two.set_chain((1, S), (2, S))
    two.write(1, b"x" * 1000)
    target = two.nodes[1].target
    two.call(lambda: target.on_chain(None))  # without having heard that it went OFFLINE
    assert target.core is None
    assert state(two, 2) is LocalState.ONLINE
    assert slots(two, 2) == 1
    two.set_chain((1, S), (2, OFF))
    assert state(two, 2) is LocalState.ONLINE
    assert slots(two, 2) == 1


def test_chunks_of_an_older_chain_are_gone_before_the_target_is_ready_for_the_next(
    two: StorageCluster, tmp_path: Path
) -> None:
    two.set_chain((1, S), (2, S))
    for slot in range(300):  # more than one turn
        two.write(slot, b"x")
    changed = on_change(two, 2)
    two.set_chain((2, OFF), number=OTHER)
    while state(two, 2) is not LocalState.ONLINE:
        assert changed.wait(60)
    assert slots(two, 2) == 0
    assert chain_of(two, 2, tmp_path) == OTHER


def test_an_emptying_that_breaks_off_is_not_taken_for_all_of_the_old_chain(
    two: StorageCluster, tmp_path: Path
) -> None:
    old = two.set_chain((1, S), (2, S))
    for slot in range(300):
        two.write(slot, b"x")
    target = two.nodes[1].target
    left = replace(old, replicas=(replace(old.replicas[1], state=OFF),))

    def break_off() -> None:
        target.on_chain(replace(left, chain=OTHER))
        assert target.report.state is LocalState.OFFLINE
        target.on_chain(None)
        assert target.report.state is LocalState.ONLINE

    two.call(break_off)
    assert chain_of(two, 2, tmp_path) == 0
    assert slots(two, 2) == 300
    changed = on_change(two, 2)
    two.call(lambda: target.on_chain(left))
    while state(two, 2) is not LocalState.ONLINE:
        assert changed.wait(60)
    assert slots(two, 2) == 0
    assert chain_of(two, 2, tmp_path) == CHAIN


def test_a_target_with_a_new_disk_does_not_serve_nothing_as_the_last_that_served(
    two: StorageCluster, tmp_path: Path
) -> None:
    two.set_chain((1, L))
    report = two.call(lambda: two.nodes[0].target.report)
    assert report.state is LocalState.OFFLINE
    assert "its directory holds nothing of that chain" in report.problem
    assert chain_of(two, 1, tmp_path) == 0
    two.set_chain((2, S), (1, OFF))
    report = two.call(lambda: two.nodes[0].target.report)
    assert (report.state, report.problem) == (LocalState.ONLINE, "")


def test_a_target_taken_into_another_chain_unheard_stops_serving_the_first(
    two: StorageCluster, tmp_path: Path
) -> None:
    two.set_chain((1, S), (2, S))
    two.write(1, b"x")
    changed = on_change(two, 1)
    two.set_chain((1, OFF), (2, S), number=OTHER)
    assert two.nodes[0].target.core is None
    while state(two, 1) is not LocalState.ONLINE:
        assert changed.wait(60)
    assert slots(two, 1) == 0
    assert two.read([(1, 0, 10)], 1)[0][0]["code"] == Code.NOT_SERVING
