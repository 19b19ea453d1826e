"""The parts of a local cluster that need no daemon: restart pauses, ports, descriptions, flags."""

from __future__ import annotations

import socket
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fs3.client import mounts, processes
from fs3.client.administration import ClusterStatus, NodeStatus
from fs3.client.cluster_directory import (
    ClusterDirectory,
    NodeSpecification,
    Shape,
    Specification,
    check_against,
    complete_shape,
    target_ids,
)
from fs3.client.daemon_configs import metaserver_config, storageserver_config
from fs3.client.local_cluster import LocalCluster
from fs3.client.ports import KeptPorts, PortReservation
from fs3.client.supervisor import (
    FAILURES_FILE,
    HEALTHY_AFTER_S,
    RESTART_S_MAX,
    RESTART_S_MIN,
    START_S_MAX,
    Backoff,
    Daemon,
)
from fs3.core.types import NodeId
from fs3.errors import Code, Fs3Error
from fs3.routing import NodeInfo

NODE = NodeSpecification(
    node=1,
    host="local-1",
    data_address="127.0.0.1:3",
    control_address="127.0.0.1:4",
    targets=(101, 102),
)
SPECIFICATION = Specification(
    cluster_id="c",
    replicas=1,
    metaserver_frame_address="127.0.0.1:1",
    metaserver_grpc_address="127.0.0.1:2",
    nodes=(NODE,),
)


def _pauses(count: int, ran_s: float) -> list[float]:
    backoff, now_s, pauses = Backoff(), 100.0, []
    for _ in range(count):
        backoff.started(now_s)
        now_s += ran_s
        backoff.ended(now_s)
        pauses.append(round(backoff.not_before_s - now_s, 3))
        now_s = backoff.not_before_s
    return pauses


def test_pauses_double_while_a_daemon_keeps_ending() -> None:
    assert _pauses(7, ran_s=0.1) == [0.2, 0.4, 0.8, 1.6, 3.2, RESTART_S_MAX, RESTART_S_MAX]


def test_pauses_start_over_after_a_healthy_run() -> None:
    assert _pauses(3, ran_s=HEALTHY_AFTER_S) == [RESTART_S_MIN] * 3


def test_only_ends_right_after_a_start_count_as_failures() -> None:
    backoff = Backoff()
    for start_s in (10.0, 20.0):
        backoff.started(start_s)
        backoff.ended(start_s + 0.5)
    assert backoff.failures == 2
    backoff.started(30.0)
    backoff.ended(30.0 + START_S_MAX)
    assert backoff.failures == 0


def test_a_daemon_ended_on_purpose_starts_at_once() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.ended(1000.0)
    backoff.forget()
    assert backoff.not_before_s == 0.0
    backoff.ended(2000.0)
    assert backoff.not_before_s == 2000.0 + RESTART_S_MIN


def test_a_daemon_that_others_end_is_no_failure_and_one_that_came_up_is_none_any_more() -> None:
    backoff = Backoff()
    for start_s in (10.0, 20.0, 30.0):
        backoff.started(start_s)
        backoff.ended(start_s + 0.5, by_itself=False)
        assert backoff.failures == 0
    backoff.started(40.0)
    backoff.ended(40.5)
    backoff.started(50.0)
    backoff.runs(50.5)
    assert backoff.failures == 1
    backoff.runs(50.0 + START_S_MAX)
    assert backoff.failures == 0


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    files = ClusterDirectory.at(tmp_path)
    files.node(1).mkdir()
    return Daemon(files, files.node(1), KeptPorts([]))


def test_a_daemon_that_cannot_be_started_now_is_started_later(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def spawn(*_: object, **__: object) -> None:
        attempts.append(1)
        raise (OSError(28, "no space left"), subprocess.SubprocessError("in preexec_fn"))[
            len(attempts) % 2
        ]

    monkeypatch.setattr(processes, "spawn", spawn)
    now_s = 100.0
    for _ in range(4):
        next_s = daemon.step(now_s)
        assert now_s < next_s <= now_s + RESTART_S_MAX
        now_s = next_s
    assert len(attempts) == 4
    assert (tmp_path / "node-1" / FAILURES_FILE).read_text() == "3\n"


@pytest.mark.parametrize(
    ("status", "failures"), [(-9, 0), (-15, 0), (0, 0), (1, 3), (-11, 3), (-6, 3)]
)
def test_only_a_daemon_that_ends_by_itself_does_not_come_up(
    daemon: Daemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    failures: int,
) -> None:
    dead = SimpleNamespace(pid=1, is_alive=lambda: False, wait=lambda: status)
    monkeypatch.setattr(processes, "spawn", lambda *_, **__: dead)
    monkeypatch.setattr(processes, "read_record", lambda _: dead)
    monkeypatch.setattr(processes, "living", lambda _: None)
    now_s = 100.0
    for _ in range(3):
        daemon.step(now_s)  # starts it
        now_s += 1.0
        now_s = daemon.step(now_s)  # finds it dead
    path = tmp_path / "node-1" / FAILURES_FILE
    assert (int(path.read_text()) if path.exists() else 0) == failures


def test_a_count_of_failures_that_cannot_be_written_keeps_nobody_from_starting(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node-1" / FAILURES_FILE).mkdir()
    attempts = []

    def spawn(*_: object, **__: object) -> None:
        attempts.append(1)
        raise OSError(28, "no space left")

    monkeypatch.setattr(processes, "spawn", spawn)
    now_s = 100.0
    for _ in range(3):
        now_s = daemon.step(now_s)
    assert len(attempts) == 3


def test_a_record_that_cannot_be_written_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    with pytest.raises(OSError, match="pid"):
        processes.write_record(tmp_path / "pid")
    assert [path.name for path in tmp_path.iterdir()] == ["pid"]


def test_a_process_that_starts_while_the_manager_is_asked_is_not_taken_for_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.files.write(SPECIFICATION)
    ages_ms = [60_000]

    class Process:
        def age_ms(self) -> int:
            return ages_ms[0]

    def status() -> ClusterStatus:
        """The manager has heard the dead one 10 ms ago; meanwhile a new one is 300 ms old."""
        info = NodeInfo(
            node=NodeId(1),
            host="local-1",
            data_address=NODE.data_address,
            control_address=NODE.control_address,
            incarnation=1,
            alive=True,
        )
        ages_ms[0] = 300
        return ClusterStatus(
            cluster_id="c",
            routing_version=1,
            clients=0,
            nodes=(NodeStatus(info=info, heartbeat_age_ms=10),),
            targets=(),
            chains=(),
        )

    alive = [None, Process()]  # before it is asked, after
    monkeypatch.setattr(cluster, "status", status)
    monkeypatch.setattr(processes, "living", lambda _: alive[ages_ms[0] == 300])
    assert "node 1 does not run" in cluster.problems()
    ages_ms[0] = 60_000
    assert cluster._all_registered() == ["node 1 does not run"]


def test_a_mount_that_ends_while_mounts_are_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mountpoint in ("/a", "/b"):
        path = mounts.MountFiles(tmp_path, mountpoint).path("json")
        path.write_text(f'{{"mountpoint": "{mountpoint}"}}\n')
    names = sorted(tmp_path.glob("*.json"))
    mounts.MountFiles(tmp_path, "/a").forget()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(names))
    assert [files.mountpoint for files in mounts.recorded(tmp_path)] == ["/b"]


def test_a_mount_is_recorded_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who lists mounts in that moment, ``fs3 down`` for one, would find half a line."""
    seen = []

    def write_text(path: Path, text: str) -> None:
        path.open("w").close()
        seen.append(mounts.recorded(tmp_path))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(Fs3Error, match="not mounted"):
        mounts.start(tmp_path, "/no/such/place", ["--unknown-argument"])
    assert mounts.recorded(tmp_path) == []


def test_reserved_ports_are_refused_to_others_but_daemons_may_listen() -> None:
    with PortReservation(4) as reservation:
        assert len(set(reservation.ports)) == 4
        for port in reservation.ports:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)) as daemon:  # sets SO_REUSEADDR
                assert daemon.getsockname()[1] == port


def test_kept_ports_are_kept_from_when_their_daemon_is_down() -> None:
    with PortReservation(1) as reservation:
        address = "127.0.0.1", reservation.ports[0]
    with socket.create_server(address):
        kept = KeptPorts([address[1]])
        kept.keep()  # it listens: nothing to keep
    kept.keep()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(address)
    with socket.create_server(address) as daemon:
        kept.keep()
        assert socket.create_connection(address).close() is None
        assert daemon.accept()[0].close() is None
    kept.close()


def test_description_comes_back_as_it_was_written(tmp_path: Path) -> None:
    files = ClusterDirectory.at(tmp_path)
    assert not files.exists()
    files.write(SPECIFICATION)
    assert files.exists()
    assert files.read() == SPECIFICATION


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", Code.INVALID),
        ("[]", Code.INVALID),
        ("{}", Code.INVALID),
        ('{"format": 1, "nodes": [], "unknown": 1}', Code.INVALID),
        ('{"format": 2, "nodes": []}', Code.UNSUPPORTED),
    ],
)
def test_bad_description_is_refused_by_name(tmp_path: Path, content: str, code: Code) -> None:
    files = ClusterDirectory.at(tmp_path)
    files.description.write_text(content)
    with pytest.raises(Fs3Error) as caught:
        files.read()
    assert caught.value.code is code
    assert "cluster.json" in caught.value.detail


def test_missing_cluster_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(Fs3Error, match="fs3 up") as caught:
        ClusterDirectory.at(tmp_path).read()
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    "shape",
    [
        Shape(nodes=0),
        Shape(nodes=65),
        Shape(targets_per_node=0),
        Shape(targets_per_node=100),
        Shape(nodes=2, replicas=3),
        Shape(replicas=0),
        Shape(cluster_id=""),
        Shape(cluster_id="a b"),
    ],
)
def test_impossible_shapes_are_refused(shape: Shape) -> None:
    with pytest.raises(Fs3Error) as caught:
        complete_shape(shape)
    assert caught.value.code is Code.INVALID
    assert "--" in caught.value.detail


def test_defaults_fit_together_with_few_nodes() -> None:
    assert complete_shape(Shape()) == (3, 2, 3, "local")
    assert complete_shape(Shape(nodes=1)) == (1, 2, 1, "local")


@pytest.mark.parametrize(
    ("shape", "flag"),
    [
        (Shape(nodes=2), "--nodes"),
        (Shape(targets_per_node=1), "--targets-per-node"),
        (Shape(replicas=2), "--replicas"),
        (Shape(cluster_id="d"), "--cluster-id"),
    ],
)
def test_flags_that_contradict_the_cluster_are_refused(shape: Shape, flag: str) -> None:
    check_against(Shape(nodes=1, targets_per_node=2, replicas=1, cluster_id="c"), SPECIFICATION)
    with pytest.raises(Fs3Error, match=flag):
        check_against(shape, SPECIFICATION)


def test_target_ids_name_their_node() -> None:
    assert target_ids(2, 3) == (201, 202, 203)


def test_configurations_are_toml_with_extra_settings_winning(tmp_path: Path) -> None:
    files = ClusterDirectory.at(tmp_path / 'a "quoted" name')
    text = metaserver_config(files, SPECIFICATION, {"workers": 2, "manager": {"lease_ms": 900}})
    metaserver = tomllib.loads(text)
    assert metaserver["data_dir"] == str(files.metaserver / "data")
    assert (metaserver["workers"], metaserver["manager"]["lease_ms"]) == (2, 900)
    storage = tomllib.loads(
        storageserver_config(files, SPECIFICATION, NODE, 1 << 30, {"host": "other"})
    )
    assert storage["host"] == "other"
    assert [target["id"] for target in storage["targets"]] == [101, 102]
    assert storage["targets"][1]["capacity_bytes"] == 1 << 30
