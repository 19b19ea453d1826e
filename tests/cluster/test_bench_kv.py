"""``fs3 bench kv`` goes on when a storageserver is killed in its middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_run import run_bench
from kv_cluster import kv_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]
SMALL = ("--sizes", "64KiB", "--batches", "32", "--rounds", "2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture(autouse=True)
def healthy(cluster):
    yield
    for node in (1, 2, 3):
        cluster.release(node)
    cluster.wait_healthy()


def fs3_lines(lines):
    found = [line for line in lines if line["who"].startswith("fs3")]
    assert {line["operation"] for line in found} == {"put", "get", "exists", "match"}
    return found


@pytest.mark.parametrize("node", [1, 2, 3])
def test_with_three_replicas_nothing_is_missed(cluster, tmp_path: Path, node):
    lines = run_bench(
        cluster,
        tmp_path / "result.json",
        *("kv", *SMALL, "--replicas", "3"),
        shows="fs3 tcp",
        then=lambda: cluster.kill(node),
    )
    assert [line["misses"] for line in fs3_lines(lines)] == [0] * 8


def test_with_one_replica_what_a_dead_server_has_is_missed_and_nothing_else(
    cluster, tmp_path: Path
):
    def kill_and_hold() -> None:
        cluster.hold(2)
        cluster.kill(2)

    lines = run_bench(
        cluster,
        tmp_path / "result.json",
        *("kv", *SMALL, "--replicas", "1"),
        shows="fs3 tcp",
        then=kill_and_hold,
    )
    found = fs3_lines(lines)
    assert found[0]["misses"] == 0
    for line in found[-4:]:
        assert line["misses"] > 0
        assert line["keys_per_s"] > 0
    get = next(line for line in found[-4:] if line["operation"] == "get")
    asked = get["rounds"] * get["batch"] * 64
    assert get["misses"] < asked, "the others' values were missed, too"
    assert get["gb_per_s"] > 0


def test_a_trace_goes_on(cluster, tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    requests = [list(range(10 * (i % 20), 10 * (i % 20) + 10)) for i in range(400)]
    trace.write_text("".join(f'{{"hash_ids": {blocks}}}\n' for blocks in requests))
    ran = cluster.run("bench", "kv", "--trace", str(trace), "--page", "16KiB", check=True)
    assert "400 requests, 4000 pages" in ran.stdout
    assert "95.0 % of the pages were there" in ran.stdout
