"""The disk under the power tests: what it keeps, what it loses, how it fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest
from faulty_disk import Disk, why_no_mount
from volatile import VolatileEntries, VolatilePages

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount())),
]
OLD, NEW = b"o" * 10_000, b"n" * 10_000


@pytest.fixture
def disk(tmp_path: Path):
    with Disk(tmp_path / "disk", capacity_bytes=64 << 20) as mounted:
        yield mounted


def sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


def stored(path: Path, content: bytes) -> Path:
    """A file whose bytes and name are on stable storage."""
    path.write_bytes(content)
    sync(path)
    sync(path.parent)
    return path


def lose(disk: Disk) -> None:
    disk.cut_power(0, keep_some=False)


def test_what_was_synced_stays_and_what_was_not_goes(disk: Disk) -> None:
    kept = stored(disk.path / "kept", OLD)
    stored(disk.path / "changed", OLD).write_bytes(NEW + NEW)
    (disk.path / "unnamed").write_bytes(NEW)
    sync(disk.path / "unnamed")  # its bytes, not its name
    (disk.path / "folder").mkdir()
    lose(disk)
    assert sorted(os.listdir(disk.path)) == ["changed", "kept"]
    assert kept.read_bytes() == OLD
    assert (disk.path / "changed").read_bytes() == OLD


def test_a_name_without_bytes_is_an_empty_file(disk: Disk) -> None:
    (disk.path / "empty").write_bytes(NEW)
    sync(disk.path)
    lose(disk)
    assert (disk.path / "empty").read_bytes() == b""


def test_a_rename_is_done_or_not(disk: Disk) -> None:
    current = stored(disk.path / "current", OLD)
    fresh = stored(disk.path / "fresh", NEW)
    fresh.rename(current)
    assert current.read_bytes() == NEW
    lose(disk)
    assert (current.read_bytes(), fresh.read_bytes()) == (OLD, NEW)
    fresh.rename(current)
    sync(disk.path)
    lose(disk)
    assert os.listdir(disk.path) == ["current"]
    assert current.read_bytes() == NEW


def test_a_removed_file_comes_back_until_its_directory_is_synced(disk: Disk) -> None:
    for name in ("one", "two"):
        stored(disk.path / name, OLD)
    (disk.path / "one").unlink()
    sync(disk.path)
    (disk.path / "two").unlink()
    lose(disk)
    assert os.listdir(disk.path) == ["two"]
    assert (disk.path / "two").read_bytes() == OLD


def test_a_file_cut_short_is_as_it_was(disk: Disk) -> None:
    path = stored(disk.path / "file", OLD)
    os.truncate(path, 5)
    with path.open("ab") as file:
        file.write(NEW)
    lose(disk)
    assert path.read_bytes() == OLD


def test_synchronous_writes_stay(disk: Disk) -> None:
    path = stored(disk.path / "file", OLD)
    opened = os.open(path, os.O_WRONLY | os.O_DSYNC)
    os.pwrite(opened, NEW, 0)
    os.close(opened)
    lose(disk)
    assert path.read_bytes() == NEW


def test_of_what_was_not_synced_any_sectors_may_stay() -> None:
    styles = set()
    for seed in range(200):
        pages = VolatilePages()
        pages.write(0, memoryview(OLD))
        pages.sync()
        pages.write(5_000, memoryview(NEW))
        pages.lose_power(Random(seed), keep_some=True)
        found = b"".join(pages.read(0, 20_000))
        assert 10_000 <= len(found) <= 15_000
        assert found[:4_608] == OLD[:4_608]
        for start in range(4_608, len(found), 512):
            sector = found[start : start + 512]
            old = (OLD + bytes(5_000))[start : start + len(sector)]
            new = (OLD[:5_000] + NEW)[start : start + len(sector)]
            assert sector in (old, new)
        styles.add(found)
    assert len(styles) > 50


def test_of_a_directory_s_changes_the_first_ones_may_stay() -> None:
    found = set()
    for seed in range(100):
        number = iter(range(1, 100))
        names = VolatileEntries(lambda number=number: next(number))
        names["a"] = 1
        names.sync()
        del names["a"]
        names["b"] = 2
        names["c"] = 3
        names.lose_power(Random(seed), keep_some=True)
        found.add(tuple(names))
    assert found == {("a",), (), ("b",), ("b", "c")}


def test_a_process_that_is_killed_on_a_frozen_disk_has_not_written(disk: Disk) -> None:
    path = stored(disk.path / "file", OLD)
    program = f"open({str(path)!r}, 'r+b', buffering=0).write({NEW[:100]!r})"
    disk.freeze_after(1)
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        pause = threading.Event()
        while not disk.is_frozen():
            assert process.poll() is None
            pause.wait(0.01)
        process.kill()
        disk.cut_power(0)
        assert process.wait(60) < 0
    assert path.read_bytes() == OLD
    path.write_bytes(NEW)  # it works again
    sync(path)


def test_rules_slow_fail_and_pretend_below_their_path(disk: Disk) -> None:
    for name in ("bad", "good", "lying"):
        (disk.path / name).mkdir()
    sync(disk.path)
    bad, good, lying = (stored(disk.path / n / "file", OLD) for n in ("bad", "good", "lying"))
    disk.add_rule(path="bad", operations=["read"], errno="EIO")
    disk.add_rule(path="bad", operations=["write"], errno="ENOSPC")
    disk.add_rule(path="lying", operations=["sync"], pretend=True)
    disk.add_rule(path="good", operations=["read"], delay_s=0.3)
    with pytest.raises(OSError) as caught:
        bad.read_bytes()
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError) as caught:
        bad.write_bytes(NEW)
    assert caught.value.errno == errno.ENOSPC
    began_s = time.monotonic()
    assert good.read_bytes() == OLD
    assert time.monotonic() - began_s >= 0.3
    lying.write_bytes(NEW)
    sync(lying)
    lose(disk)
    assert lying.read_bytes() == OLD
    disk.clear_rules()
    assert bad.read_bytes() == OLD


def test_a_full_disk_says_so_and_has_room_again(disk: Disk) -> None:
    path = disk.path / "file"
    path.write_bytes(bytes(60 << 20))
    with pytest.raises(OSError) as caught:
        path.write_bytes(bytes(65 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert os.statvfs(disk.path).f_bavail == 0
    path.unlink()
    path.write_bytes(bytes(60 << 20))
