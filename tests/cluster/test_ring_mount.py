"""Rings on descriptors of a real mount: what they write is seen through it, and everywhere."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mounted import Death, verify_replicas
from running_cluster import RunningCluster

from fs3.client.mount_protocol import MOUNT_ATTRIBUTE
from fs3.client.ring import Iov, Ring, deregister_fd, register_fd
from fs3.errors import Fs3Error

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.long, pytest.mark.timeout(300)]
KIB, MIB = 1 << 10, 1 << 20


@contextmanager
def registered(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[tuple[int, int]]:
    fd = os.open(path, flags, 0o644)
    handle = register_fd(fd)
    try:
        yield fd, handle
    finally:
        deregister_fd(handle)
        os.close(fd)


def write(handle: int, offset: int, content: bytes, step: int = 64 * KIB) -> None:
    iov = Iov(bytearray(content))
    places = np.arange(0, len(content), step)
    lengths = np.minimum(step, len(content) - places)
    with Ring(len(places), "write") as ring:
        ring.prep_many(handle, offset + places, lengths, iov, places)
        ring.submit()
        assert ring.wait()["result"].tolist() == lengths.tolist()


def read(handle: int, offset: int, length: int) -> bytes:
    iov = Iov(length)
    with Ring(1, "read") as ring:
        ring.prep_io(handle, offset, iov)
        ring.submit()
        (count,) = ring.wait()["result"].tolist()
        assert count >= 0, os.strerror(-count)
    return bytes(iov[:count])


def test_what_a_ring_wrote_is_read_through_the_mount_at_once(mount: Path) -> None:
    with registered(mount / "f") as (fd, handle):
        for number in range(20):  # the kernel has the pages of the round before
            content = bytes([number]) * (3 * MIB + number)
            write(handle, 0, content)
            assert os.fstat(fd).st_size == len(content)
            assert os.pread(fd, 4 * MIB, 0) == content
            assert (mount / "f").read_bytes() == content


def test_what_was_written_through_the_mount_is_read_by_the_ring_at_once(mount: Path) -> None:
    with registered(mount / "f") as (fd, handle):
        assert read(handle, 0, 10) == b""
        os.pwrite(fd, b"one", 0)
        assert read(handle, 0, 10) == b"one"
        os.pwrite(fd, b"two, longer", 3)
        assert read(handle, 1, 100) == b"netwo, longer"
        os.ftruncate(fd, 5)
        assert read(handle, 0, 100) == b"onetw"


def test_fsync_or_close_make_it_visible_to_another_mount(
    mount: Path, cluster: RunningCluster
) -> None:
    elsewhere = cluster.mount("other") / mount.name
    content = os.urandom(2 * MIB + 1)
    with registered(mount / "f") as (fd, handle):
        write(handle, 0, content)
        os.fsync(fd)
        assert (elsewhere / "f").read_bytes() == content
        write(handle, len(content), b"end")
    assert (elsewhere / "f").read_bytes() == content + b"end"
    assert cluster.client().read(f"/{mount.name}/f") == content + b"end"


def test_a_ring_of_a_mount_that_delays_writes(cluster: RunningCluster) -> None:
    folder = cluster.mount("delaying", "--writeback-cache")
    fd = os.open(folder / "delayed", os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, b"delayed by the kernel", 0)
    handle = register_fd(fd)
    assert read(handle, 0, 100) == b"delayed by the kernel"
    write(handle, 0, b"written")
    assert os.pread(fd, 100, 0) == b"written by the kernel"
    deregister_fd(handle)
    os.close(fd)
    assert cluster.client().read("/delayed") == b"written by the kernel"


def test_a_descriptor_carries_the_rights_it_was_opened_with(mount: Path) -> None:
    with registered(mount / "f") as (fd, handle):
        os.fchmod(fd, 0)
        write(handle, 0, b"x")
        assert read(handle, 0, 1) == b"x"
        os.unlink(mount / "f")
        write(handle, 1, b"y")
        assert read(handle, 0, 2) == b"xy"
    (mount / "g").write_bytes(b"x")
    with (
        registered(mount / "g", os.O_RDONLY) as (_, handle),
        Ring(1, "write") as ring,
        pytest.raises(PermissionError),
    ):
        ring.prep_io(handle, 0, Iov(1))


def test_a_descriptor_that_is_another_files_by_now_fails_and_harms_nobody(mount: Path) -> None:
    (mount / "other").write_bytes(b"other")
    fd = os.open(mount / "f", os.O_RDWR | os.O_CREAT, 0o644)
    handle = register_fd(fd)
    other = os.open(mount / "other", os.O_RDWR)
    os.dup2(other, fd)
    with Ring(1, "write") as ring:
        ring.prep_io(handle, 0, Iov(bytearray(b"a much longer text")))
        ring.submit()
        assert ring.wait()["result"].tolist() == [-errno.ESTALE]
    deregister_fd(handle)
    os.close(fd)
    os.close(other)
    assert (mount / "other").read_bytes() == b"other"


def test_only_regular_files_of_fs3_are_registered(
    mount: Path, tmp_path: Path, cluster: RunningCluster
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Fs3Error, match="not a regular file"):
        register_fd(ours)
    with (tmp_path / "f").open("wb") as local, pytest.raises(Fs3Error, match="not on an fs3 mount"):
        register_fd(local)
    with pytest.raises(Fs3Error, match="O_APPEND"), (mount / "f").open("ab") as appending:
        register_fd(appending)
    fusepy = cluster.mount("fusepy", "--front", "fusepy")
    assert os.getxattr(fusepy, MOUNT_ATTRIBUTE) == os.getxattr(mount, MOUNT_ATTRIBUTE)
    with (fusepy / "f").open("wb") as file, pytest.raises(Fs3Error, match="fusepy"):
        register_fd(file)


def test_rings_of_many_threads_and_the_mount_between_them(mount: Path) -> None:
    parts, step = 8, 256 * KIB
    with registered(mount / "f") as (fd, handle):
        os.ftruncate(fd, parts * step)

        def work(number: int) -> None:
            for turn in range(10):
                content = bytes([16 * turn + number]) * step
                write(handle, number * step, content, 16 * KIB)
                assert os.pread(fd, step, number * step) == content
                assert read(handle, number * step, step) == content

        with ThreadPoolExecutor(parts) as threads:
            list(threads.map(work, range(parts)))


def test_a_node_dies_under_a_ring_and_nothing_is_lost(mount: Path, cluster: RunningCluster) -> None:
    step, rounds = 32 * KIB, 60
    content = os.urandom(64 * step)
    places = np.arange(64) * step
    iov = Iov(bytearray(content))
    back = Iov(len(content))
    with registered(mount / "f") as (fd, handle), Death(cluster, 2, at=20, until=40) as death:
        with Ring(64, "write") as writer, Ring(64, "read") as reader:
            for turn in range(rounds):
                death.reached(turn)
                iov[:4] = turn.to_bytes(4, "big")
                writer.prep_many(handle, places, step, iov, places)
                writer.submit()
                assert (writer.wait()["result"] == step).all()
                reader.prep_many(handle, places, step, back, places)
                reader.submit()
                assert (reader.wait()["result"] == step).all()
                assert bytes(back) == bytes(iov)
        os.fsync(fd)
    assert (mount / "f").read_bytes() == bytes(iov)
    verify_replicas(cluster)
