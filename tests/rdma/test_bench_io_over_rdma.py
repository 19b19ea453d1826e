"""``fs3 bench io`` where there is an RDMA device: its fronts beside a bare loop of verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running_cluster import RunningCluster

pytestmark = [pytest.mark.rdma, pytest.mark.cluster, pytest.mark.long]
SMALL = ("--rounds", "1", "--seconds", "0.02", "--file-size", "2MiB", "--fronts", "batch,ring")


def test_rdma_is_measured_beside_a_bare_loop(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    with RunningCluster(tmp_path / "cluster") as cluster:
        cells = ("--sizes", "4KiB,256KiB", "--depths", "1,4", "--transports", "tcp,rdma")
        files = ("--json", str(result), "--scratch", str(tmp_path))
        ran = cluster.run("bench", "io", *SMALL, *cells, *files)
        assert ran.returncode == 0, ran.stderr
    report = json.loads(result.read_text())
    assert report["notes"] == []
    for line in report["lines"]:
        assert line["gb_per_s"] > 0
        assert line["limit"] == {"tcp": "bare tcp", "rdma": "bare rdma"}.get(line["transport"], "")
    ours = [line for line in report["lines"] if line["transport"] == "rdma"]
    assert len(ours) == 2 * 2 * 2 * 2  # operations, sizes, depths, fronts
