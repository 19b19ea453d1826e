"""Open files: sessions, lengths, truncation, appends, garbage, requests asked twice."""

from __future__ import annotations

import pytest
from namespace_world import ALICE, CHUNK, EVE, ROOT, World, refused

from fs3.errors import Code, Fs3Error
from fs3.metaserver import namespace
from fs3.metaserver.kv.memory import Fault, MemoryEngine
from fs3.metaserver.namespace import Handle, OpenMode, Wrote
from fs3.types import FILE_BYTES_MAX, ROOT_INODE, SetAttributes

ONE, TWO, OTHER_CLIENT = Handle(7, 1), Handle(7, 2), Handle(8, 1)


@pytest.fixture
def world() -> World:
    return World()


def settle(world: World, path: str, length_bytes: int, truncate_version: int = 0):
    wrote = Wrote(length_bytes, truncate_version)
    return world.run(namespace.settle_length, world.at(path).inode, wrote, world.tick())


# --- open ---


@pytest.mark.parametrize(
    ("permissions", "mode", "allowed"),
    [
        (0o4, {"read": True}, True),
        (0o4, {"write": True}, False),
        (0o4, {"read": True, "truncate": True}, False),
        (0o2, {"write": True}, True),
        (0o2, {"read": True}, False),
        (0o4, {"read": True, "write": True}, False),
        (0o6, {"read": True, "write": True, "truncate": True}, True),
        (0o0, {}, True),
    ],
)
def test_open_checks_what_it_is_opened_for(world, permissions, mode, allowed):
    world.create("/a", ALICE, permissions)
    if allowed:
        assert world.open("/a", EVE, handle=ONE, **mode).inode == world.at("/a")
    else:
        refused(Code.ACCESS, world.open, "/a", EVE, handle=ONE, **mode)


def test_directories_open_for_reading_only_and_symlinks_not_at_all(world):
    world.mkdir("/d")
    world.create("/d/a")
    world.symlink("/s", "d")
    assert world.open("/d", read=True).inode == world.at("/d")
    refused(Code.IS_DIRECTORY, world.open, "/d", write=True, handle=ONE)
    refused(Code.IS_DIRECTORY, world.open, "/d", read=True, truncate=True)
    refused(Code.LOOP, world.open, "/s", read=True)


def test_opening_for_writing_needs_a_session_with_proper_numbers(world):
    world.create("/a")
    refused(Code.INVALID, world.open, "/a", write=True)
    refused(Code.INVALID, world.open, "/a", write=True, handle=Handle(7, 0))
    refused(Code.INVALID, world.open, "/a", read=True, handle=Handle(0, 1))


def test_open_of_a_removed_file_is_not_found_unless_it_is_still_held(world):
    inode = world.create("/a").inode.inode
    world.open("/a", read=True, handle=ONE)
    world.unlink("/a")
    mode = OpenMode(read=True, handle=TWO)
    world.run(namespace.open_file, inode, ROOT, mode, world.tick())
    world.close(inode, ONE)
    assert world.garbage() == []
    world.close(inode, TWO)
    assert world.garbage() == [inode]
    refused(Code.NOT_FOUND, world.run, namespace.open_file, inode, ROOT, mode, world.tick())


def test_opening_for_writing_takes_set_id_bits_unless_root_does(world):
    world.create("/a", ALICE, 0o6777)
    world.open("/a", write=True, handle=ONE)
    assert world.at("/a").permissions == 0o6777
    world.open("/a", EVE, read=True)
    assert world.at("/a").permissions == 0o6777
    assert world.open("/a", EVE, write=True, handle=ONE).inode.permissions == 0o777
    assert world.at("/a").permissions == 0o777


# --- sessions and removal ---


@pytest.mark.parametrize("mode", [{"read": True}, {"write": True}])
def test_removed_file_stays_while_a_session_holds_it(world, mode):
    inode = world.create("/a").inode.inode
    world.open("/a", handle=ONE, **mode)
    world.unlink("/a")
    assert world.garbage() == []
    assert world.inode(inode).links == 0
    assert world.close(inode, ONE).links == 0
    assert world.garbage() == [inode]


def test_reader_without_a_session_does_not_hold_a_removed_file(world):
    inode = world.create("/a").inode.inode
    world.open("/a", read=True)
    world.unlink("/a")
    assert world.garbage() == [inode]


def test_file_with_a_name_survives_all_its_sessions(world):
    inode = world.create("/a").inode.inode
    world.open("/a", write=True, handle=ONE)
    world.close(inode, ONE)
    assert world.garbage() == []
    assert world.unlink("/a").inode == inode


def test_closing_twice_and_closing_what_is_gone_is_fine(world):
    inode = world.create("/a").inode.inode
    world.open("/a", write=True, handle=ONE)
    assert world.close(inode, ONE) == world.close(inode, ONE)
    world.unlink("/a")
    world.close(inode, ONE)
    assert world.garbage() == [inode]
    (garbage,) = world.run(namespace.gc_next, 10, world.now_ns)
    world.run(namespace.gc_done, garbage)
    assert world.close(inode, ONE) is None


def test_close_settles_what_was_written(world):
    inode = world.create("/a").inode.inode
    world.open("/a", write=True, handle=ONE)
    closed = world.close(inode, ONE, wrote=Wrote(100, 0, mtime_ns=77))
    assert (closed.length_bytes, closed.mtime_ns, closed.version) == (100, 77, 1)
    assert world.at("/a") == closed


def test_sessions_of_a_client_that_is_gone_are_pruned_in_pieces(world):
    removed = []
    for i in range(5):
        removed.append(world.create(f"/{i}").inode.inode)
        world.open(f"/{i}", write=True, handle=Handle(7, i + 1))
        world.unlink(f"/{i}")
    world.create("/kept")
    world.open("/kept", write=True, handle=ONE)
    world.open("/kept", write=True, handle=OTHER_CLIENT)
    assert [world.run(namespace.prune_sessions, 7, world.now_ns, 4) for _ in range(3)] == [4, 2, 0]
    assert sorted(world.garbage()) == removed
    sessions = world.engine.transaction().range(b"SESS", b"SEST")
    assert len(sessions) == 1  # the other client's
    assert world.engine.transaction().range(b"CSES", b"CSET") != []


def test_open_conflicts_with_the_removal_that_would_not_see_it(world):
    inode = world.create("/a").inode.inode
    opener, remover = world.engine.transaction(), world.engine.transaction()
    namespace.open_file(opener, inode, ROOT, OpenMode(read=True, handle=ONE), 1)
    namespace.unlink(remover, ROOT_INODE, "a", ROOT, 1)
    opener.commit()
    refused(Code.CONFLICT, remover.commit)


# --- lengths ---


def test_settled_length_grows_and_never_shrinks(world):
    world.create("/a")
    assert settle(world, "/a", 100).length_bytes == 100
    assert settle(world, "/a", 50).length_bytes == 100
    assert settle(world, "/a", 200).length_bytes == 200


def test_every_settling_moves_version_mtime_and_ctime(world):
    world.create("/a")
    settle(world, "/a", 100)
    before = world.at("/a")
    after = settle(world, "/a", 100)
    assert after.version == before.version + 1
    assert after.mtime_ns == after.ctime_ns == world.now_ns


def test_length_told_from_before_a_truncation_is_ignored_but_the_version_moves(world):
    world.create("/a")
    settle(world, "/a", 100)
    world.set("/a", length_bytes=10)
    before = world.at("/a")
    after = settle(world, "/a", 100, before.truncate_version - 1)
    assert (after.length_bytes, after.version) == (10, before.version + 1)
    assert settle(world, "/a", 100, before.truncate_version).length_bytes == 100


def test_lengths_that_cannot_be_are_refused(world):
    world.create("/a")
    world.mkdir("/d")
    refused(Code.TOO_LARGE, settle, world, "/a", FILE_BYTES_MAX + 1)
    refused(Code.INVALID, settle, world, "/d", 1)
    refused(Code.TOO_LARGE, world.set, "/a", length_bytes=FILE_BYTES_MAX + 1)
    refused(Code.TOO_LARGE, world.set, "/a", length_bytes=-1)
    refused(Code.IS_DIRECTORY, world.set, "/d", length_bytes=0)


# --- truncation ---


@pytest.mark.parametrize(
    ("length", "first_dropped", "last_chunk_bytes"),
    [(0, 0, 0), (1, 1, 1), (CHUNK - 1, 1, CHUNK - 1), (CHUNK, 1, 0), (CHUNK + 5, 2, 5)],
)
def test_shrinking_says_which_chunks_go_and_which_is_cut(
    world, length, first_dropped, last_chunk_bytes
):
    world.create("/a")
    settle(world, "/a", 5 * CHUNK)
    inode, trim = world.set("/a", length_bytes=length)
    assert (inode.length_bytes, inode.truncate_version) == (length, 1)
    assert (trim.first_dropped, trim.last_chunk_bytes) == (first_dropped, last_chunk_bytes)
    assert trim.inode == inode == world.at("/a")


def test_growing_moves_version_and_times_but_not_the_truncate_version(world):
    before = world.create("/a").inode
    inode, trim = world.set("/a", length_bytes=10)
    assert trim is None
    assert (inode.length_bytes, inode.truncate_version) == (10, 0)
    assert inode.version == before.version + 1
    assert inode.mtime_ns == inode.ctime_ns == world.now_ns


def test_truncating_to_the_same_length_counts_as_shrinking(world):
    """A writer may have gone further than it told; what it wrote there must not come back."""
    world.create("/a")
    assert world.set("/a", length_bytes=0).trim is not None
    assert world.at("/a").truncate_version == 1


def test_trim_is_kept_until_it_is_done_and_told_to_those_who_open_for_writing(world):
    world.create("/a")
    settle(world, "/a", 5 * CHUNK)
    trim = world.set("/a", length_bytes=3).trim
    assert world.run(namespace.trims_next, 10) == [trim]
    assert world.open("/a", write=True, handle=ONE).trim == trim
    assert world.open("/a", read=True).trim is None
    world.run(namespace.trim_done, trim)
    assert world.run(namespace.trims_next, 10) == []
    assert world.open("/a", write=True, handle=ONE).trim is None


def test_trims_of_two_shrinks_are_one_and_end_with_the_later(world):
    world.create("/a")
    settle(world, "/a", 5 * CHUNK)
    first = world.set("/a", length_bytes=1).trim
    second = world.set("/a", length_bytes=9).trim
    assert second is not None
    assert second.keep_bytes == 1  # growing again must show zeros from 1 on
    settle(world, "/a", 100, 1)
    third = world.set("/a", length_bytes=50).trim
    assert (third.keep_bytes, third.truncate_version) == (1, 2)
    world.run(namespace.trim_done, first)
    assert world.run(namespace.trims_next, 10) == [third]
    world.run(namespace.trim_done, third)
    assert world.run(namespace.trims_next, 10) == []


def test_trims_are_listed_in_pages(world):
    inodes = []
    for i in range(5):
        inodes.append(world.create(f"/{i}").inode.inode)
        world.set(f"/{i}", length_bytes=0)
    first = world.run(namespace.trims_next, 3)
    rest = world.run(namespace.trims_next, 3, first[-1].inode.inode)
    assert [trim.inode.inode for trim in first + rest] == inodes


def test_opening_with_truncate_empties_the_file(world):
    world.create("/a")
    settle(world, "/a", 5 * CHUNK)
    opened = world.open("/a", write=True, truncate=True, handle=ONE)
    assert (opened.inode.length_bytes, opened.trim.first_dropped) == (0, 0)
    assert world.create("/a", mode=OpenMode(write=True, truncate=True, handle=ONE)).trim is not None


def test_truncating_needs_write_permission_or_an_open_writer(world):
    world.create("/a", ALICE, 0o600)
    world.open("/a", ALICE, write=True, handle=ONE)
    world.open("/a", ALICE, read=True, handle=TWO)
    world.set("/a", permissions=0o444)
    inode = world.at("/a").inode
    change = SetAttributes(length_bytes=5)
    for handle in (None, TWO, OTHER_CLIENT):
        refused(Code.ACCESS, world.run, namespace.set_attributes, inode, change, ALICE, 1, handle)
    changed = world.run(namespace.set_attributes, inode, change, ALICE, 1, ONE)
    assert changed.inode.length_bytes == 5


def test_truncating_takes_set_id_bits_unless_root_does(world):
    world.create("/a", ALICE, 0o6777)
    world.set("/a", length_bytes=0)
    assert world.at("/a").permissions == 0o6777
    world.set("/a", EVE, length_bytes=0)
    assert world.at("/a").permissions == 0o777


# --- appends ---


def test_appends_of_many_clients_never_overlap(world):
    inode = world.create("/log").inode.inode
    ranges = []
    for i in range(1, 20):
        offset, after = world.run(namespace.reserve_append, inode, i, world.tick())
        assert after.length_bytes == offset + i
        ranges.append((offset, i))
    position = 0
    for offset, length in ranges:
        assert offset == position
        position += length


def test_appends_at_the_same_time_conflict_rather_than_overlap(world):
    inode = world.create("/log").inode.inode
    one, two = world.engine.transaction(), world.engine.transaction()
    for txn in (one, two):
        assert namespace.reserve_append(txn, inode, 10, 1)[0] == 0
    one.commit()
    refused(Code.CONFLICT, two.commit)


def test_empty_append_is_refused(world):
    inode = world.create("/log").inode.inode
    refused(Code.INVALID, world.run, namespace.reserve_append, inode, 0, 1)


# --- garbage ---


def test_garbage_comes_oldest_first_after_its_delay_and_once_done_no_more(world):
    inodes, times = [], []
    for i in range(3):
        inodes.append(world.create(f"/{i}").inode.inode)
        world.unlink(f"/{i}")
        times.append(world.now_ns)
    found = world.run(namespace.gc_next, 10, times[1] + 5, 5)
    assert [garbage.inode.inode for garbage in found] == inodes[:2]
    assert [garbage.queued_ns for garbage in found] == times[:2]
    assert len(world.run(namespace.gc_next, 1, times[2])) == 1
    world.run(namespace.gc_done, found[0])
    world.run(namespace.gc_done, found[0])
    assert world.garbage() == inodes[1:]
    refused(Code.NOT_FOUND, world.inode, inodes[0])
    assert world.run(namespace.statfs, 0, 0).inodes == 3  # the root, and two not yet freed


def test_garbage_of_a_file_with_a_trim_takes_the_trim_along(world):
    world.create("/a")
    world.set("/a", length_bytes=0)
    world.unlink("/a")
    (garbage,) = world.run(namespace.gc_next, 1, world.now_ns)
    world.run(namespace.gc_done, garbage)
    assert world.run(namespace.trims_next, 10) == []


# --- once ---


def make(world: World, request: int, name: str, client: int = 7) -> bytes:
    def work(txn):
        def answer() -> bytes:
            made = namespace.mkdir(txn, ROOT_INODE, name, world.new())
            return b"%d" % made.inode

        return namespace.once(txn, client, request, world.tick(), answer)

    return world.run(work)


def test_repeated_request_gets_the_first_answer(world):
    first = make(world, 1, "d")
    assert make(world, 1, "d") == first
    assert make(world, 1, "other") == first
    assert world.names("/") == ["d"]


def test_other_requests_and_other_clients_are_done(world):
    make(world, 1, "d")
    refused(Code.EXISTS, make, world, 2, "d")
    refused(Code.EXISTS, make, world, 1, "d", client=8)
    refused(Code.EXISTS, make, world, 0, "d")


def test_refused_request_is_judged_again(world):
    make(world, 1, "d")
    refused(Code.EXISTS, make, world, 2, "d")
    world.rmdir("/d")
    make(world, 2, "d")
    assert world.names("/") == ["d"]


@pytest.mark.parametrize("fault", [Fault.LOSE, Fault.LOSE_ANSWER])
def test_request_repeated_after_a_lost_answer_is_done_exactly_once(fault):
    faults = []
    world = World(MemoryEngine(faults=lambda: faults.pop() if faults else Fault.NONE))
    world.new()  # takes a block of ids, so that the fault meets the mkdir
    faults.append(fault)
    with pytest.raises(Fs3Error) as caught:
        make(world, 1, "d")
    assert caught.value.code is Code.MAYBE_APPLIED
    answer = make(world, 1, "d")
    assert answer == b"%d" % world.at("/d").inode
    assert world.at("/").links == 3


def test_old_answers_are_forgotten_in_pieces(world):
    times = []
    for i in range(1, 6):
        make(world, i, f"{i}", client=i)
        times.append(world.now_ns)
    after, rounds = b"", 0
    while True:
        after = world.run(namespace.prune_requests, times[2], after, 2)
        rounds += 1
        if not after:
            break
    assert rounds == 3
    left = world.engine.transaction().range(b"IDEM", b"IDEN")
    assert [int.from_bytes(key[4:12], "big") for key, _ in left] == [4, 5]
