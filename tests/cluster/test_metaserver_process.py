"""The metaserver as a process: starting, ending, dying, and what strangers may send it."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fs3 import frames
from fs3.core.types import LocalState
from fs3.errors import Code, Fs3Error
from fs3.proto import cluster_pb2, common_pb2
from fs3.proto import metadata_pb2 as pb
from fs3.rpc import Channel, FrameChannel, Stub, methods
from fs3.rpc_grpc import GrpcChannel
from fs3.transport.address import parse
from fs3.types import Credentials

pytestmark = pytest.mark.cluster

CLUSTER = "process-test"
ROOT = Credentials(uid=0, gid=0)
METADATA = pb.DESCRIPTOR.services_by_name["Metadata"]
MANAGER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
END_S = 60.0  # a hang, not slowness, is a failure


class Process:
    """A metaserver that runs, and ways to talk to it."""

    def __init__(self, directory: Path, *more: str) -> None:
        self._ports = directory / "ports.json"
        self._ports.unlink(missing_ok=True)
        self._channels: list[Channel] = []
        self.process = subprocess.Popen(
            _command(directory, CLUSTER, *more), stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if json.loads(line)["event"] == "ready":
                break
        else:
            pytest.fail(f"it ended with status {self.process.wait()}")
        # Whoever does not read the log would stop a talkative daemon.
        self._log = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._log.start()
        said = json.loads(self._ports.read_text())
        self.frame_address: str = said["listen"]
        self.grpc_address: str = said["grpc_listen"]

    def stub(self, service=METADATA, *, grpc: bool = False, cluster: str = CLUSTER) -> Stub:
        channel: Channel = (
            GrpcChannel([self.grpc_address], cluster)
            if grpc
            else FrameChannel([self.frame_address], cluster)
        )
        self._channels.append(channel)
        return Stub(channel, service, cluster, client_id=77, timeout_s=END_S)

    def end(self, number: signal.Signals) -> int:
        """Send it a signal if it still runs, and wait; its exit status."""
        for channel in self._channels:
            channel.close()
        self.process.send_signal(number)
        status = self.process.wait(END_S)
        self._log.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def _command(directory: Path, cluster: str = CLUSTER, *more: str) -> Sequence[str]:
    return [
        *(sys.executable, "-m", "fs3.metaserver", "--cluster-id", cluster),
        *("--data-dir", str(directory / "data"), "--port-file", str(directory / "ports.json")),
        *("--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"),
        *more,
    ]


@contextlib.contextmanager
def running(directory: Path, *more: str) -> Iterator[Process]:
    made = Process(directory, *more)
    try:
        yield made
    finally:
        made.end(signal.SIGKILL)


@pytest.fixture
def metaserver(tmp_path: Path) -> Iterator[Process]:
    with running(tmp_path) as made:
        yield made


def make_directory(stub: Stub, name: bytes) -> pb.InodeReply:
    request = pb.MakeDirectoryRequest(parent=1, name=name, permissions=0o755)
    return stub.make_directory(request, who=ROOT)


def names(stub: Stub) -> list[bytes]:
    found: list[bytes] = []
    more = True
    while more:
        request = pb.ReadDirectoryRequest(inode=1, after=found[-1] if found else b"", limit=1000)
        page = stub.read_directory(request, who=ROOT)
        found += [entry.name for entry in page.entries]
        more = page.more
    return found


def failure(command: Sequence[str]) -> str:
    """What a start that must fail says, without the usage."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=END_S, check=False)
    assert ended.returncode == 1, ended
    assert "Traceback" not in ended.stderr
    (said,) = (line for line in ended.stderr.splitlines() if line.startswith("fs3-metaserver: "))
    return said


# Starting and ending.


def test_sigterm_ends_it_with_status_0_though_streams_and_connections_are_open(metaserver):
    stub = metaserver.stub()
    make_directory(stub, b"d")
    watcher = metaserver.stub(MANAGER, grpc=True)
    stream = watcher.watch_routing(cluster_pb2.GetRoutingRequest())
    next(stream)
    metaserver.process.send_signal(signal.SIGTERM)
    assert metaserver.process.wait(END_S) == 0
    with contextlib.suppress(Fs3Error):
        assert list(stream) == []


def test_sigint_ends_it_too(metaserver):
    assert metaserver.end(signal.SIGINT) == 0


SIGNALLED = """
import os, signal, sys, threading
from fs3.metaserver.app import main

def wait(self, timeout=None, wait=threading.Condition.wait):
    if sys._getframe(2).f_code.co_name == "serve":
        os.kill(os.getpid(), signal.SIGTERM)  # with the condition's lock held
    return wait(self, timeout)

threading.Condition.wait = wait
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_ends_it_at_whatever_moment_it_comes(tmp_path):
    _, _, _, *arguments = _command(tmp_path)
    command = [sys.executable, "-c", SIGNALLED, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["event"] == "ready":
                process.send_signal(signal.SIGTERM)
                break
        try:
            assert process.wait(END_S) == 0
        finally:
            process.kill()


def test_namespace_and_chains_survive_kill_9(tmp_path):
    patient = ("--manager.lease-ms", "600000")  # the nodes are not heard again, and not lost either
    with running(tmp_path, *patient) as first:
        made = make_directory(first.stub(), b"kept")
        manager = first.stub(MANAGER)
        for node in (1, 2, 3):
            targets = [cluster_pb2.TargetReport(target=node, local_state=LocalState.ONLINE)]
            info = cluster_pb2.Node(
                node=node, host=f"h{node}", data_address="127.0.0.1:1", incarnation=5
            )
            manager.register_node(cluster_pb2.RegisterNodeRequest(node=info, targets=targets))
        before = manager.create_chains(cluster_pb2.CreateChainsRequest(replicas=3))
        assert len(before.chains) == 1
        first.end(signal.SIGKILL)
    with running(tmp_path, *patient) as second:
        lookup = pb.LookupRequest(parent=1, name=b"kept")
        assert second.stub().lookup(lookup, who=ROOT).inode == made.inode
        after = second.stub(MANAGER).get_routing(cluster_pb2.GetRoutingRequest())
        assert after == before


def test_everything_acknowledged_before_kill_9_is_there(tmp_path):
    acknowledged: list[bytes] = []
    with running(tmp_path) as first:
        stub = first.stub()
        enough = threading.Event()

        def create(writer: int) -> None:
            for i in range(10_000):
                name = b"%d-%d" % (writer, i)
                try:
                    make_directory(stub, name)
                except Fs3Error:
                    return
                acknowledged.append(name)
                if len(acknowledged) >= 200:
                    enough.set()

        writers = [threading.Thread(target=create, args=(w,)) for w in range(4)]
        for writer in writers:
            writer.start()
        assert enough.wait(END_S)
        first.process.kill()
        for writer in writers:
            writer.join()
    with running(tmp_path) as second:
        assert set(acknowledged) <= set(names(second.stub()))


def test_data_of_another_cluster_is_refused(tmp_path):
    with running(tmp_path) as first:
        first.end(signal.SIGTERM)
    said = failure(_command(tmp_path, "other"))
    assert "this data belongs to cluster 'process-test'; the settings say 'other'" in said


def test_second_metaserver_on_the_same_data_is_refused(metaserver, tmp_path):
    assert "one metaserver at a time" in failure(_command(tmp_path))
    make_directory(metaserver.stub(), b"still-serving")


def test_taken_port_is_named(metaserver, tmp_path):
    for flag, address in (
        ("--listen", metaserver.frame_address),
        ("--grpc-listen", metaserver.grpc_address),
    ):
        command = _command(tmp_path / "other", CLUSTER, "--engine", "memory", flag, address)
        assert f"cannot listen on {address}" in failure(command)


def test_misspelt_setting_is_named_with_the_nearest(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("[manager]\nlease_sm = 5\n")
    said = failure(_command(tmp_path, CLUSTER, "--config", str(config)))
    assert "manager.lease_sm" in said
    assert "manager.lease_ms" in said


def test_settings_that_do_not_fit_together_are_named(tmp_path):
    said = failure(_command(tmp_path, CLUSTER, "--manager.heartbeat-ms", "2000"))
    assert "heartbeat_ms 2000 is not allowed" in said


def test_python_without_assertions_is_refused(tmp_path):
    interpreter, *rest = _command(tmp_path)
    assert "python -O is not allowed" in failure([interpreter, "-O", *rest])


# What strangers send.


@pytest.fixture
def unharmed(metaserver) -> Iterator[Process]:
    """The metaserver; at the end it still serves, on both ports, and what it stores is the same."""
    stub = metaserver.stub()
    make_directory(stub, b"before")
    before = stub.get_attributes(pb.GetAttributesRequest(inodes=[1]))
    yield metaserver
    for again in (stub, metaserver.stub(), metaserver.stub(grpc=True)):
        assert names(again) == [b"before"]
        assert again.get_attributes(pb.GetAttributesRequest(inodes=[1])) == before


def send(address: str, data: bytes) -> bytes:
    """Send ``data`` on a connection of its own; what comes back until the other side closes."""
    host, port = parse(address)
    with socket.create_connection((host, port), timeout=END_S) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:  # it may have seen enough before all was sent
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65_536):
                answer += piece
    return answer


GARBAGE = [b"\0" * 100, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 500, b"fs3f", b""]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_on_the_frame_port_harms_nobody(unharmed, garbage):
    answer = send(unharmed.frame_address, garbage)
    if len(garbage) >= frames.HEADER_BYTES:
        header = frames.decode(answer)
        error = frames.decode_error(answer[frames.HEADER_BYTES :])
        assert header.kind == frames.FrameKind.ERROR
        assert error.code is Code.PROTOCOL
        assert "expected b'fs3f'" in error.detail


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_on_the_grpc_port_harms_nobody(unharmed, garbage):
    send(unharmed.grpc_address, garbage)


def test_frame_of_a_message_that_is_none_is_refused(unharmed):
    number = next(m.number for m in methods(METADATA) if m.name == "MakeDirectory")
    head = b"\xff" * 50
    tag = frames.cluster_tag(CLUSTER)
    start = frames.encode(frames.FrameKind.REQUEST, number, tag, 1, head, 0)
    with socket.create_connection(parse(unharmed.frame_address), timeout=END_S) as connection:
        connection.sendall(start + head)
        reader = connection.makefile("rb")
        header = frames.decode(reader.read(frames.HEADER_BYTES))
        error = frames.decode_error(reader.read(header.head_bytes))
        reader.close()
    assert error.code is Code.PROTOCOL
    assert "no MakeDirectoryRequest" in error.detail


@pytest.mark.parametrize("grpc", [False, True], ids=["frames", "grpc"])
def test_request_for_another_cluster_is_refused_with_both_names(unharmed, grpc):
    stub = unharmed.stub(grpc=grpc, cluster="elsewhere")
    with pytest.raises(Fs3Error, match=r"elsewhere|another one") as caught:
        make_directory(stub, b"x")
    assert caught.value.code is Code.WRONG_CLUSTER
    assert CLUSTER in caught.value.detail


def test_request_of_another_protocol_version_is_refused_with_both_numbers(unharmed):
    method = next(m for m in methods(METADATA) if m.name == "MakeDirectory")
    request = pb.MakeDirectoryRequest(parent=1, name=b"x", permissions=0o755)
    request.header.CopyFrom(
        common_pb2.RequestHeader(cluster_id=CLUSTER, protocol_version=99, client_id=1)
    )
    for channel in (
        FrameChannel([unharmed.frame_address], CLUSTER),
        GrpcChannel([unharmed.grpc_address], CLUSTER),
    ):
        with contextlib.closing(channel), pytest.raises(Fs3Error) as caught:
            channel.call(method, request, END_S)
        assert caught.value.code is Code.PROTOCOL
        assert re.search(r"\b99\b.*\b1\b", caught.value.detail)


@pytest.mark.parametrize("grpc", [False, True], ids=["frames", "grpc"])
def test_path_with_nul_and_chunk_size_of_three_are_refused(unharmed, grpc):
    stub = unharmed.stub(grpc=grpc)
    with pytest.raises(Fs3Error, match=r"a\\x00b"):
        make_directory(stub, b"a\0b")
    with pytest.raises(Fs3Error, match=r"a\\x00b"):
        stub.resolve(pb.ResolveRequest(path=b"/a\0b"), who=ROOT)
    with pytest.raises(Fs3Error, match="chunk size 3 bytes is not allowed"):
        stub.set_layout(pb.SetLayoutRequest(inode=1, layout={"chunk_bytes": 3}), who=ROOT)
