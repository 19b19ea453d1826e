"""``fs3 bench loader`` goes on when a storageserver is killed in its middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_run import run_bench
from running_cluster import RunningCluster

from fs3.client.cluster_directory import Shape

SMALL = ("--samples", "16KiB", "--workers", "0,2", "--records", "20000", "--rounds", "3")


def of_fs3(lines):
    found = [line for line in lines if line["who"] == "fs3"]
    assert [line["workers"] for line in found] == [0, 2]
    return found


@pytest.mark.parametrize("node", [1, 2, 3])
def test_with_three_replicas_nothing_is_missed(cluster, tmp_path: Path, node):
    lines = run_bench(
        cluster,
        tmp_path / "result.json",
        *("loader", *SMALL, "--seconds", "1"),
        shows="tcp",
        then=lambda: cluster.kill(node),
    )
    for line in of_fs3(lines):
        assert line["missed"] == 0
        assert line["samples_per_s"] > 0


def test_with_one_replica_it_goes_on_when_the_server_is_back(tmp_path: Path):
    with RunningCluster(tmp_path / "data", Shape(replicas=1)) as cluster:
        lines = run_bench(
            cluster,
            tmp_path / "result.json",
            *("loader", *SMALL, "--seconds", "2"),
            shows="tcp",
            then=lambda: cluster.kill(2),
        )
        assert all(line["samples_per_s"] > 0 for line in of_fs3(lines))
