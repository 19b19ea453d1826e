"""The ``fs3`` command on a real cluster, as a person types it; wrong input gets one clear line."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from running_cluster import RunningCluster

from fs3.client import processes

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def error_line(result: subprocess.CompletedProcess[str], exit_code: int = 1) -> str:
    """What a command that failed says: one line on stderr, no traceback."""
    assert result.returncode == exit_code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fs3: error: ")
    return lines[0]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some files, a symlink, an empty file and an empty directory."""
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty-directory").mkdir()
    (root / "large").write_bytes(os.urandom(3_000_000))
    (root / "deep" / "er" / "text").write_text("text\n")
    (root / "deep" / "script").write_text("#!/bin/sh\n")
    (root / "deep" / "script").chmod(0o755)
    (root / "empty").touch()
    (root / "link").symlink_to("deep/er/text")
    os.utime(root / "large", ns=(1_000_000_000, 2_000_000_000))
    return root


def test_status_shows_everything_and_says_healthy(cluster: RunningCluster) -> None:
    result = cluster.run("status", check=True)
    for word in ("local-1", "local-3", "101", "302", "SERVING", "UPTODATE", "HEALTHY", "->"):
        assert word in result.stdout


def test_status_as_json_is_complete(cluster: RunningCluster) -> None:
    found = json.loads(cluster.run("status", "--json", check=True).stdout)
    assert found["healthy"] is True
    assert [n["info"]["host"] for n in found["nodes"]] == ["local-1", "local-2", "local-3"]
    assert {t["public_state"] for t in found["targets"]} == {"SERVING"}
    assert found["capacity"]["capacity_bytes"] > 0
    assert all(len(chain["replicas"]) == 3 for chain in found["chains"])


def test_status_by_address_needs_the_clusters_name(cluster: RunningCluster) -> None:
    by_address = ("status", "--address", cluster.address)
    result = cluster.run(*by_address, "--cluster-id", cluster.cluster_id, check=True)
    assert "HEALTHY" in result.stdout
    line = error_line(cluster.run(*by_address, "--cluster-id", "another"))
    assert "WRONG_CLUSTER" in line
    assert f"this is cluster {cluster.cluster_id!r}" in line
    assert "--cluster-id" in line


def test_status_of_a_degraded_cluster_says_what_is_missing(cluster: RunningCluster) -> None:
    cluster.run("node", "stop", "2", check=True)
    while cluster.status().nodes[1].info.alive:
        pass  # each call asks the manager anew
    result = cluster.run("status")
    assert result.returncode == 3
    assert "DEGRADED" in result.stdout
    assert "node 2" in result.stdout
    cluster.run("node", "start", "2", check=True)
    cluster.wait_healthy()
    assert cluster.run("status").returncode == 0


def test_tree_comes_back_as_it_was_copied(
    cluster: RunningCluster, tree: Path, tmp_path: Path
) -> None:
    cluster.run("cp", "-r", str(tree), "fs3:/copied", check=True)
    back = tmp_path / "back"
    cluster.run("cp", "-r", "fs3:/copied", str(back), check=True)
    subprocess.run(["diff", "-r", "--no-dereference", tree, back], check=True)
    assert (back / "deep" / "script").stat().st_mode & 0o777 == 0o755
    assert (back / "large").stat().st_mtime_ns == 2_000_000_000
    cluster.run("cp", "-r", "fs3:/copied", "fs3:/copied-again", check=True)
    listed = cluster.run("ls", "/copied-again", check=True).stdout.split()
    assert listed == ["deep", "empty", "empty-directory", "large", "link"]
    usage = cluster.run("du", "/copied-again", check=True).stdout
    assert "5 files, 3 directories" in usage


def test_single_files_go_into_directories_and_over_files(
    cluster: RunningCluster, tree: Path, tmp_path: Path
) -> None:
    cluster.run("mkdir", "-p", "/into/this", check=True)
    cluster.run("cp", str(tree / "empty"), str(tree / "large"), "fs3:/into/this", check=True)
    assert cluster.run("ls", "fs3:/into/this", check=True).stdout.split() == ["empty", "large"]
    cluster.run("cp", str(tree / "deep" / "script"), "fs3:/into/this/large", check=True)
    assert cluster.run("cat", "/into/this/large", check=True).stdout == "#!/bin/sh\n"
    cluster.run("cp", "fs3:/into/this/large", str(tmp_path), check=True)
    assert (tmp_path / "large").read_text() == "#!/bin/sh\n"


def test_cat_writes_bytes_unchanged(cluster: RunningCluster, tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    (tmp_path / "data").write_bytes(data)
    cluster.run("cp", str(tmp_path / "data"), "fs3:/bytes", check=True)
    result = cluster.run("cat", "/bytes", "/bytes", check=True, text=False)
    assert result.stdout == data + data


def test_listing_and_stat_tell_the_facts(cluster: RunningCluster, tree: Path) -> None:
    cluster.run("cp", "-r", str(tree), "fs3:/facts", check=True)
    long = cluster.run("ls", "-l", "/facts", check=True).stdout
    assert "link -> deep/er/text" in long
    assert "3000000" in long
    facts = cluster.run("stat", "/facts/deep/script", check=True).stdout
    assert "-rwxr-xr-x (0755)" in facts
    assert "10 bytes" in facts


def test_moving_and_removing(cluster: RunningCluster) -> None:
    cluster.run("mkdir", "/moving", "/moving/a", "/moving/b", check=True)
    cluster.run("mv", "/moving/a", "/moving/c", check=True)
    cluster.run("mv", "/moving/c", "/moving/b", check=True)
    assert cluster.run("ls", "/moving/b", check=True).stdout == "c\n"
    assert "IS_DIRECTORY" in error_line(cluster.run("rm", "/moving"))
    cluster.run("rm", "-r", "fs3:/moving", check=True)
    assert "/moving" in error_line(cluster.run("ls", "/moving"))


def test_chunks_and_verify_show_equal_replicas(cluster: RunningCluster, tree: Path) -> None:
    cluster.run("cp", str(tree / "large"), "fs3:/replicated", check=True)
    shown = cluster.run("chunks", "/replicated", check=True).stdout
    replicas = re.findall(r"[123]0[12]: v1 [0-9a-f]{8}", shown)
    assert len(replicas) == 3 * 3  # 3 chunks of 1 MiB on 3 replicas
    result = cluster.run("verify", check=True)
    assert result.stdout.count("all equal") == 2
    assert "every replica of every chunk is the same" in result.stdout


def test_verify_fails_while_a_replica_cannot_be_compared(cluster: RunningCluster) -> None:
    cluster.run("node", "kill", "1", "--hold", check=True)
    result = cluster.run("verify", "--patience", "0")
    assert result.returncode == 1
    assert "NOT ALL COMPARED" in result.stdout


def test_verify_waits_for_a_replica_that_returns(cluster: RunningCluster) -> None:
    cluster.run("node", "kill", "2", check=True)
    result = cluster.run("verify", "--wait", "60", check=True)
    assert "every replica of every chunk is the same" in result.stdout


def test_killed_node_returns_and_held_node_does_not(cluster: RunningCluster) -> None:
    assert "restarted" in cluster.run("node", "kill", "1", check=True).stdout
    assert "held" in cluster.run("node", "kill", "3", "--hold", check=True).stdout
    assert processes.living(cluster.dir / "node-3" / "pid") is None
    assert "node-3 does not run" in error_line(cluster.run("node", "kill", "3"))


def test_up_and_down_say_what_they_do(tmp_path: Path, cluster: RunningCluster) -> None:
    directory = str(tmp_path / "small")
    shape = ("--nodes", "1", "--targets-per-node", "1", "--cluster-id", "small")
    try:
        result = cluster.run("up", "--dir", directory, *shape, check=True)
        assert "cluster 'small' is up" in result.stdout
        assert "runs already" in cluster.run("up", "--dir", directory, check=True).stdout
        line = error_line(cluster.run("up", "--dir", directory, "--nodes", "2"))
        assert "--nodes is 2" in line
    finally:
        result = cluster.run("down", "--dir", directory, check=True)
    assert "is down" in result.stdout
    assert "is down" in cluster.run("down", "--dir", directory, check=True).stdout
    for command in ("status", "ls"):
        line = error_line(cluster.run(command, "--dir", directory))
        assert "UNREACHABLE" in line
        assert f"{directory} is not running; `fs3 up` starts it" in line


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["up", "--nodes", "three"], 2, "--nodes"),
        (["up", "--dir", "/dev/null/x"], 1, "/dev/null"),
        (["status", "--dir", "/nonexistent"], 1, "fs3 up"),
        (["status", "--address", "nobody"], 1, "nobody"),
        (["status", "--address", "127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["status", "--address", "a:1", "--dir", "b"], 1, "--dir and --address"),
        (["ls", "not/absolute"], 1, "not/absolute"),
        (["ls", "/missing"], 1, "/missing"),
        (["cat", "/missing"], 1, "/missing"),
        (["cat", "/"], 1, "IS_DIRECTORY"),
        (["stat", "/missing"], 1, "/missing"),
        (["rm", "/missing"], 1, "/missing"),
        (["rm", "-r", "/"], 1, "is all there is"),
        (["mkdir", "/missing/below"], 1, "/missing"),
        (["mkdir", "/" + "x" * 256], 1, "NAME_TOO_LONG"),
        (["mv", "/missing", "/elsewhere"], 1, "/missing"),
        (["mv", "/missing"], 2, "a source and a target"),
        (["cp", "/local/only", "/also/local"], 2, "fs3:"),
        (["cp", "/missing-here", "fs3:/x"], 1, "/missing-here"),
        (["cp", "fs3:/missing", "x"], 1, "/missing"),
        (["cp", "fs3:/", "x"], 1, "-r"),
        (["chunks", "/missing"], 1, "/missing"),
        (["chunks", "/"], 1, "is not a file"),
        (["node", "kill", "7"], 1, "there is no node 7; 1-3 are"),
        (["node", "stop", "one"], 2, "'N'"),
        (["umount", "/"], 1, "not an fs3 mount"),
        (["mount", "/etc/passwd"], 1, "/etc/passwd is not a directory"),
    ],
)
def test_bad_input_gets_one_clear_line(
    cluster: RunningCluster, arguments: list[str], exit_code: int, words: str
) -> None:
    assert words in error_line(cluster.run(*arguments), exit_code)


def test_traceback_only_on_demand(cluster: RunningCluster) -> None:
    assert "Traceback" not in cluster.run("ls", "/missing").stderr
    assert "Traceback" in cluster.run("ls", "/missing", FS3_DEBUG="1").stderr


def test_help_and_version_need_no_cluster(cluster: RunningCluster) -> None:
    assert "fs3 up" in cluster.run("--help", check=True).stdout
    assert cluster.run("version", check=True).stdout.startswith("fs3 0.")
    assert "--install-completion" in cluster.run("--help", check=True).stdout
