"""``fs3 bench io``, small: every front and limit is measured, and nothing is left behind."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from running_cluster import RunningCluster

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.long, pytest.mark.timeout(300)]
SMALL = ("--rounds", "1", "--seconds", "0.01", "--file-size", "2MiB")
LIMITS = {"memcpy", "bare tcp", "bare file", "empty fuse"}


def test_every_front_is_measured_beside_its_limit(cluster: RunningCluster, tmp_path: Path) -> None:
    json_file, plot = tmp_path / "result.json", tmp_path / "result.svg"
    files = ("--json", str(json_file), "--plot", str(plot), "--scratch", str(tmp_path))
    cells = ("--sizes", "4KiB,64KiB", "--depths", "1,4", "--transports", "tcp,pigeon")
    ran = cluster.run("bench", "io", *SMALL, *cells, *files)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(json_file.read_text())
    assert report["notes"] == ["pigeon: this fs3 has no such transport"]
    for operation, size, depth in product(("read", "write"), (4 << 10, 64 << 10), (1, 4)):
        lines = {
            line["front"]: line
            for line in report["lines"]
            if (line["operation"], line["size"], line["depth"]) == (operation, size, depth)
        }
        alone = {"native"} if depth == 1 else set()
        assert set(lines) == LIMITS | {"batch", "ring", "fuse"} | alone
        for name, line in lines.items():
            assert line["gb_per_s"] > 0
            assert bool(line["limit"]) == (name not in LIMITS)
            if line["limit"]:
                expected = line["ios_per_s"] / lines[line["limit"]]["ios_per_s"]
                assert line["ratio"] == pytest.approx(expected)
    assert any(line.split()[-2:] == ["bare", "tcp"] for line in ran.stdout.splitlines())
    drawn = ElementTree.fromstring(plot.read_text())
    assert len(drawn.findall(".//{*}g")) == 4  # two operations, two depths
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.svg"]
    assert not [name for name in cluster.client().listdir("/") if name.startswith("bench-io")]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_it_can_start_a_cluster_of_its_own(cluster: RunningCluster, tmp_path: Path) -> None:
    cells = ("--sizes", "4KiB", "--depths", "1", "--operations", "read", "--fronts", "ring")
    ran = cluster.run("bench", "io", *SMALL, *cells, "--own", "--scratch", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert "ring tcp" in ran.stdout
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in ran.stdout
