"""Nothing that a program was told is written may be lost in silence: clients when things fail."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
from fake_cluster import CHUNK_BYTES, WAIT_S, FakeCluster, fake_cluster, wait_until
from kernel_calls import ROOT, Mount

from fs3 import dataplane
from fs3.client import open_inodes, open_table
from fs3.client.context import close_all
from fs3.client.filesystem_interface import FallocateFlags
from fs3.client.routing import RoutingCache
from fs3.core.types import chunk_id
from fs3.errors import Code, Fs3Error
from fs3.metaserver import keys, namespace
from fs3.types import SetAttributes

pytestmark = pytest.mark.usefixtures("stays_gathered")


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


def refuse(cluster: FakeCluster, *codes: Code) -> None:
    """The next items are refused with these codes, at every node; nothing: no more."""
    for node in cluster.nodes.values():
        node.refuse = list(codes)


def sessions(cluster: FakeCluster, inode: int) -> int:
    rows = keys.range_of(keys.SESSION, inode)
    return len(cluster.engine.run(lambda txn: txn.range(*rows, 100)))


def synced_everywhere(cluster: FakeCluster, inode: int, slots: int) -> bool:
    wanted = {chunk_id(inode, slot) for slot in range(slots)}
    return all(wanted <= {bytes(c) for c in chunks} for chunks in cluster.synced.values())


# Close.


def test_a_close_that_lost_a_piece_says_so_and_ends_the_session_and_tells_the_length(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    inode = file.inode().inode
    file.write(b"a" * CHUNK_BYTES + b"b" * 10)
    refuse(cluster, Code.NO_SPACE)
    with pytest.raises(OSError, match="NO_SPACE"):
        file.close()
    refuse(cluster)
    assert sessions(cluster, inode) == 0
    assert cluster.client().stat("/f").st_size == CHUNK_BYTES + 10


def test_the_length_that_a_close_could_not_tell_is_told_later(cluster):
    client = cluster.client()
    client.context.metadata.retry_s = 0.0
    file = client.open_file("/f", "wb")
    file.write(b"hello")
    file.handle.opened.send_gathered()
    cluster.stop_metaserver()
    with pytest.raises(Fs3Error):
        file.close()
    cluster.start_metaserver()
    other = cluster.client()
    wait_until(lambda: other.read("/f") == b"hello")


def test_a_length_that_cannot_be_told_keeps_no_other_file_from_being_closed(cluster, monkeypatch):
    client = cluster.client()
    client.context.metadata.retry_s = 0.0
    client.write("/read", b"x")
    stuck, reader = client.open_file("/stuck", "wb"), client.open_file("/read")
    inodes = stuck.inode().inode, reader.inode().inode
    close = client.context.metadata.close

    def no_length(closings, **options):
        if any(closing.wrote for closing in closings):
            raise Fs3Error(Code.MAYBE_APPLIED, "its chains are down")
        return close(closings, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client.context.metadata, "close", no_length)
        stuck.write(b"x")
        with pytest.raises(Fs3Error, match="chains are down"):
            stuck.close()
        reader.close()
        wait_until(lambda: sessions(cluster, inodes[1]) == 0)
        assert sessions(cluster, inodes[0]) == 1
    wait_until(lambda: sessions(cluster, inodes[0]) == 0)
    assert cluster.client().read("/stuck") == b"x"


def test_unmounting_goes_on_behind_a_file_that_cannot_be_written(cluster):
    mount, other = Mount(cluster), Mount(cluster)
    handles = [mount.create(name)[1] for name in ("f", "g", "h")]
    for handle in handles:
        mount.write(handle, 0, b"data")
    refuse(cluster, Code.NO_SPACE)
    with pytest.raises(Fs3Error):
        mount.fs.detach()
    refuse(cluster)
    assert sorted(other.lookup(name).length_bytes for name in "fgh")[1:] == [4, 4]
    assert mount.fs._context.closed
    other.fs.detach()


def test_sessions_of_a_batch_of_which_one_file_cannot_be_opened_end(cluster, monkeypatch):
    client = cluster.client()
    client.write("/good", b"x")
    client.write("/bad", b"x")
    inode = client.stat("/good").st_ino
    pipeline = client.context.metadata._pipeline
    exchange = pipeline.exchange

    def refuse_the_last(method, requests, timeout_s):
        outcomes = exchange(method, requests, timeout_s)
        if method.name == "Open":
            outcomes[-1] = Fs3Error(Code.ACCESS, "by order")
        return outcomes

    monkeypatch.setattr(pipeline, "exchange", refuse_the_last)
    with pytest.raises(Fs3Error, match="by order"):
        client.write_batch([("/good", 0, b"y"), ("/bad", 0, b"y")])
    wait_until(lambda: sessions(cluster, inode) == 0)


# Errors of writing.


def test_each_handle_of_a_file_hears_once_that_bytes_were_lost(cluster):
    client = cluster.client()
    first, second = client.open_file("/f", "wb"), client.open_file("/f", "r+")
    first.write(b"lost")
    refuse(cluster, Code.NO_SPACE)
    with pytest.raises(OSError, match="NO_SPACE"):
        second.fsync()
    refuse(cluster)
    with pytest.raises(OSError, match="NO_SPACE"):
        first.fsync()
    first.fsync()
    second.fsync()
    first.close()
    second.close()


def test_a_process_that_closes_an_inherited_descriptor_does_not_hide_the_error(cluster):
    mount = Mount(cluster)
    _, handle = mount.create("f")
    mount.write(handle, 0, b"lost")
    refuse(cluster, Code.NO_SPACE)
    with pytest.raises(Fs3Error):
        mount.fs.flush(handle, owner=7)  # a child that exits
    refuse(cluster)
    with pytest.raises(Fs3Error) as caught:
        mount.fs.fsync(handle, False)
    assert caught.value.code is Code.NO_SPACE
    mount.fs.fsync(handle, False)
    mount.close(handle)
    mount.fs.detach()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(24, "too many open files")])
def test_writing_that_was_interrupted_is_an_error_at_fsync(cluster, monkeypatch, failure):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    file.write(b"lost")
    data = client.context.data
    with monkeypatch.context() as patch:

        def interrupted(*_args, **_options):
            raise failure

        patch.setattr(data, "write_pieces", interrupted)
        with pytest.raises(type(failure)):
            file.flush()
    with pytest.raises(Fs3Error, match="was not finished"):
        file.fsync()
    file.close()


def test_a_write_that_is_told_of_an_old_failure_takes_nothing(cluster):
    client = cluster.client()
    file = client.open_file("/log", "ab")
    file.write(b"one")
    refuse(cluster, Code.NO_SPACE)
    file.handle.opened.settle()
    refuse(cluster)
    with pytest.raises(OSError, match="NO_SPACE"):
        file.write(b"two")
    file.write(b"two")
    file.close()
    assert client.read("/log") == bytes(3) + b"two"


@pytest.mark.parametrize("failure", [OSError(24, "too many open files"), ValueError("a bug")])
def test_the_upkeep_survives_that_no_descriptor_is_left_and_bugs(cluster, monkeypatch, failure):
    monkeypatch.setattr(open_inodes, "DIRTY_AGE_S", 0.0)
    client = cluster.client()
    context = client.context
    with client.open_file("/f", "wb") as file:
        tried = threading.Event()

        def no_descriptor(*_args, **_options):
            tried.set()
            raise failure

        context._extend_at_s = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(context.metadata, "extend_session", no_descriptor)
            assert tried.wait(WAIT_S)
        file.write(b"sent by the upkeep")
        wait_until(lambda: cluster.requests(dataplane.WRITE_BATCH) > 0)
        assert all(thread.is_alive() for thread in context._upkeep)


def test_an_upkeep_that_goes_on_failing_says_so_once(cluster, monkeypatch):
    said = []
    log = SimpleNamespace(
        warning=lambda what, **_: said.append(what), info=lambda what, **_: said.append(what)
    )
    monkeypatch.setattr("fs3.client.context._log", log)
    monkeypatch.setattr("fs3.client.context._UPKEEP_S", 0.01)
    monkeypatch.setattr("fs3.client.context._UPKEEP_MAX_S", 0.02)
    failing = True
    attempts = []

    def tell(**_options):
        attempts.append(failing)
        if failing:
            raise Fs3Error(Code.UNREACHABLE, "nobody is there")

    client = cluster.client()
    with client.open_file("/f", "wb"):
        monkeypatch.setattr(client.context, "_send_settlings", tell)
        wait_until(lambda: attempts.count(True) > 5)
        failing = False
        wait_until(lambda: attempts.count(False) > 1)
        assert said == ["upkeep_failed", "upkeep_goes_on"]


def test_a_client_that_only_read_closes_well_without_a_metaserver(cluster, monkeypatch):
    monkeypatch.setattr("fs3.client.context._CLOSE_RETRY_S", 0.1)
    client = cluster.client()
    client.write("/f", b"hello")
    file = client.open_file("/f", "rb")
    assert file.read() == b"hello"
    cluster.stop_metaserver()
    client.close()
    cluster.start_metaserver()


def test_a_cut_to_nothing_that_failed_loses_nothing(cluster, monkeypatch):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    file.write(b"precious")
    with monkeypatch.context() as patch:

        def refuse_all(*_args, **_options):
            raise Fs3Error(Code.ACCESS, "by order")

        patch.setattr(client.context.metadata, "setattr", refuse_all)
        with pytest.raises(Fs3Error):
            file.truncate(0)
    file.close()
    assert client.read("/f") == b"precious"


# fsync.


def test_fsync_covers_what_a_handle_wrote_that_is_closed_by_now(cluster):
    client = cluster.client()
    client.write("/f", b"x" * 3 * CHUNK_BYTES)
    with client.open_file("/f", "r") as file:
        assert not synced_everywhere(cluster, file.inode().inode, 3)
        file.fsync()
        assert synced_everywhere(cluster, file.inode().inode, 3)


def test_chunks_to_be_synced_are_remembered_up_to_a_limit_then_synced(cluster, monkeypatch):
    monkeypatch.setattr(open_inodes, "FILE_UNSYNCED_CHUNKS", 4)
    monkeypatch.setattr(open_table, "CLIENT_UNSYNCED_CHUNKS", 6)
    client = cluster.client()
    with client.open_file("/long", "wb") as file:
        file.write(b"x" * 8 * CHUNK_BYTES)
        file.flush()
        inode = file.inode().inode
        wait_until(lambda: synced_everywhere(cluster, inode, 8))
    for name in range(10):
        client.write(f"/{name}", b"x")
    files = client.context.files
    with client.open_file("/0") as file:
        wait_until(lambda: files.unsynced_chunks <= 6)
        file.fsync()
        assert synced_everywhere(cluster, file.inode().inode, 1)


def test_a_file_that_cannot_be_synced_does_not_keep_others_from_being_sent(cluster, monkeypatch):
    monkeypatch.setattr(open_inodes, "FILE_UNSYNCED_CHUNKS", 0)
    monkeypatch.setattr(open_inodes, "DIRTY_AGE_S", 0.0)
    client = cluster.client()
    stuck, other = client.open_file("/stuck", "wb"), client.open_file("/other", "wb")
    stuck.write(b"x")
    stuck.flush()

    def refuse_all(_items):
        raise Fs3Error(Code.NOT_SERVING, "by order")

    with monkeypatch.context() as patch:
        patch.setattr(client.context.data, "sync_chunks", refuse_all)
        before = cluster.requests(dataplane.WRITE_BATCH)
        other.write(b"y")
        wait_until(lambda: cluster.requests(dataplane.WRITE_BATCH) > before)
    stuck.close()
    other.close()


# Lengths.


def test_allocating_space_never_cuts_what_another_mount_wrote(cluster):
    mount, other = Mount(cluster), Mount(cluster)
    mount.put("f", b"abc")
    handle = mount.open("f", os.O_RDWR).handle
    other.put("f", b"0123456789")
    mount.fs.fallocate(handle, 0, 5, FallocateFlags.NONE)
    mount.close(handle)
    assert other.get("f") == b"0123456789"
    for made in (mount, other):
        made.fs.detach()


def test_what_is_written_while_a_cut_is_carried_out_is_not_counted_if_it_was_cut_off(cluster):
    """The writer hears of the cut while chunks are still being removed, and goes on behind it."""
    writer, cutter = cluster.client(), cluster.client()
    file = writer.open_file("/f", "wb")
    file.write(b"a" * 100)
    file.flush()
    inode = file.inode().inode
    at_trim, go_on = threading.Event(), threading.Event()
    original = cluster.control.trim

    def late_trim(*args, **options):
        at_trim.set()
        assert go_on.wait(WAIT_S)
        return original(*args, **options)

    cluster.control.trim = late_trim
    cut = threading.Thread(target=cutter.truncate, args=("/f", 0))
    cut.start()
    assert at_trim.wait(WAIT_S)
    (seen,) = writer.context.metadata.getattr_many([inode])
    file.handle.opened.learn(seen)
    file.pwrite(b"b" * 50, 50)
    file.handle.opened.send_gathered()
    go_on.set()
    cut.join()
    file.close()
    content = cutter.read("/f")
    assert content in (b"", bytes(50) + b"b" * 50)


def test_an_append_does_not_land_where_a_cut_is_still_removing(cluster):
    client = cluster.client()
    client.write("/f", b"a" * 100)
    inode = client.stat("/f").st_ino
    file = client.open_file("/f", "ab")
    truncations = cluster.service.truncations
    finish = truncations.finish

    def cut_behind(asked: int) -> None:
        """Somebody cuts the file right after it was found whole; nothing is trimmed yet."""
        finish(asked)
        truncations.finish = finish
        change = SetAttributes(length_bytes=0)
        cluster.engine.run(namespace.set_attributes, asked, change, ROOT, 1)

    truncations.finish = cut_behind
    file.write(b"appended")
    file.close()
    assert client.stat("/f").st_ino == inode
    assert client.read("/f") == b"appended"


# Many at once.


def test_a_metaserver_that_does_not_answer_holds_up_all_threads_only_once():
    answers, waiting = [], []
    go_on = threading.Event()

    class Stuck:
        def get_routing(self, request, timeout_s):
            answers.append(None)
            assert go_on.wait(WAIT_S)
            raise Fs3Error(Code.MAYBE_APPLIED, "no answer in time")

    cache = RoutingCache(Stuck())
    old = cache._routing

    class Counted:
        """A lock that tells who comes."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            waiting.append(None)
            self._lock.acquire()

        def __exit__(self, *_error: object) -> None:
            self._lock.release()

    cache._asking = Counted()

    def refresh() -> None:
        assert cache.refresh(old) is old

    threads = [threading.Thread(target=refresh) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(waiting) == 8)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(answers) == 1
    cache.refresh(old)
    assert len(answers) == 2


def test_at_the_end_of_a_process_one_client_that_fails_does_not_keep_another_from_writing(cluster):
    failing, good = cluster.client(), cluster.client()
    files = [client.open_file(f"/{i}", "wb") for i, client in enumerate((failing, good))]
    files[0].write(b"lost")
    refuse(cluster, Code.NO_SPACE)
    files[0].handle.opened.settle()
    refuse(cluster)
    files[1].write(b"kept")
    with pytest.raises(Fs3Error, match="NO_SPACE"):
        close_all([failing.context, good.context])
    assert cluster.client().read("/1") == b"kept"
