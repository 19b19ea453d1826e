"""Programs written for 3FS's rings, on an fs3 mount: what they do, call by call."""

from __future__ import annotations

import datetime
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from running_cluster import RunningCluster

from fs3.client.adapters import hf3fs as io

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.long, pytest.mark.timeout(300)]
PAGE, ENTRIES, PAGES = 73_728, 8, 64  # one layer of 64 tokens; I/Os at once; pages in the file
SHIM = Path(__file__).parents[2] / "deploy" / "hf3fs_fuse"


class PagedFile:
    """A preallocated file with two rings and two regions, as SGLang's client has it."""

    def __init__(self, path: Path, timeout_s: float = 20.0) -> None:
        self.timeout = datetime.timedelta(seconds=timeout_s)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, PAGES * PAGE)
        io.register_fd(self.file)
        mount_point = io.extract_mount_point(str(path))
        assert mount_point is not None
        self.shm_r = SharedMemory(size=PAGE * ENTRIES, create=True)
        self.shm_w = SharedMemory(size=PAGE * ENTRIES, create=True)
        self.ior_r = io.make_ioring(mount_point, ENTRIES, for_read=True, timeout=1, numa=-1)
        self.ior_w = io.make_ioring(mount_point, ENTRIES, for_read=False, timeout=1, numa=-1)
        self.iov_r = io.make_iovec(self.shm_r, mount_point)
        self.iov_w = io.make_iovec(self.shm_w, mount_point)
        self.shm_r.unlink()
        self.shm_w.unlink()

    def read(self, pages: list[int]) -> tuple[list[int], list[bytes]]:
        for place, page in enumerate(pages):
            part = self.iov_r[place * PAGE : (place + 1) * PAGE]
            self.ior_r.prepare(part, True, self.file, page * PAGE)
        done = self.ior_r.submit().wait(min_results=len(pages), timeout=self.timeout)
        content = [bytes(self.shm_r.buf[i * PAGE : (i + 1) * PAGE]) for i in range(len(pages))]
        return [part.result for part in done], content

    def write(self, pages: list[int], contents: list[bytes]) -> list[int]:
        for place, (page, content) in enumerate(zip(pages, contents, strict=True)):
            self.shm_w.buf[place * PAGE : (place + 1) * PAGE] = content
            part = self.iov_w[place * PAGE : (place + 1) * PAGE]
            self.ior_w.prepare(part, False, self.file, page * PAGE)
        done = self.ior_w.submit().wait(min_results=len(pages), timeout=self.timeout)
        return [part.result for part in done]

    def close(self) -> None:
        io.deregister_fd(self.file)
        os.close(self.file)
        del self.ior_r, self.ior_w, self.iov_r, self.iov_w
        self.shm_r.close()
        self.shm_w.close()


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    made = SharedMemory(size=1 << 20, create=True)
    yield made
    made.close()
    made.unlink()


def content_of(page: int, turn: int = 0) -> bytes:
    return bytes([page + 1, turn]) * (PAGE // 2)


def test_pages_of_a_preallocated_file(mount: Path, cluster: RunningCluster) -> None:
    paged = PagedFile(mount / "rank.0.bin")
    assert paged.read([3, 5]) == ([PAGE] * 2, [bytes(PAGE)] * 2)  # not written yet
    for first in range(0, PAGES, ENTRIES):
        pages = list(range(first, first + ENTRIES))
        assert paged.write(pages, [content_of(page) for page in pages]) == [PAGE] * ENTRIES
    pages = [63, 0, 7, 7, 31, 2]
    assert paged.read(pages) == ([PAGE] * 6, [content_of(page) for page in pages])
    os.fsync(paged.file)
    whole = b"".join(content_of(page) for page in range(PAGES))
    assert cluster.client().read(f"/{mount.name}/rank.0.bin") == whole
    paged.close()


def test_many_clients_of_one_file_in_threads(mount: Path) -> None:
    failures = []

    def work(number: int) -> None:
        paged = PagedFile(mount / "shared.bin")
        for turn in range(8):
            pages = list(range(number, PAGES, 8))
            contents = [content_of(page, turn) for page in pages]
            if paged.write(pages, contents) != [PAGE] * 8:
                failures.append((number, turn))
            if paged.read(pages) != ([PAGE] * 8, contents):
                failures.append((number, turn))
        paged.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_what_came_too_late_never_comes(mount: Path, cluster: RunningCluster) -> None:
    paged = PagedFile(mount / "late.bin")
    paged.write([0, 1], [content_of(0), content_of(1)])
    daemons = [f"node-{node.node}" for node in cluster.local.specification.nodes]
    paged.timeout = datetime.timedelta(milliseconds=50)
    for daemon in daemons:
        cluster.signal(daemon, signal.SIGSTOP)
    try:
        results, _ = paged.read([0])
    finally:
        for daemon in daemons:
            cluster.signal(daemon, signal.SIGCONT)
    assert results == []
    paged.timeout = datetime.timedelta(seconds=60)
    assert paged.read([1]) == ([PAGE], [content_of(1)])
    paged.close()


def test_a_file_per_chunk_written_then_renamed(mount: Path, shared: SharedMemory) -> None:
    """As LMCache: descriptors of one direction, waits for one result without a timeout."""
    mount_point = io.extract_mount_point(mount)
    assert mount_point == io.extract_mount_point(mount_point) == str(mount.parent)
    iov = io.make_iovec(shm=shared, hf3fs_mount_point=mount_point, numa=-1)
    writer = io.make_ioring(mount_point, 256, for_read=False, timeout=200, numa=-1)
    reader = io.make_ioring(mount_point, 256, for_read=True, timeout=200, numa=-1)
    for number in range(20):
        length = 28 + number * 10_000
        shared.buf[:length] = bytes([number]) * length
        fd = os.open(mount / "temporary", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        io.register_fd(fd)
        writer.prepare(iov[:28], False, fd, 0)
        assert writer.submit().wait(min_results=1)[0].result == 28
        writer.prepare(iov[28:length], False, fd, 28)
        assert writer.submit().wait(min_results=1)[0].result == length - 28
        os.rename(mount / "temporary", mount / f"{number}.data")
        io.deregister_fd(fd)
        os.close(fd)
    for number in range(20):
        length = 28 + number * 10_000
        fd = os.open(mount / f"{number}.data", os.O_RDONLY)
        io.register_fd(fd)
        reader.prepare(iov[:], True, fd, 0)
        assert reader.submit().wait(min_results=1)[0].result == length
        assert bytes(shared.buf[:length]) == bytes([number]) * length
        io.deregister_fd(fd)
        os.close(fd)


def test_errors_that_programs_look_at(mount: Path, shared: SharedMemory) -> None:
    mount_point = io.extract_mount_point(mount)
    assert mount_point is not None
    iov = io.make_iovec(shared, mount_point)
    (mount / "f").write_bytes(b"x")
    fd = os.open(mount / "f", os.O_RDONLY)
    reader = io.make_ioring(mount_point, 2, for_read=True)
    writer = io.make_ioring(mount_point, 2, for_read=False)

    def number(call) -> int:
        with pytest.raises(OSError) as caught:
            call()
        return caught.value.errno

    assert number(lambda: reader.prepare(iov[:1], True, fd, 0)) == errno.EBADF
    io.deregister_fd(fd)  # as who cleans up twice
    io.register_fd(fd)
    assert number(lambda: writer.prepare(iov[:1], False, fd, 0)) == errno.EACCES
    assert number(lambda: reader.prepare(iov[:1], False, fd, 0)) == errno.EINVAL
    reader.prepare(iov[:1], True, fd, 0)
    reader.prepare(iov[:1], True, fd, 1)
    assert number(lambda: reader.prepare(iov[:1], True, fd, 0)) == errno.EAGAIN
    assert [part.result for part in reader.submit().wait(min_results=2)] == [1, 0]
    assert number(lambda: io.make_ioring(mount_point, 1, flags=2)) == errno.EOPNOTSUPP
    assert number(lambda: io.make_ioring("/", 1)) == errno.EINVAL
    io.deregister_fd(fd)
    os.close(fd)
    other = os.open(mount / "g", os.O_RDWR | os.O_CREAT)
    assert other == fd  # a number that is used again is the new file's
    io.register_fd(fd)
    io.register_fd(fd)
    writer.prepare(iov[:1], False, fd, 0, userdata="mine")
    (part,) = writer.submit().wait()
    assert (part.result, part.userdata, part.base_off) == (1, "mine", 0)
    io.deregister_fd(fd)
    os.close(fd)


def test_depths(mount: Path, shared: SharedMemory) -> None:
    mount_point = str(mount)
    iov = io.make_iovec(shared, mount_point)
    (mount / "f").write_bytes(bytes(range(100)))
    fd = os.open(mount / "f", os.O_RDONLY)
    io.register_fd(fd)
    for depth in (0, 4, -4):
        ring = io.make_ioring(mount_point, 16, io_depth=depth)
        for place in range(10):
            ring.prepare(iov[place : place + 1], True, fd, place, place)
        started = ring.submit().wait(min_results=8, max_results=8)
        assert [part.userdata for part in started] == list(range(8))
        assert [part.userdata for part in ring.wait(min_results=2)] == [8, 9]
        assert ring.wait(min_results=0) == []
        assert bytes(iov[:10]) == bytes(range(10))
    io.deregister_fd(fd)
    os.close(fd)


def test_whole_files_names_and_holes(mount: Path) -> None:
    content = os.urandom(300_000)
    (mount / "f").write_bytes(content)
    assert io.read_file(mount / "f", block_size=70_000) == content
    assert io.read_file(mount / "f", off=299_999) == content[299_999:]
    seen = []

    def every_other(block: memoryview, offset: int) -> int | bool:
        seen.append((offset, bytes(block)))
        return offset + 2 * len(block) if offset < 200_000 else True

    assert io.read_file(mount / "f", block_size=100_000, cb=every_other) is None
    assert seen == [(0, content[:100_000]), (200_000, content[200_000:])]
    io.hardlink(mount / "f", mount / "g")
    io.punch_hole(str(mount / "g"), [0, 250_000], [100_000, 400_000])
    expected = bytes(100_000) + content[100_000:250_000] + bytes(50_000)
    assert (mount / "f").read_bytes() == expected
    fd = os.open(mount / "f", os.O_RDWR)
    io.punch_hole(fd, [100_000], [100_001])
    io.force_fsync(fd)
    os.close(fd)
    assert io.read_file(mount / "f")[100_000] == 0


def test_programs_find_it_under_its_name(mount: Path) -> None:
    script = (
        "from hf3fs_fuse.io import (deregister_fd, extract_mount_point, make_ioring, make_iovec,"
        " register_fd, read_file, ioring, iovec, IorPriority, force_fsync, hardlink, punch_hole)\n"
        "from hf3fs_fuse.fuse import get_mount_point\n"
        "assert ioring.size_for_entries(128) > 0\n"
        "assert IorPriority.HIGH < IorPriority.NORMAL < IorPriority.LOW\n"
        "import sys\n"
        "print(extract_mount_point(sys.argv[1] + '/no/such/file'), get_mount_point('/proc'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, mount],
        env={**os.environ, "PYTHONPATH": str(SHIM)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(mount.parent), "None"]
