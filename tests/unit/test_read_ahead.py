"""Reading ahead: the next window comes while the reader works on the one before."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster, wait_until

from fs3 import dataplane
from fs3.client import read_ahead
from fs3.errors import Code

READ = 16 << 10


@pytest.fixture(autouse=True)
def now_s(monkeypatch):
    """The clock by which windows become old: it stands still, whatever the machine's does."""
    now = [1000.0]
    monkeypatch.setattr(read_ahead, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


@pytest.fixture
def file(cluster):
    client = cluster.client()
    client.write("/f", random.Random(1).randbytes(64 * CHUNK_BYTES))
    with client.open("/f", "rb", buffering=0) as made:
        yield made


def ahead_bytes(file) -> int:
    return file._context.files.buffers._ahead_bytes


def content_of(cluster, file) -> bytes:
    return bytes(file.pread(len(file), 0))


def asked(cluster) -> int:
    return cluster.requests(dataplane.READ_BATCH)


def test_the_next_window_is_asked_for_before_the_reader_gets_there(cluster, file):
    content = content_of(cluster, file)
    got = bytearray(file.read(READ))
    first = asked(cluster)
    while len(got) <= read_ahead.WINDOW_MIN_BYTES // 2:
        got += file.read(READ)
    wait_until(lambda: asked(cluster) > first)  # and nobody waits for it
    assert ahead_bytes(file) == 3 * read_ahead.WINDOW_MIN_BYTES
    while len(got) < read_ahead.WINDOW_MIN_BYTES + READ:
        got += file.read(READ)
    assert got == content[: len(got)]


def test_windows_double_up_to_a_limit_and_a_whole_file_needs_few_requests(cluster, file):
    content = content_of(cluster, file)
    before = asked(cluster)
    got = b"".join(iter(lambda: file.read(READ), b""))
    assert got == content
    assert asked(cluster) - before < 30
    assert ahead_bytes(file) <= 2 * read_ahead.WINDOW_MAX_BYTES


@pytest.mark.parametrize("size", [1000, READ, 100_001, 1 << 20, 3 << 20])
def test_reads_of_any_size_cross_windows(cluster, file, size):
    content = content_of(cluster, file)
    assert b"".join(iter(lambda: file.read(size), b"")) == content


def test_a_seek_ends_what_was_ahead(cluster, file):
    content = content_of(cluster, file)
    while file.tell() <= read_ahead.WINDOW_MIN_BYTES // 2:
        file.read(READ)
    both = ahead_bytes(file)
    assert both == 3 * read_ahead.WINDOW_MIN_BYTES
    file.seek(50 * CHUNK_BYTES)
    assert file.read(READ) == content[50 * CHUNK_BYTES :][:READ]
    assert ahead_bytes(file) == read_ahead.WINDOW_MIN_BYTES
    before = asked(cluster)
    for step in range(1, 21):  # backwards: nothing more than what is asked for
        at = 50 * CHUNK_BYTES - 5 * step * READ
        file.seek(at)
        assert file.read(READ) == content[at : at + READ]
    assert asked(cluster) - before <= 21


def test_what_was_read_ahead_is_shown_for_a_second_and_no_longer(cluster, file, now_s):
    """Another client's write to a file that is being read, within what was read ahead."""
    content = content_of(cluster, file)
    assert file.read(READ) == content[:READ]
    with cluster.client().open("/f", "r+b") as other:
        other.write(b"new" * CHUNK_BYTES)
    now_s[0] += 0.9 * read_ahead.WINDOW_AGE_S
    assert file.read(READ) == content[READ : 2 * READ]
    now_s[0] += 0.2 * read_ahead.WINDOW_AGE_S
    assert file.read(READ) == (b"new" * READ)[2 * READ : 3 * READ]


def test_a_failure_ahead_is_not_the_readers(cluster, file):
    content = content_of(cluster, file)
    got = bytearray(file.read(READ))
    for node in cluster.nodes.values():
        node.refuse = [Code.INVALID] * 100
    first = asked(cluster)
    while len(got) <= read_ahead.WINDOW_MIN_BYTES // 2:
        got += file.read(READ)
    wait_until(lambda: asked(cluster) > first)
    for node in cluster.nodes.values():
        cluster.in_reactor(node.refuse.clear)
    while len(got) < len(content):
        got += file.read(READ)
    assert got == content


def test_closing_a_file_gives_all_memory_back_also_while_a_window_is_under_way(cluster):
    client = cluster.client()
    client.write("/f", bytes(64 * CHUNK_BYTES))
    file = client.open("/f", "rb", buffering=0)
    file.read(READ)
    for node in cluster.nodes.values():
        node.stalled = True
    while file.tell() <= read_ahead.WINDOW_MIN_BYTES // 2:
        file.read(READ)
    buffers = client.context.files.buffers
    assert buffers._ahead_bytes == 3 * read_ahead.WINDOW_MIN_BYTES
    file.close()
    assert buffers._ahead_bytes == 0


def test_a_forked_child_reads_on_without_its_parents_window(cluster, file):
    content = content_of(cluster, file)
    while file.tell() <= read_ahead.WINDOW_MIN_BYTES // 2:
        file.read(READ)
    at = file.tell()
    child = os.fork()
    if child == 0:
        code = 2
        try:
            assert file._ahead._window is file._ahead._next is None  # their sockets are shared
            rest = b"".join(iter(lambda: file.read(READ), b""))
            code = 0 if rest == content[at:] else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"".join(iter(lambda: file.read(READ), b"")) == content[at:]
