"""What rename does, case by case."""

from __future__ import annotations

import pytest
from namespace_world import ALICE, EVE, ROOT, World, refused

from fs3.errors import Code
from fs3.metaserver import namespace
from fs3.types import ROOT_INODE


@pytest.fixture
def world() -> World:
    return World()


MAKERS = {
    "file": lambda world, path: world.create(path).inode,
    "symlink": lambda world, path: world.symlink(path, "x"),
    "empty directory": lambda world, path: world.mkdir(path),
    "full directory": lambda world, path: (world.mkdir(path), world.create(f"{path}/in"))[0],
}

REPLACING = [
    ("file", "file", None),
    ("file", "symlink", None),
    ("file", "empty directory", Code.IS_DIRECTORY),
    ("file", "full directory", Code.IS_DIRECTORY),
    ("symlink", "file", None),
    ("symlink", "empty directory", Code.IS_DIRECTORY),
    ("empty directory", "file", Code.NOT_DIRECTORY),
    ("empty directory", "symlink", Code.NOT_DIRECTORY),
    ("empty directory", "empty directory", None),
    ("empty directory", "full directory", Code.NOT_EMPTY),
    ("full directory", "file", Code.NOT_DIRECTORY),
    ("full directory", "empty directory", None),
    ("full directory", "full directory", Code.NOT_EMPTY),
]


@pytest.mark.parametrize(("source", "target", "code"), REPLACING)
@pytest.mark.parametrize("folder", ["", "/d"])
def test_rename_onto_an_existing_name(world, source, target, code, folder):
    world.mkdir("/d")
    moved = MAKERS[source](world, "/a")
    replaced = MAKERS[target](world, f"{folder}/b")
    if code is not None:
        refused(code, world.rename, "/a", f"{folder}/b")
        assert world.at("/a").inode == moved.inode
        assert world.at(f"{folder}/b").inode == replaced.inode
        return
    world.rename("/a", f"{folder}/b")
    assert world.at(f"{folder}/b").inode == moved.inode
    refused(Code.NOT_FOUND, world.at, "/a")
    assert world.garbage() == ([replaced.inode] if target == "file" else [])
    check_links(world)


def check_links(world: World) -> None:
    """Every directory's links are 2 and its subdirectories, its parent is where it stands."""

    def walk(inode, parent):
        found = world.inode(inode)
        assert found.parent == parent
        entries = world.run(namespace.read_directory, inode, ROOT).entries
        below = [entry.inode for entry in entries if entry.kind.name == "DIRECTORY"]
        assert found.links == 2 + len(below)
        for directory in below:
            walk(directory, inode)

    walk(ROOT_INODE, ROOT_INODE)


def test_rename_of_a_missing_name_is_not_found(world):
    refused(Code.NOT_FOUND, world.rename, "/a", "/b")


def test_rename_within_a_directory_moves_its_times_and_the_ctime_of_the_file(world):
    made = world.create("/a").inode
    moved = world.rename("/a", "/b")
    assert moved.ctime_ns == world.now_ns == world.at("/").mtime_ns
    assert moved.mtime_ns == made.mtime_ns
    assert world.names("/") == ["b"]


def test_rename_between_directories_moves_the_times_of_both(world):
    world.mkdir("/d")
    world.mkdir("/e")
    world.create("/d/a")
    world.rename("/d/a", "/e/a")
    assert world.at("/d").mtime_ns == world.at("/e").mtime_ns == world.now_ns


def test_moved_directory_knows_its_new_parent(world):
    world.mkdir("/d")
    world.mkdir("/e")
    moved = world.rename("/d", "/e/d")
    assert moved.parent == world.at("/e").inode
    assert world.run(namespace.lookup, moved.inode, "..", ROOT).inode == world.at("/e").inode
    check_links(world)


@pytest.mark.parametrize("target", ["/a/x", "/a/b/x", "/a/b/c/x"])
def test_directory_does_not_move_into_itself(world, target):
    for path in ("/a", "/a/b", "/a/b/c"):
        world.mkdir(path)
    refused(Code.INVALID, world.rename, "/a", target)


def test_directory_does_not_replace_what_holds_it(world):
    world.mkdir("/a")
    world.mkdir("/a/b")
    refused(Code.NOT_EMPTY, world.rename, "/a/b", "/a")


def test_two_moves_that_would_make_a_loop_together_conflict(world):
    a, b = world.mkdir("/a").inode, world.mkdir("/b").inode
    one, two = world.engine.transaction(), world.engine.transaction()
    namespace.rename(one, ROOT_INODE, "a", b, "a", ROOT, world.tick())
    namespace.rename(two, ROOT_INODE, "b", a, "b", ROOT, world.tick())
    one.commit()
    refused(Code.CONFLICT, two.commit)


def test_rename_onto_itself_and_between_names_of_one_file_changes_nothing(world):
    world.create("/a")
    world.link("/a", "/b")
    before = world.at("/a"), world.at("/")
    world.rename("/a", "/a")
    world.rename("/a", "/b")
    assert (world.at("/a"), world.at("/")) == before
    assert world.names("/") == ["a", "b"]


def test_no_replace_refuses_an_existing_name(world):
    world.create("/a")
    world.create("/b")
    refused(Code.EXISTS, world.rename, "/a", "/b", no_replace=True)
    refused(Code.EXISTS, world.rename, "/a", "/a", no_replace=True)
    world.rename("/a", "/c", no_replace=True)
    assert world.names("/") == ["b", "c"]


def test_exchange_and_no_replace_together_are_refused(world):
    world.create("/a")
    refused(Code.INVALID, world.rename, "/a", "/a", no_replace=True, exchange=True)


@pytest.mark.parametrize("one", MAKERS)
@pytest.mark.parametrize("other", MAKERS)
@pytest.mark.parametrize("folder", ["", "/d"])
def test_exchange_swaps_whatever_stands_there(world, one, other, folder):
    world.mkdir("/d")
    first = MAKERS[one](world, "/a")
    second = MAKERS[other](world, f"{folder}/b")
    world.rename("/a", f"{folder}/b", exchange=True)
    assert world.at("/a").inode == second.inode
    assert world.at(f"{folder}/b").inode == first.inode
    assert world.at("/a").ctime_ns == world.at(f"{folder}/b").ctime_ns == world.now_ns
    assert world.garbage() == []
    check_links(world)


def test_exchange_with_a_missing_name_is_not_found(world):
    world.create("/a")
    refused(Code.NOT_FOUND, world.rename, "/a", "/b", exchange=True)


def test_exchange_of_a_directory_with_one_inside_it_is_refused(world):
    world.mkdir("/a")
    world.mkdir("/a/b")
    world.mkdir("/a/b/c")
    refused(Code.INVALID, world.rename, "/a", "/a/b/c", exchange=True)
    refused(Code.INVALID, world.rename, "/a/b/c", "/a", exchange=True)


def test_moving_a_directory_elsewhere_needs_write_on_it_as_its_parent_changes(world):
    world.mkdir("/d", ALICE)
    world.mkdir("/d/e", EVE, 0o755)
    refused(Code.ACCESS, world.rename, "/d/e", "/e", ALICE)
    world.rename("/d/e", "/d/f", ALICE)  # stays where it is: its parent does not change
    world.rename("/d/f", "/f", EVE)


def test_replaced_file_that_is_open_stays_until_closed(world):
    handle = namespace.Handle(7, 1)
    world.create("/a")
    replaced = world.create("/b").inode
    world.open("/b", read=True, handle=handle)
    world.rename("/a", "/b")
    assert world.garbage() == []
    assert world.inode(replaced.inode).links == 0
    world.close(replaced.inode, handle)
    assert world.garbage() == [replaced.inode]
