"""Attributes, extended attributes, layouts, listings and paths."""

from __future__ import annotations

import os

import pytest
from namespace_world import ALICE, BOB, CHUNK, EVE, ROOT, World, refused

from fs3.core.layout import Layout
from fs3.errors import Code
from fs3.metaserver import namespace
from fs3.types import ROOT_INODE, FileKind


@pytest.fixture
def world() -> World:
    return World()


# --- getattr ---


def test_attributes_of_many_come_in_order_and_none_for_the_missing(world):
    made = [world.create("/a").inode, world.mkdir("/d")]
    world.create("/d/b")
    found = world.run(namespace.get_attributes_of, [made[1].inode, 999, made[0].inode])
    assert found == [world.at("/d"), None, made[0]]


def test_attributes_of_a_removed_inode_are_not_found(world):
    inode = world.mkdir("/d").inode
    world.rmdir("/d")
    refused(Code.NOT_FOUND, world.inode, inode)


def test_statfs_passes_space_on_and_counts_inodes(world):
    world.create("/a")
    found = world.run(namespace.statfs, 100, 40)
    assert (found.capacity_bytes, found.free_bytes, found.inodes) == (100, 40, 2)


# --- chmod, chown ---


def test_only_the_owner_and_root_change_the_mode(world):
    world.create("/a", ALICE, 0o644)
    refused(Code.PERMISSION, world.set, "/a", EVE, permissions=0o777)
    assert world.set("/a", ALICE, permissions=0o600).inode.permissions == 0o600
    assert world.set("/a", ROOT, permissions=0o4711).inode.permissions == 0o4711
    assert world.at("/a").ctime_ns == world.now_ns
    refused(Code.INVALID, world.set, "/a", ROOT, permissions=0o10000)


def test_mode_of_a_symlink_cannot_be_changed(world):
    world.symlink("/s", "a")
    refused(Code.UNSUPPORTED, world.set, "/s", permissions=0o600)


def test_chmod_to_set_group_id_of_a_foreign_group_does_not_take(world):
    world.create("/a", ALICE, 0o755)
    world.set("/a", gid=102)
    assert world.set("/a", ALICE, permissions=0o2755).inode.permissions == 0o755
    assert world.set("/a", ROOT, permissions=0o2755).inode.permissions == 0o2755


def test_owner_may_choose_among_the_own_groups_only(world):
    world.create("/a", ALICE)
    assert world.set("/a", ALICE, gid=101).inode.gid == 101
    assert world.set("/a", ALICE, uid=1000, gid=100).inode.gid == 100
    for change in ({"gid": 102}, {"uid": 1001}, {"uid": 0}):
        refused(Code.PERMISSION, world.set, "/a", ALICE, **change)
    refused(Code.PERMISSION, world.set, "/a", BOB, gid=101)
    assert world.set("/a", ROOT, uid=1001, gid=102).inode.uid == 1001


def test_chown_takes_set_id_bits_of_files_and_leaves_those_of_directories(world):
    world.create("/a", ALICE, 0o6755)
    world.create("/b", ALICE, 0o2644)
    world.mkdir("/d", ALICE)
    world.set("/d", permissions=0o2755)
    for path in ("/a", "/b", "/d"):
        world.set(path, uid=1001)
    permissions = [world.at(path).permissions for path in ("/a", "/b", "/d")]
    assert permissions == [0o755, 0o2644, 0o2755]


def test_chown_and_chmod_together_keep_the_mode_that_was_asked_for(world):
    world.create("/a", ALICE)
    assert world.set("/a", uid=1001, permissions=0o4755).inode.permissions == 0o4755


def test_refused_change_changes_nothing(world):
    world.create("/a", ALICE, 0o666)
    before = world.at("/a")
    refused(Code.PERMISSION, world.set, "/a", EVE, length_bytes=5, permissions=0o777)
    assert world.at("/a") == before


# --- times ---


def test_times_are_set_by_the_owner_to_anything(world):
    world.create("/a", ALICE)
    changed = world.set("/a", ALICE, atime_ns=-5, mtime_ns=1 << 60).inode
    assert (changed.atime_ns, changed.mtime_ns) == (-5, 1 << 60)
    assert changed.ctime_ns == world.now_ns
    refused(Code.PERMISSION, world.set, "/a", EVE, mtime_ns=1)


def test_times_are_set_to_now_by_whoever_may_write(world):
    world.create("/a", ALICE, 0o602)
    changed = world.set("/a", EVE, atime_now=True, mtime_now=True).inode
    assert changed.atime_ns == changed.mtime_ns == world.now_ns
    world.set("/a", permissions=0o604)
    refused(Code.ACCESS, world.set, "/a", EVE, mtime_now=True)
    world.set("/a", permissions=0o000)
    world.set("/a", ALICE, mtime_now=True)


def test_setting_only_one_time_leaves_the_other(world):
    made = world.create("/a").inode
    changed = world.set("/a", atime_ns=3).inode
    assert (changed.atime_ns, changed.mtime_ns) == (3, made.mtime_ns)


def test_change_of_a_directory_does_not_fold_its_counters_in_twice(world):
    world.mkdir("/d")
    world.mkdir("/d/e")
    before = world.at("/d")
    for _ in range(3):
        assert world.set("/d", permissions=0o755).inode.links == 3
    after = world.at("/d")
    assert (after.links, after.version, after.mtime_ns) == (3, before.version, before.mtime_ns)


# --- layout ---


def test_layout_of_a_directory_is_that_of_files_and_directories_made_in_it_later(world):
    world.mkdir("/d", ALICE)
    before = world.create("/d/a").inode
    inode = world.at("/d").inode
    world.run(namespace.set_layout, inode, Layout(4 << 20, 2, 2), ALICE, world.tick())
    world.mkdir("/d/e")
    made = world.create("/d/e/b").inode
    assert (made.layout.chunk_bytes, len(made.layout.chains)) == (4 << 20, 2)
    assert world.at("/d/a") == before


def test_layout_fields_that_are_0_stay(world):
    changed = world.run(namespace.set_layout, ROOT_INODE, Layout(0, 7, 0), ROOT, 1)
    assert changed.layout == Layout(CHUNK, 7, 1)


@pytest.mark.parametrize("layout", [Layout(3, 1, 1), Layout(128 << 20, 1, 1), Layout(0, 99_999, 0)])
def test_layouts_that_cannot_be_are_refused(world, layout):
    refused(Code.INVALID, world.run, namespace.set_layout, ROOT_INODE, layout, ROOT, 1)


def test_layout_is_set_on_directories_by_their_owner(world):
    inode = world.create("/a").inode.inode
    layout = Layout(0, 2, 0)
    refused(Code.NOT_DIRECTORY, world.run, namespace.set_layout, inode, layout, ROOT, 1)
    refused(Code.PERMISSION, world.run, namespace.set_layout, ROOT_INODE, layout, EVE, 1)


# --- extended attributes ---


def set_xattr(world: World, path: str, name: str, value: bytes, who=ROOT, **flags):
    inode = world.at(path).inode
    return world.run(namespace.set_xattr, inode, name, value, who, world.tick(), **flags)


def get_xattr(world: World, path: str, name: str, who=ROOT) -> bytes:
    return world.run(namespace.get_xattr, world.at(path).inode, name, who)


def remove_xattr(world: World, path: str, name: str, who=ROOT) -> None:
    world.run(namespace.remove_xattr, world.at(path).inode, name, who, world.tick())


def list_xattrs(world: World, path: str, who=ROOT) -> list[str]:
    return world.run(namespace.list_xattrs, world.at(path).inode, who)


def test_attributes_are_set_read_listed_and_removed(world):
    world.create("/a")
    for name, value in (("user.b", b"2"), ("user.a", b""), ("user.a", b"1\0")):
        set_xattr(world, "/a", name, value)
    assert world.at("/a").ctime_ns == world.now_ns
    assert list_xattrs(world, "/a") == ["user.a", "user.b"]
    assert (get_xattr(world, "/a", "user.a"), get_xattr(world, "/a", "user.b")) == (b"1\0", b"2")
    remove_xattr(world, "/a", "user.a")
    refused(Code.NO_ATTRIBUTE, get_xattr, world, "/a", "user.a")
    refused(Code.NO_ATTRIBUTE, remove_xattr, world, "/a", "user.a")
    assert list_xattrs(world, "/a") == ["user.b"]


def test_create_and_replace_flags_are_kept(world):
    world.create("/a")
    refused(Code.NO_ATTRIBUTE, set_xattr, world, "/a", "user.a", b"1", replace_only=True)
    set_xattr(world, "/a", "user.a", b"1", create=True)
    refused(Code.EXISTS, set_xattr, world, "/a", "user.a", b"2", create=True)
    set_xattr(world, "/a", "user.a", b"3", replace_only=True)
    assert get_xattr(world, "/a", "user.a") == b"3"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a", Code.UNSUPPORTED),
        ("system.posix_acl_access", Code.UNSUPPORTED),
        ("user.", Code.INVALID),
        ("user.a\0", Code.INVALID),
        ("user." + "x" * 251, Code.NAME_TOO_LONG),
    ],
)
def test_attribute_names_that_cannot_be_are_refused(world, name, code):
    world.create("/a")
    for action, args in ((get_xattr, ()), (set_xattr, (b"",)), (remove_xattr, ())):
        refused(code, action, world, "/a", name, *args)


def test_attribute_sizes_are_limited(world):
    world.create("/a")
    set_xattr(world, "/a", "user.a", b"x" * 65536)
    refused(Code.TOO_LARGE, set_xattr, world, "/a", "user.a", b"x" * 65537)

    def fill() -> None:
        for i in range(300):
            set_xattr(world, "/a", f"user.{i:0250}", b"")

    refused(Code.NO_SPACE, fill)
    names = list_xattrs(world, "/a")
    assert sum(len(name) + 1 for name in names) <= 65536
    set_xattr(world, "/a", names[0], b"replaced")


def test_user_attributes_follow_the_permissions_of_the_file(world):
    world.create("/a", ALICE, 0o640)
    set_xattr(world, "/a", "user.a", b"1", ALICE)
    refused(Code.ACCESS, get_xattr, world, "/a", "user.a", EVE)
    refused(Code.ACCESS, set_xattr, world, "/a", "user.a", b"2", EVE)
    world.set("/a", permissions=0o644)
    assert get_xattr(world, "/a", "user.a", EVE) == b"1"
    refused(Code.ACCESS, remove_xattr, world, "/a", "user.a", EVE)


def test_user_attributes_are_for_files_and_directories_and_owners_of_sticky_ones(world):
    world.symlink("/s", "a")
    refused(Code.PERMISSION, set_xattr, world, "/s", "user.a", b"")
    world.mkdir("/t", ALICE)
    world.set("/t", permissions=0o1777)
    refused(Code.PERMISSION, set_xattr, world, "/t", "user.a", b"", EVE)
    set_xattr(world, "/t", "user.a", b"", ALICE)


def test_trusted_attributes_are_root_s_and_unseen_by_others(world):
    world.create("/a", ALICE)
    set_xattr(world, "/a", "trusted.a", b"1")
    refused(Code.PERMISSION, set_xattr, world, "/a", "trusted.a", b"2", ALICE)
    refused(Code.NO_ATTRIBUTE, get_xattr, world, "/a", "trusted.a", ALICE)
    assert list_xattrs(world, "/a", ALICE) == []
    assert list_xattrs(world, "/a") == ["trusted.a"]


def test_security_attributes_are_read_by_all_and_set_by_root(world):
    world.create("/a", ALICE)
    set_xattr(world, "/a", "security.a", b"1")
    assert get_xattr(world, "/a", "security.a", EVE) == b"1"
    refused(Code.PERMISSION, set_xattr, world, "/a", "security.a", b"2", ALICE)


# --- listing ---


def test_listing_is_in_order_of_bytes_with_inodes_and_kinds(world):
    made = {name: world.create(f"/{name}").inode.inode for name in ("b", "a", "B", "ä")}
    made["d"] = world.mkdir("/d").inode
    entries = world.entries("/")
    assert [entry.name for entry in entries] == ["B", "a", "b", "d", "ä"]
    assert {entry.name: entry.inode for entry in entries} == made
    assert [entry.kind for entry in entries].count(FileKind.DIRECTORY) == 1
    assert all(entry.attributes is None for entry in entries)


def test_listing_with_attributes_tells_what_getattr_tells(world):
    world.mkdir("/d")
    world.create("/d/a")
    world.create("/a")
    for entry in world.entries("/", attributes=True):
        assert entry.attributes == world.inode(entry.inode)


def test_pages_follow_each_other_while_entries_come_and_go(world):
    for i in range(10):
        world.create(f"/{i}")
    seen: list[str] = []
    more = True
    while more:
        page = world.run(
            namespace.read_directory, ROOT_INODE, ROOT, after=seen[-1] if seen else "", limit=3
        )
        seen += [entry.name for entry in page.entries]
        more = page.more
        if len(seen) == 3:
            world.unlink("/2")  # the very name to go on from
            world.unlink("/7")
            world.create("/1x")  # before it: may be missed
            world.create("/8x")
    assert seen == ["0", "1", "2", "3", "4", "5", "6", "8", "8x", "9"]


def test_exact_last_page_says_that_no_more_follows(world):
    for i in range(4):
        world.create(f"/{i}")
    page = world.run(namespace.read_directory, ROOT_INODE, ROOT, after="1", limit=2)
    assert ([entry.name for entry in page.entries], page.more) == (["2", "3"], False)


def test_listing_shows_only_its_own_directory(world):
    inodes = [world.mkdir(f"/{i}").inode for i in range(3)]
    world.create("/1/" + os.fsdecode(b"\xff" * 255))
    assert [len(world.run(namespace.read_directory, i, ROOT).entries) for i in inodes] == [0, 1, 0]


@pytest.mark.parametrize("limit", [0, -1, 5000])
def test_page_sizes_are_limited(world, limit):
    refused(Code.INVALID, world.run, namespace.read_directory, ROOT_INODE, ROOT, limit=limit)


def test_listing_a_file_is_refused(world):
    inode = world.create("/a").inode.inode
    refused(Code.NOT_DIRECTORY, world.run, namespace.read_directory, inode, ROOT)


# --- paths ---


@pytest.fixture
def tree(world) -> World:
    """/d/e/a, and links: /here -> d, /d/up -> ../d/e, /d/absolute -> /d/e/a, /dangling -> none."""
    world.mkdir("/d")
    world.mkdir("/d/e")
    world.create("/d/e/a")
    world.symlink("/here", "d")
    world.symlink("/d/up", "../d/e")
    world.symlink("/d/absolute", "/d/e/a")
    world.symlink("/dangling", "none")
    return world


def resolve(world: World, path: str, who=ROOT, **kwargs):
    return world.run(namespace.resolve, path, who, **kwargs)


@pytest.mark.parametrize(
    ("path", "same_as"),
    [
        ("/", "/"),
        ("///", "/"),
        ("/..", "/"),
        ("/d/", "/d"),
        ("//d//e/.//a", "/d/e/a"),
        ("d/e/../e/a", "/d/e/a"),
        ("/here", "/d"),
        ("/here/e/a", "/d/e/a"),
        ("/here/up/a", "/d/e/a"),
        ("/here/absolute", "/d/e/a"),
        ("/here/..", "/"),
    ],
)
def test_path_leads_to(tree, path, same_as):
    found = resolve(tree, path)
    assert found.inode == tree.at(same_as)
    if found.name:
        above = tree.inode(found.parent)
        assert tree.run(namespace.lookup, above.inode, found.name, ROOT) == found.inode


def test_link_at_the_end_is_followed_only_if_asked(tree):
    assert resolve(tree, "/here", follow=False).inode.kind is FileKind.SYMLINK
    assert resolve(tree, "/here/", follow=False).inode == tree.at("/d")
    assert resolve(tree, "/here/up", follow=False).inode.symlink == "../d/e"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", Code.NOT_FOUND),
        ("/none", Code.NOT_FOUND),
        ("/none/a", Code.NOT_FOUND),
        ("/dangling", Code.NOT_FOUND),
        ("/d/e/a/b", Code.NOT_DIRECTORY),
        ("/d/e/a/", Code.NOT_DIRECTORY),
        ("/d/e/a/..", Code.NOT_DIRECTORY),
        ("/d\0", Code.INVALID),
        ("/" + "x" * 256, Code.NAME_TOO_LONG),
        ("/d" * 2049, Code.NAME_TOO_LONG),
    ],
)
def test_path_is_refused(tree, path, code):
    refused(code, resolve, tree, path)


def test_missing_last_component_comes_with_its_parent_if_asked(tree):
    for path, parent, name in (
        ("/new", "/", "new"),
        ("/here/new", "/d", "new"),
        ("/d/new/", "/d", "new"),
        ("/dangling", "/", "none"),
    ):
        found = resolve(tree, path, want_parent=True)
        assert found == (None, tree.at(parent).inode, name)
    refused(Code.NOT_FOUND, resolve, tree, "/new/a", want_parent=True)


def test_relative_path_begins_where_it_is_told(tree):
    start = tree.at("/d").inode
    assert resolve(tree, "e/a", start=start).inode == tree.at("/d/e/a")
    assert resolve(tree, "..", start=start).inode == tree.at("/")
    assert resolve(tree, "/d", start=start).inode == tree.at("/d")


def test_forty_links_are_followed_and_no_more(world):
    world.create("/0")
    for i in range(1, 42):
        world.symlink(f"/{i}", f"{i - 1}")
    assert resolve(world, "/40").inode == world.at("/0")
    refused(Code.LOOP, resolve, world, "/41")
    world.symlink("/loop", "loop")
    refused(Code.LOOP, resolve, world, "/loop")


def test_every_directory_on_the_way_must_be_searchable(tree):
    tree.set("/d", permissions=0o700)
    refused(Code.ACCESS, resolve, tree, "/d/e/a", EVE)
    refused(Code.ACCESS, resolve, tree, "/here/e", EVE)
    assert resolve(tree, "/d", EVE).inode == tree.at("/d")
