"""Two mounts of one cluster, and a native client beside them: who sees what, and when."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted import Logs
from running_cluster import RunningCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

CHUNK = 1 << 20
NAMES_S = 1.0  # client/filesystem.py CacheTimes: names of directories, and attributes
ROUNDS = 60


@pytest.fixture(scope="module")
def second_mount(module_cluster: RunningCluster) -> Path:
    return module_cluster.mount("second")


@pytest.fixture(params=["other-mount", "native-client"])
def other(request, mount: Path, second_mount: Path, cluster: RunningCluster):
    """``other(name)``: what somebody else opens and reads now, None if there is nothing."""
    client = cluster.client()

    def through_mount(name: str) -> tuple[int, bytes] | None:
        try:
            with (second_mount / mount.name / name).open("rb") as file:
                return os.fstat(file.fileno()).st_size, file.read()
        except FileNotFoundError:
            return None

    def through_client(name: str) -> tuple[int, bytes] | None:
        try:
            with client.open_file(f"/{mount.name}/{name}") as file:
                return len(file), file.readall()
        except FileNotFoundError:
            return None

    return through_mount if request.param == "other-mount" else through_client


def within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    """Whether it holds within a time; the machine's own slowness is added generously."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.05) + 1):
        if condition():
            return True
        pause.wait(0.05)
    return condition()


def lengths(rng: random.Random) -> int:
    """Growing and shrinking, around the borders of pages and chunks too."""
    near = rng.choice([0, 1, 4096, 65_536, CHUNK, 2 * CHUNK])
    return max(0, near + rng.randrange(-3, 4)) if rng.random() < 0.6 else rng.randrange(300_000)


def test_what_was_closed_is_seen_by_the_next_open_elsewhere(mount, other):
    rng = random.Random(21)
    for turn in range(ROUNDS):
        content = rng.randbytes(lengths(rng))
        (mount / "f").write_bytes(content)
        size, found = other("f")
        assert size == len(content), turn
        assert found == content, turn


def test_a_change_in_the_middle_is_seen_though_the_size_stays(mount, other):
    content = bytearray(os.urandom(CHUNK + 9000))
    (mount / "f").write_bytes(content)
    rng = random.Random(22)
    for turn in range(ROUNDS):
        assert other("f") == (len(content), content)  # it is in the other's cache now
        offset, piece = rng.randrange(len(content) - 100), rng.randbytes(100)
        content[offset : offset + 100] = piece
        file = os.open(mount / "f", os.O_WRONLY)
        os.pwrite(file, piece, offset)
        os.close(file)
        assert other("f") == (len(content), content), turn


def test_turns_of_two_writers_add_up(mount, second_mount):
    """Each mount reads what the other wrote, changes it, and writes it back."""
    sides = (mount / "f", second_mount / mount.name / "f")
    (mount / "f").write_bytes(b"")
    expected = b""
    rng = random.Random(23)
    for turn in range(ROUNDS):
        path = sides[turn % 2]
        assert path.read_bytes() == expected, turn
        if turn % 7 == 6:
            expected = expected[: len(expected) // 3]
            os.truncate(path, len(expected))
        elif turn % 3:
            more = rng.randbytes(rng.randrange(200_000))
            with path.open("ab") as file:
                file.write(more)
            expected += more
        else:
            piece = rng.randbytes(5000)
            with path.open("r+b") as file:
                file.write(piece)
            expected = piece + expected[5000:]
    assert sides[0].read_bytes() == sides[1].read_bytes() == expected


def test_fsync_is_enough_for_an_open_elsewhere(mount, other):
    with (mount / "f").open("wb") as file:
        expected = b""
        for turn in range(20):
            file.write(b"%05d" % turn * 1000)
            file.flush()
            os.fsync(file.fileno())
            expected += b"%05d" % turn * 1000
            assert other("f") == (len(expected), expected)


def test_a_replaced_file_is_seen_at_once(mount, other):
    (mount / "f").write_bytes(b"0")
    for turn in range(ROUNDS):
        assert other("f") is not None
        (mount / "new").write_bytes(b"%d" % turn)
        os.rename(mount / "new", mount / "f")
        assert other("f") == (len(b"%d" % turn), b"%d" % turn)
        assert other("new") is None


def test_an_unlinked_file_is_gone_at_once(mount, other):
    for turn in range(ROUNDS):
        (mount / "f").write_bytes(b"x" * turn)
        assert other("f") == (turn, b"x" * turn)
        (mount / "f").unlink()
        assert other("f") is None


def test_a_renamed_directory_is_seen_within_its_timeout(mount, second_mount):
    here, there = mount, second_mount / mount.name
    (here / "a").mkdir()
    (here / "a/file").write_bytes(b"x")
    assert (there / "a/file").read_bytes() == b"x"
    os.rename(here / "a", here / "b")
    assert within(NAMES_S, lambda: not (there / "a").exists())
    assert (there / "b/file").read_bytes() == b"x"
    assert os.listdir(there) == ["b"]


def test_sizes_and_times_are_seen_by_stat_within_their_timeout(mount, second_mount):
    here, there = mount / "f", second_mount / mount.name / "f"
    for turn in range(5):
        with here.open("ab") as file:
            file.write(b"x" * (turn * 5000 + 1))
        if turn % 2:
            os.utime(here, ns=(turn, 10**18 + turn))
        expected = here.stat()
        assert within(
            NAMES_S,
            lambda expected=expected: (
                (there.stat().st_size, there.stat().st_mtime_ns)
                == (expected.st_size, expected.st_mtime_ns)
            ),
        )
        here.chmod(0o600 + turn)
        assert within(NAMES_S, lambda turn=turn: there.stat().st_mode & 0o777 == 0o600 + turn)


@pytest.mark.long
@pytest.mark.parametrize("piece", [10, 1000, 5000, 100_000])
def test_writers_of_different_parts_of_one_file_do_not_disturb_each_other(
    cluster, mount, second_mount, piece
):
    """Two mounts and a native client write every third piece each, all at once."""
    total = min(900 * piece, 9 * CHUNK) // 3 * 3
    client, name = cluster.client(), "shared"
    (mount / name).write_bytes(bytes(total))
    content = random.Random(piece).randbytes(total)
    opened = [
        (mount / name).open("r+b", buffering=0),
        (second_mount / mount.name / name).open("r+b", buffering=0),
        client.open_file(f"/{mount.name}/{name}", "r+b"),
    ]

    def work(turn: int) -> None:
        offsets = list(range(turn * piece, total, 3 * piece))
        random.Random(turn).shuffle(offsets)
        with opened[turn] as file:
            for offset in offsets:
                file.seek(offset)
                part = content[offset : offset + piece]
                assert file.write(part) == len(part)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mount / name).read_bytes() == content
    assert (second_mount / mount.name / name).read_bytes() == content
    assert client.read(f"/{mount.name}/{name}") == content


def test_many_files_made_at_once_on_both_sides_are_all_there(mount, second_mount):
    there = second_mount / mount.name
    expected = {f"{side}-{n}" for side in "ab" for n in range(150)}

    def make(folder: Path, side: str) -> None:
        for n in range(150):
            (folder / f"{side}-{n}").write_text(f"{side}{n}")

    threads = [
        threading.Thread(target=make, args=arguments) for arguments in ((mount, "a"), (there, "b"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for folder in (mount, there):
        assert set(os.listdir(folder)) == expected
        assert {name: (folder / name).read_text() for name in expected} == {
            name: name.replace("-", "") for name in expected
        }


def test_exclusive_creation_has_one_winner(mount, second_mount):
    sides = (mount, second_mount / mount.name)
    won: list[tuple[int, int]] = []

    def take(side: int) -> None:
        for n in range(50):
            try:
                os.close(os.open(sides[side] / f"lock-{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won.append((n, side))
            except FileExistsError:
                continue

    threads = [threading.Thread(target=take, args=(side,)) for side in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n, _ in won) == list(range(50))


def test_a_mount_that_ends_leaves_everything_written(cluster, mount, logs: Logs):
    third = cluster.mount("third")
    contents = {f"f{n}": os.urandom(n * 10_000) for n in range(20)}
    for name, content in contents.items():
        (third / mount.name / name).write_bytes(content)
    cluster.run("umount", str(third), check=True)
    assert os.listdir(third) == []
    assert {name: (mount / name).read_bytes() for name in contents} == contents
