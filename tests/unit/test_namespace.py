"""The namespace's rules on names and permissions, one by one."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from namespace_world import ALICE, BOB, CHUNK, EVE, ROOT, TABLES, World, refused

from fs3.core.layout import Layout, pick_chains
from fs3.errors import Code, Fs3Error
from fs3.metaserver import namespace
from fs3.types import LINKS_MAX, ROOT_INODE, FileKind


@pytest.fixture
def world() -> World:
    return World()


# --- names ---


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b"])
def test_names_that_cannot_be_are_refused_everywhere(world, name):
    new = world.new()
    for action, args in (
        (namespace.create, (new, TABLES)),
        (namespace.mkdir, (new,)),
        (namespace.symlink, ("target", new)),
        (namespace.unlink, (ROOT, 1)),
    ):
        refused(Code.INVALID, world.run, action, ROOT_INODE, name, *args)


def test_name_of_255_bytes_is_kept_and_of_256_refused(world):
    name = "ü" * 127 + "x"
    world.create(f"/{name}")
    assert world.names("/") == [name]
    assert "256" in refused(Code.NAME_TOO_LONG, world.create, f"/{name}y")


def test_name_that_is_not_utf8_survives(world):
    name = os.fsdecode(b"\xff\xfe-name")
    made = world.create(f"/{name}").inode
    assert world.names("/") == [name]
    assert world.run(namespace.lookup, ROOT_INODE, name, ROOT).inode == made.inode


def test_lookup_of_a_missing_name_is_not_found(world):
    refused(Code.NOT_FOUND, world.run, namespace.lookup, ROOT_INODE, "a", ROOT)


def test_lookup_in_a_file_is_not_a_directory(world):
    made = world.create("/a").inode
    refused(Code.NOT_DIRECTORY, world.run, namespace.lookup, made.inode, "b", ROOT)


def test_lookup_understands_dot_and_dot_dot(world):
    made = world.mkdir("/a")
    assert world.run(namespace.lookup, made.inode, ".", ROOT).inode == made.inode
    assert world.run(namespace.lookup, made.inode, "..", ROOT).inode == ROOT_INODE
    assert world.run(namespace.lookup, ROOT_INODE, "..", ROOT).inode == ROOT_INODE


# --- create ---


def test_new_file_is_empty_owned_by_its_maker_and_laid_out_by_its_directory(world):
    made = world.create("/a", ALICE, 0o640).inode
    assert (made.kind, made.permissions, made.uid, made.gid) == (FileKind.FILE, 0o640, 1000, 100)
    assert (made.links, made.length_bytes, made.version) == (1, 0, 0)
    assert made.atime_ns == made.mtime_ns == made.ctime_ns == world.now_ns
    assert made.layout == Layout(CHUNK, 4, 1, pick_chains(TABLES[1], 4, made.inode))
    assert world.at("/a") == made


def test_layout_asked_for_replaces_that_of_the_directory_field_by_field(world):
    made = world.create("/a", layout=Layout(0, 2, 2)).inode
    assert (made.layout.chunk_bytes, made.layout.stripe, made.layout.chain_table) == (CHUNK, 2, 2)
    assert set(made.layout.chains) < set(TABLES[2])
    refused(Code.INVALID, world.create, "/b", layout=Layout(3, 0, 0))
    refused(Code.NOT_READY, world.create, "/b", layout=Layout(0, 0, 9))
    assert world.names("/") == ["a"]


def test_create_opens_what_is_there_unless_exclusive(world):
    first = world.create("/a")
    again = world.create("/a")
    assert (first.created, again.created) == (True, False)
    assert again.inode == first.inode
    refused(Code.EXISTS, world.create, "/a", exclusive=True)


def test_create_of_an_existing_directory_or_symlink_says_so(world):
    world.mkdir("/d")
    world.symlink("/s", "d")
    refused(Code.IS_DIRECTORY, world.create, "/d")
    refused(Code.LOOP, world.create, "/s")


def test_file_just_made_opens_for_its_maker_whatever_its_permissions(world):
    mode = namespace.OpenMode(write=True, handle=namespace.Handle(7, 1))
    made = world.create("/a", ALICE, 0o000, mode=mode).inode
    assert world.run(namespace.prune_sessions, 7, 1) == 1
    refused(Code.ACCESS, world.open, "/a", ALICE, read=True)
    assert made.permissions == 0


def test_create_in_a_removed_directory_is_not_found(world):
    gone = world.mkdir("/d")
    world.rmdir("/d")
    refused(Code.NOT_FOUND, world.run, namespace.create, gone.inode, "a", world.new(), TABLES)


def test_inode_ids_are_never_given_twice_by_any_allocator(world):
    allocators = [namespace.InodeAllocator(world.engine, block=3) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda i: allocators[i % 4].take(), range(200)))
    assert len(set(taken)) == 200
    assert ROOT_INODE not in taken


def test_allocator_without_a_root_says_what_is_missing():
    from fs3.metaserver.kv.memory import MemoryEngine

    refused(Code.NOT_READY, namespace.InodeAllocator(MemoryEngine()).take)


def test_make_root_keeps_what_is_there(world):
    world.create("/a")
    root = world.run(namespace.make_root, Layout(64 << 10, 1), 99)
    assert root.layout.chunk_bytes == CHUNK
    assert world.names("/") == ["a"]


def test_mknod_makes_special_files_and_devices_only_for_root(world):
    def mknod(name, who, kind, device=0):
        new = world.new(who, 0o600)
        return world.run(namespace.mknod, ROOT_INODE, name, new, TABLES, kind=kind, device=device)

    assert mknod("fifo", ALICE, FileKind.FIFO).mode == stat.S_IFIFO | 0o600
    assert mknod("socket", ALICE, FileKind.SOCKET).kind is FileKind.SOCKET
    assert mknod("file", ALICE, FileKind.FILE).layout.chains
    assert mknod("disk", ROOT, FileKind.BLOCK_DEVICE, 0x801).device == 0x801
    refused(Code.PERMISSION, mknod, "null", ALICE, FileKind.CHARACTER_DEVICE, 0x103)
    refused(Code.INVALID, mknod, "d", ROOT, FileKind.DIRECTORY)
    refused(Code.EXISTS, mknod, "fifo", ROOT, FileKind.FIFO)


def test_kind_of_reads_modes():
    assert namespace.kind_of(stat.S_IFIFO | 0o644) is FileKind.FIFO
    assert namespace.kind_of(0o644) is FileKind.FILE
    refused(Code.INVALID, namespace.kind_of, 0o030000)


# --- directories: links and times ---


def test_links_of_a_directory_count_its_subdirectories(world):
    world.mkdir("/d")
    assert (world.at("/").links, world.at("/d").links) == (3, 2)
    world.mkdir("/d/e")
    world.create("/d/f")
    assert world.at("/d").links == 3
    world.rmdir("/d/e")
    assert world.at("/d").links == 2


def test_entries_that_come_and_go_move_the_times_and_version_of_their_directory(world):
    world.mkdir("/d")
    before = world.at("/d")
    for change in (
        lambda: world.create("/d/a"),
        lambda: world.symlink("/d/s", "a"),
        lambda: world.link("/d/a", "/d/b"),
        lambda: world.rename("/d/b", "/d/c"),
        lambda: world.unlink("/d/c"),
        lambda: world.mkdir("/d/e"),
        lambda: world.rmdir("/d/e"),
    ):
        change()
        after = world.at("/d")
        assert after.mtime_ns == after.ctime_ns == world.now_ns
        assert after.version > before.version
        assert after.atime_ns == before.atime_ns
        before = after


def test_lookups_and_refusals_leave_a_directory_untouched(world):
    world.mkdir("/d")
    world.create("/d/a")
    before = world.at("/d")
    refused(Code.EXISTS, world.mkdir, "/d/a")
    refused(Code.NOT_FOUND, world.unlink, "/d/b")
    world.at("/d/a")
    assert world.at("/d") == before


def test_setting_the_mtime_of_a_directory_holds_until_the_next_entry(world):
    world.mkdir("/d")
    world.create("/d/a")
    world.set("/d", mtime_ns=5)
    assert (world.at("/d").mtime_ns, world.at("/d").ctime_ns) == (5, world.now_ns)
    world.create("/d/b")
    assert world.at("/d").mtime_ns == world.now_ns


def test_creations_in_one_directory_do_not_conflict(world):
    directory = world.mkdir("/d").inode
    transactions = [world.engine.transaction() for _ in range(10)]
    for i, txn in enumerate(transactions):
        namespace.create(txn, directory, f"{i}", world.new(), TABLES)
        namespace.mkdir(txn, directory, f"d{i}", world.new())
    for txn in transactions:
        txn.commit()
    assert len(world.names("/d")) == 20
    assert world.at("/d").links == 12


def test_creation_conflicts_with_removal_of_its_directory(world):
    directory = world.mkdir("/d").inode
    for first in ("create", "rmdir"):
        create, rmdir = world.engine.transaction(), world.engine.transaction()
        namespace.create(create, directory, "a", world.new(), TABLES)
        namespace.rmdir(rmdir, ROOT_INODE, "d", ROOT, world.tick())
        order = [create, rmdir] if first == "create" else [rmdir, create]
        order[0].commit()
        refused(Code.CONFLICT, order[1].commit)
        if first == "create":
            world.unlink("/d/a")


def test_creation_of_one_name_twice_conflicts(world):
    one, two = world.engine.transaction(), world.engine.transaction()
    for txn in (one, two):
        namespace.create(txn, ROOT_INODE, "a", world.new(), TABLES, exclusive=True)
    one.commit()
    refused(Code.CONFLICT, two.commit)


# --- unlink, rmdir, link, symlink ---


def test_unlinked_file_is_gone_and_becomes_garbage(world):
    made = world.create("/a").inode
    assert world.unlink("/a").links == 0
    refused(Code.NOT_FOUND, world.at, "/a")
    assert world.garbage() == [made.inode]


def test_unlink_of_a_directory_and_rmdir_of_a_file_are_refused(world):
    world.mkdir("/d")
    world.create("/a")
    refused(Code.IS_DIRECTORY, world.unlink, "/d")
    refused(Code.NOT_DIRECTORY, world.rmdir, "/a")


def test_rmdir_wants_an_empty_directory(world):
    world.mkdir("/d")
    world.create("/d/a")
    assert "'a'" in refused(Code.NOT_EMPTY, world.rmdir, "/d")
    refused(Code.NOT_EMPTY, world.run, namespace.rmdir, ROOT_INODE, "..", ROOT, 1)
    world.unlink("/d/a")
    world.rmdir("/d")
    assert world.names("/") == []


def test_removed_inodes_leave_no_rows_behind(world):
    before = world.engine.transaction().range(b"INOD", b"INOE")
    count = world.run(namespace.statfs, 0, 0).inodes
    world.mkdir("/d")
    world.create("/d/a")
    world.run(namespace.set_xattr, world.at("/d/a").inode, "user.x", b"1", ROOT, 1)
    world.symlink("/d/s", "a")
    assert world.run(namespace.statfs, 0, 0).inodes == count + 3
    for name in ("a", "s"):
        world.unlink(f"/d/{name}")
    world.rmdir("/d")
    for garbage in world.run(namespace.gc_next, 10, world.now_ns):
        world.run(namespace.gc_done, garbage)
    assert world.engine.transaction().range(b"INOD", b"INOE") == before
    for prefix in (b"XATT", b"GCQU", b"TRIM", b"SESS"):
        assert world.engine.transaction().range(prefix, prefix + b"\xfe") == []
    assert len(world.engine.transaction().range(b"DIR", b"DIS")) <= 3  # the root's
    assert world.run(namespace.statfs, 0, 0).inodes == count


def test_file_with_two_names_lives_until_both_are_gone(world):
    made = world.create("/a").inode
    linked = world.link("/a", "/b")
    assert (linked.inode, linked.links, linked.ctime_ns) == (made.inode, 2, world.now_ns)
    assert world.unlink("/a").links == 1
    assert world.at("/b").inode == made.inode
    assert world.garbage() == []
    world.unlink("/b")
    assert world.garbage() == [made.inode]


def test_links_to_directories_onto_names_and_of_the_removed_are_refused(world):
    world.mkdir("/d")
    removed = world.create("/a").inode.inode
    world.create("/b")
    refused(Code.PERMISSION, world.link, "/d", "/e")
    refused(Code.EXISTS, world.link, "/a", "/b")
    world.unlink("/a")
    refused(Code.NOT_FOUND, world.run, namespace.link, removed, ROOT_INODE, "c", ROOT, 1)


def test_number_of_links_is_limited(world, monkeypatch):
    monkeypatch.setattr("fs3.metaserver.namespace_entries.LINKS_MAX", 2)
    world.create("/a")
    world.link("/a", "/b")
    refused(Code.TOO_MANY_LINKS, world.link, "/a", "/c")
    assert LINKS_MAX > 2


def test_symlink_keeps_its_target_and_has_no_garbage(world):
    made = world.symlink("/s", "some/where", ALICE)
    assert (made.permissions, made.length_bytes, made.symlink) == (0o777, 10, "some/where")
    assert world.run(namespace.readlink, made.inode) == "some/where"
    world.unlink("/s")
    assert world.garbage() == []
    refused(Code.NOT_FOUND, world.inode, made.inode)


@pytest.mark.parametrize(
    ("target", "code"),
    [("", Code.INVALID), ("a\0", Code.INVALID), ("x" * 4096, Code.NAME_TOO_LONG)],
)
def test_symlink_targets_that_cannot_be_are_refused(world, target, code):
    refused(code, world.symlink, "/s", target)
    assert world.symlink("/ok", "x" * 4095).length_bytes == 4095


def test_readlink_of_a_file_is_refused(world):
    refused(Code.INVALID, world.run, namespace.readlink, world.create("/a").inode.inode)


# --- permissions ---


def test_one_class_of_bits_counts_the_owner_first_then_the_group(world):
    world.create("/a", ALICE, 0o047)
    refused(Code.ACCESS, world.open, "/a", ALICE, read=True)  # owner: none, though others may
    world.create("/b", ALICE, 0o407)
    world.set("/b", gid=101)
    refused(Code.ACCESS, world.open, "/b", BOB, read=True)  # group: none, though others may
    world.open("/b", EVE, read=True)
    world.open("/b", ALICE, read=True)
    world.open("/a", ROOT, read=True)


def test_supplementary_groups_count(world):
    world.create("/a", BOB, 0o640)
    world.open("/a", ALICE, read=True)  # in group 101 besides her own
    refused(Code.ACCESS, world.open, "/a", EVE, read=True)


def test_names_in_a_directory_need_search_and_changes_need_write(world):
    directory = world.mkdir("/d", ALICE, 0o754).inode
    world.create("/d/a", ALICE, 0o666)
    refused(Code.ACCESS, world.run, namespace.lookup, directory, "a", EVE)  # r without x
    refused(Code.ACCESS, world.run, namespace.resolve, "/d/a", EVE)
    assert world.run(namespace.read_directory, directory, EVE).entries
    world.set("/d", permissions=0o755)
    assert world.run(namespace.lookup, directory, "a", EVE)
    for action in (
        lambda: world.create("/d/b", EVE),
        lambda: world.mkdir("/d/b", EVE),
        lambda: world.symlink("/d/b", "a", EVE),
        lambda: world.link("/d/a", "/d/b", EVE),
        lambda: world.unlink("/d/a", EVE),
        lambda: world.rename("/d/a", "/b", EVE),
        lambda: world.rename("/d/a", "/d/b", EVE),
    ):
        refused(Code.ACCESS, action)
    assert world.create("/d/a", EVE).inode.uid == 1000  # opening what is there needs no write


def test_existing_name_is_told_before_missing_permission(world):
    world.mkdir("/d", ALICE, 0o755)
    world.mkdir("/d/e", ALICE)
    refused(Code.EXISTS, world.mkdir, "/d/e", EVE)


def test_listing_needs_read(world):
    directory = world.mkdir("/d", ALICE, 0o711).inode
    refused(Code.ACCESS, world.run, namespace.read_directory, directory, EVE)


def test_sticky_directory_lets_only_owners_remove(world):
    world.mkdir("/tmp", ROOT, 0o1777)
    world.create("/tmp/a", ALICE, 0o666)
    world.mkdir("/tmp/d", ALICE)
    world.create("/tmp/b", BOB)
    for action in (
        lambda: world.unlink("/tmp/a", BOB),
        lambda: world.rmdir("/tmp/d", BOB),
        lambda: world.rename("/tmp/a", "/tmp/c", BOB),
        lambda: world.rename("/tmp/b", "/tmp/a", BOB),
        lambda: world.rename("/tmp/b", "/tmp/a", BOB, exchange=True),
    ):
        refused(Code.PERMISSION, action)
    world.rename("/tmp/a", "/tmp/c", ALICE)
    world.unlink("/tmp/c", ROOT)
    world.set("/tmp", uid=BOB.uid)
    world.rmdir("/tmp/d", BOB)  # the directory's own owner may


def test_set_group_id_directory_hands_its_group_on(world):
    world.mkdir("/d", ALICE)
    world.set("/d", gid=101)
    world.set("/d", permissions=0o2777)
    made = world.mkdir("/d/e", EVE, 0o755)
    assert (made.gid, made.permissions) == (101, 0o2755)
    assert world.create("/d/a", EVE, 0o644).inode.gid == 101
    assert world.create("/d/x", EVE, 0o2755).inode.permissions == 0o755  # not her group
    assert world.create("/d/y", BOB, 0o2755).inode.permissions == 0o2755


def test_refusals_name_who_and_what():
    world = World()
    world.create("/a", ALICE, 0o600)
    detail = refused(Code.ACCESS, world.open, "/a", EVE, write=True)
    assert "uid 1002" in detail
    assert "1000:100" in detail
    assert "0600" in detail
    assert issubclass(type(Fs3Error(Code.ACCESS, "")), PermissionError)
