"""The native client as a program uses it, against a cluster in the same process."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import threading

import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster, wait_until

import fs3
from fs3 import dataplane
from fs3.client.api import Client
from fs3.errors import Code, Fs3Error
from fs3.metaserver import keys
from fs3.rpc_grpc import serve_grpc
from fs3.types import Credentials

pytestmark = pytest.mark.usefixtures("stays_gathered")


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


@pytest.fixture
def client(cluster) -> Client:
    return cluster.client()


def random_bytes(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# Connecting.


def test_connect_takes_an_address_a_directory_or_the_environment(cluster, tmp_path, monkeypatch):
    with fs3.connect(cluster.meta_address, cluster_id="fake") as client:
        assert client.listdir("/") == []
    description = {
        "cluster_id": "fake",
        "metaserver_frame_address": cluster.meta_address,
        "metaserver_grpc_address": "127.0.0.1:1",
    }
    (tmp_path / "cluster.json").write_text(json.dumps(description))
    with fs3.connect(tmp_path) as client:
        assert client.cluster_id == "fake"
        assert client.listdir("/") == []
    monkeypatch.setenv("FS3_ADDRESS", cluster.meta_address)
    monkeypatch.setenv("FS3_CLUSTER_ID", "fake")
    with fs3.connect() as client:
        assert client.listdir("/") == []


def test_a_wrong_address_or_cluster_is_one_clear_error(cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("FS3_ADDRESS", raising=False)
    with pytest.raises(Fs3Error, match="FS3_ADDRESS"):
        fs3.connect()
    with pytest.raises(Fs3Error, match=r"cluster\.json"):
        fs3.connect(tmp_path)
    with pytest.raises(Fs3Error, match="fake") as caught:
        fs3.connect(cluster.meta_address, cluster_id="other")
    assert caught.value.code is Code.WRONG_CLUSTER
    cluster.stop_metaserver()
    with pytest.raises(Fs3Error) as caught:
        fs3.connect(cluster.meta_address, cluster_id="fake", connect_timeout_s=0.2)
    assert caught.value.code is Code.UNREACHABLE


def test_a_metaserver_that_speaks_only_grpc_is_called_over_grpc(cluster):
    server, port = serve_grpc(cluster.handlers, "127.0.0.1:0")
    try:
        with fs3.connect(f"127.0.0.1:{port}", cluster_id="fake") as client:
            client.mkdir("/over-grpc")
            client.write("/over-grpc/f", b"x" * 100)
            assert client.read_batch([("/over-grpc/f", 90, 100)]) == [b"x" * 10]
            client.write_batch([("/over-grpc/f", 0, b"y")])
            assert client.read("/over-grpc/f")[:2] == b"yx"
    finally:
        server.stop(0).wait()


def test_connecting_waits_for_a_metaserver_that_starts(cluster):
    cluster.stop_metaserver()
    starter = threading.Timer(0.3, cluster.start_metaserver)
    starter.start()
    with fs3.connect(cluster.meta_address, cluster_id="fake") as client:
        assert client.listdir("/") == []
    starter.join()


def test_a_closed_client_says_so(client):
    client.close()
    with pytest.raises(Fs3Error, match="closed"):
        client.open("/x", "w")


# Files.


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17, 40 * CHUNK_BYTES + 1])
def test_a_file_is_read_as_it_was_written(client, size):
    content = random_bytes(size)
    assert client.write("/f", content) == size
    assert client.read("/f") == content
    assert client.stat("/f").st_size == size
    with client.open("/f", "rb") as file:
        assert file.read() == content


def test_text_modes_are_those_of_the_builtin_open(client):
    with client.open("/t", "w") as file:
        file.write("erste Zeile\nzweite: äöü\n")
    with client.open("/t", encoding="utf-8") as file:
        assert isinstance(file, io.TextIOWrapper)
        assert list(file) == ["erste Zeile\n", "zweite: äöü\n"]
    with client.open("/t", "a") as file:
        file.write("dritte\n")
    assert client.read("/t").decode().splitlines()[2] == "dritte"
    with client.open("/t", "r+") as file:
        file.write("ERSTE")
        file.seek(0)
        assert file.readline() == "ERSTE Zeile\n"
    with client.open("/t", "w+", newline="\r\n") as file:
        file.write("a\nb\n")
    assert client.read("/t") == b"a\r\nb\r\n"


def test_modes_refuse_what_the_builtin_open_refuses(client):
    client.write("/f", b"abc")
    with pytest.raises(FileExistsError):
        client.open("/f", "x")
    with pytest.raises(FileNotFoundError, match="/none"):
        client.open("/none")
    with pytest.raises(IsADirectoryError):
        client.open("/")
    for mode in ("", "rw", "z", "rbt", "rr"):
        with pytest.raises(Fs3Error, match="mode"):
            client.open("/f", mode)
    with client.open("/f", "rb", buffering=0) as file, pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    with client.open("/f", "ab", buffering=0) as file, pytest.raises(io.UnsupportedOperation):
        file.read()
    with pytest.raises(ValueError, match="closed"):
        file.tell()
    with client.open("/new", "x") as file:
        file.write("made")
    assert client.read("/new") == b"made"


def test_seek_overwrite_and_truncate(client):
    with client.open_file("/f", "w+") as file:
        file.write(b"0123456789")
        assert file.seek(4) == 4
        file.write(b"XY")
        assert file.seek(-3, os.SEEK_END) == 7
        assert file.read(100) == b"789"
        assert file.pread(4, 3) == b"3XY6"
        assert file.truncate(5) == 5
        assert file.pread(100, 0) == b"0123X"
        file.truncate(8)
        assert file.pread(100, 0) == b"0123X\0\0\0"
        file.pwrite(b"!", 9)
        assert len(file) == 10
    assert client.read("/f") == b"0123X\0\0\0\0!"
    client.truncate("/f", 2)
    assert client.read("/f") == b"01"
    client.truncate("/f", 4)
    assert client.read("/f") == b"01\0\0"


def test_a_sparse_file_has_zeros_in_its_holes(client):
    with client.open_file("/s", "wb") as file:
        file.pwrite(b"end", 10 * CHUNK_BYTES)
    content = client.read("/s")
    assert content == bytes(10 * CHUNK_BYTES) + b"end"
    client.truncate("/s", 20 * CHUNK_BYTES)
    assert client.read("/s")[11 * CHUNK_BYTES :] == bytes(9 * CHUNK_BYTES)


def test_a_cut_and_grown_file_shows_no_old_bytes(client):
    client.write("/f", b"\xff" * (3 * CHUNK_BYTES))
    client.truncate("/f", CHUNK_BYTES + 5)
    client.truncate("/f", 3 * CHUNK_BYTES)
    assert client.read("/f") == b"\xff" * (CHUNK_BYTES + 5) + bytes(2 * CHUNK_BYTES - 5)


def test_small_writes_leave_in_chunk_sized_ones_and_are_readable_at_once(cluster, client):
    with client.open_file("/f", "w+") as file:
        for i in range(1000):
            file.write(bytes([i % 256]) * 100)
        assert cluster.requests(dataplane.WRITE_BATCH) <= 2
        assert file.pread(100, 500 * 100) == bytes([500 % 256]) * 100
        with client.open_file("/f") as other:
            assert len(other) == 100_000
            assert other.pread(100, 999 * 100) == bytes([999 % 256]) * 100
        assert client.stat("/f").st_size == 100_000
    assert len(client.read("/f")) == 100_000


def test_length_is_visible_to_others_after_flush(cluster, client):
    other = cluster.client()
    with client.open_file("/f", "wb") as file:
        file.write(b"x" * 10)
        assert other.stat("/f").st_size == 0
        file.flush()
        assert other.stat("/f").st_size == 10
        assert other.read("/f") == b"x" * 10
        file.write(b"y" * 10)
    assert other.read("/f") == b"x" * 10 + b"y" * 10


def test_flush_of_a_wrapped_file_is_seen_by_others_and_fsync_is_durable(cluster, client):
    other = cluster.client()
    with client.open("/t", "w") as file:
        file.write("flushed")
        file.flush()
        assert other.read("/t") == b"flushed"
        file.write(" and synced")
        file.fsync()
        assert other.read("/t") == b"flushed and synced"
    assert all(len(synced) == 1 for synced in cluster.synced.values())
    with client.open("/t", "rb+") as file:
        file.write(b"F")
        file.flush()
        assert other.read("/t") == b"Flushed and synced"
        file.fsync()


def test_closing_a_client_ends_the_sessions_of_files_left_open(cluster):
    client = cluster.client()
    client.write("/f", b"x")
    left = client.open_file("/f", "r+")
    left.write(b"left")
    client.close()
    left.close()
    with cluster.client() as reader:
        assert reader.read("/f") == b"left"
    other = cluster.client()
    inode = other.inode("/f")
    other.unlink("/f")
    with pytest.raises(Fs3Error):
        other.context.metadata.open(
            inode.inode, read=True, write=False, truncate=False, session=other.context.new_session()
        )


def test_fsync_makes_every_chunk_durable_on_every_replica(cluster, client):
    with client.open_file("/f", "wb") as file:
        file.write(b"a" * CHUNK_BYTES)
        file.flush()
        file.write(b"b" * CHUNK_BYTES)
        file.fsync()
        assert {len(synced) for synced in cluster.synced.values()} == {2}


def test_appends_of_two_clients_never_overlap(cluster, client):
    others = [client, cluster.client()]
    client.write("/log", b"")
    files = [c.open_file("/log", "ab") for c in others]
    for i in range(20):
        files[i % 2].write(f"line {i:04}\n".encode())
    for file in files:
        file.close()
    lines = client.read("/log").decode().splitlines()
    assert sorted(lines) == [f"line {i:04}" for i in range(20)]


def test_old_gathered_writes_leave_by_themselves(cluster, client, monkeypatch):
    monkeypatch.setattr("fs3.client.open_inodes.DIRTY_AGE_S", 0.1)
    file = client.open_file("/f", "wb")
    file.write(b"x")
    wait_until(lambda: cluster.requests(dataplane.WRITE_BATCH) > 0)
    file.close()


def test_a_failed_write_is_told_once_and_the_file_can_be_closed(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    file.write(b"lost")
    for node in cluster.nodes.values():
        node.refuse = [Code.NO_SPACE]
    with pytest.raises(OSError, match="NO_SPACE"):
        file.flush()
    for node in cluster.nodes.values():
        node.refuse = []
    file.pwrite(b"kept", 10)
    file.close()
    assert client.read("/f")[10:] == b"kept"


def test_a_close_that_could_not_be_told_is_told_later(cluster):
    client = cluster.client()
    client.context.metadata.retry_s = 0.0
    client.write("/f", b"x")
    file = client.open_file("/f", "r+")
    inode = file.inode().inode
    file.write(b"y")
    cluster.stop_metaserver()
    with pytest.raises(Fs3Error):
        file.close()
    assert file.closed
    cluster.start_metaserver()
    client.unlink("/f")
    client.close()
    sessions = keys.range_of(keys.SESSION, inode)
    assert cluster.engine.run(lambda txn: txn.range(*sessions, 10)) == []


def test_an_unlinked_open_file_goes_on(client):
    file = client.open_file("/f", "w+")
    file.write(b"still here")
    file.flush()
    client.unlink("/f")
    assert not client.exists("/f")
    assert file.pread(100, 0) == b"still here"
    file.close()


def test_a_metaserver_restart_is_a_pause(cluster, client):
    client.write("/f", b"x")
    cluster.stop_metaserver()
    starter = threading.Timer(0.3, cluster.start_metaserver)
    starter.start()
    client.mkdir("/d")
    starter.join()
    assert client.listdir("/") == ["d", "f"]


def test_a_forked_child_uses_its_parents_files(cluster, client):
    client.write("/f", b"shared" * 1000)
    shared = client.open_file("/f")
    unsent = client.open_file("/g", "wb")
    unsent.write(b"parent's")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert shared.pread(6, 600) == b"shared"
            assert client.read_batch([(shared, 6, 6)])[0] == b"shared"
            client.write("/from-child", b"hello")
            unsent.close()
            shared.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert client.read("/from-child") == b"hello"
    assert client.read("/g") == b"parent's"
    client.unlink("/f")
    assert shared.pread(6, 0) == b"shared"  # the child's close has not ended our session
    unsent.close()
    shared.close()


# Names.


def test_directories_are_made_listed_walked_and_removed(client):
    client.makedirs("/a/b/c")
    client.makedirs("/a/b/c", exist_ok=True)
    with pytest.raises(FileExistsError):
        client.makedirs("/a/b/c")
    with pytest.raises(FileExistsError):
        client.mkdir("/a")
    client.write("/a/one", b"1")
    client.write("/a/b/two", b"22")
    client.symlink("/a/one", "/a/link")
    assert client.listdir("/a") == ["b", "link", "one"]
    assert list(client.walk("/a")) == [
        ("/a", ["b"], ["link", "one"]),
        ("/a/b", ["c"], ["two"]),
        ("/a/b/c", [], []),
    ]
    entries = {entry.name: entry for entry in client.scandir("/a")}
    assert entries["b"].is_dir()
    assert entries["one"].is_file()
    assert entries["one"].stat().st_size == 1
    assert entries["link"].is_symlink()
    assert os.fspath(entries["one"]) == "/a/one"
    with pytest.raises(OSError, match="NOT_EMPTY"):
        client.rmdir("/a")
    with pytest.raises(NotADirectoryError):
        client.rmtree("/a/one")
    client.rmtree("/a")
    assert client.listdir("/") == []
    with pytest.raises(FileNotFoundError):
        client.rmdir("/a")


def test_a_long_directory_is_listed_whole(client):
    client.mkdir("/many")
    for i in range(1100):
        client.symlink("x", f"/many/{i:05}")
    assert client.listdir("/many") == [f"{i:05}" for i in range(1100)]
    client.rmtree("/many")


def test_rename_replaces_refuses_and_exchanges(client):
    client.write("/a", b"A")
    client.write("/b", b"B")
    with pytest.raises(FileExistsError):
        client.rename("/a", "/b", no_replace=True)
    client.rename("/a", "/b", exchange=True)
    assert (client.read("/a"), client.read("/b")) == (b"B", b"A")
    client.replace("/a", "/b")
    assert client.read("/b") == b"B"
    with pytest.raises(FileNotFoundError):
        client.rename("/a", "/c")


def test_links_symlinks_and_loops(client):
    client.write("/f", b"x")
    client.link("/f", "/g")
    assert client.stat("/g").st_nlink == 2
    client.symlink("f", "/s")
    assert client.readlink("/s") == "f"
    assert client.islink("/s")
    assert not client.islink("/f")
    assert client.read("/s") == b"x"
    assert stat.S_ISLNK(client.lstat("/s").st_mode)
    with client.open("/s", "wb") as file:
        file.write(b"through")
    assert client.read("/f") == b"through"
    client.symlink("loop", "/loop")
    with pytest.raises(OSError, match="LOOP"):
        client.stat("/loop")
    assert not client.exists("/loop")
    client.symlink("missing", "/dangling")
    with client.open("/dangling", "wb") as file:
        file.write(b"made")
    assert client.read("/missing") == b"made"
    with pytest.raises(Fs3Error, match="not a symbolic link"):
        client.readlink("/f")


def test_attributes_are_changed(client):
    client.write("/f", b"x")
    client.chmod("/f", 0o640)
    client.chown("/f", 12, 34)
    client.utime("/f", ns=(1_000_000_001, 2_000_000_002))
    found = client.stat("/f")
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    client.utime("/f", (5.0, 6.5))
    assert client.stat("/f").st_mtime == 6.5
    client.utime("/f")
    assert client.stat("/f").st_mtime > 1_000_000_000
    with pytest.raises(Fs3Error, match="both"):
        client.utime("/f", (1, 2), ns=(1, 2))


def test_extended_attributes(client):
    client.write("/f", b"")
    client.setxattr("/f", "user.a", b"1")
    assert client.getxattr("/f", "user.a") == b"1"
    assert client.listxattr("/f") == ["user.a"]
    with pytest.raises(FileExistsError):
        client.setxattr("/f", "user.a", b"2", create=True)
    client.removexattr("/f", "user.a")
    with pytest.raises(OSError, match="NO_ATTRIBUTE"):
        client.getxattr("/f", "user.a")


def test_permissions_are_those_of_the_credentials(cluster, client):
    client.write("/secret", b"x", permissions=0o600)
    client.mkdir("/open", 0o777)
    user = cluster.client(Credentials(uid=1000, gid=1000))
    with pytest.raises(PermissionError):
        user.read("/secret")
    with pytest.raises(PermissionError):
        user.read_batch([("/secret", 0, 1)])
    with pytest.raises(PermissionError):
        user.write("/mine", b"x")
    user.write("/open/mine", b"x")
    assert client.stat("/open/mine").st_uid == 1000


def test_a_directory_says_how_its_files_are_cut(client):
    client.mkdir("/d")
    client.set_layout("/d", chunk_bytes=1 << 17, stripe=2)
    client.write("/d/f", b"x")
    layout = client.inode("/d/f").layout
    assert (layout.chunk_bytes, len(layout.chains)) == (1 << 17, 2)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"chunk_bytes": 3}, "chunk size 3 "),
        ({"chunk_bytes": 0}, "chunk size 0 "),
        ({"chunk_bytes": -1}, "chunk size -1 "),
        ({"stripe": 0}, "stripe 0 "),
        ({"stripe": -1}, "stripe -1 "),
        ({"stripe": 1 << 32}, f"stripe {1 << 32} "),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_name(client, wish, said):
    client.mkdir("/d")
    with pytest.raises(Fs3Error, match=said) as caught:
        client.set_layout("/d", **wish)
    assert caught.value.code is Code.INVALID


@pytest.mark.parametrize("path", ["relative", "", "/a\0b", b"x"])
def test_paths_must_be_absolute_and_without_nul(client, path):
    with pytest.raises(Fs3Error, match="path"):
        client.stat(path)


def test_dots_are_taken_out_of_paths(client):
    client.makedirs("/a/b")
    client.write("//a/./b/../f", b"x")
    assert client.read("/a/f") == b"x"
    assert client.listdir("/..") == ["a"]
