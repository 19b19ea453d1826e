"""Targets that cannot be opened, and the offline check: what is said, and that nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.types import ChainVersion, ChunkVersion, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.app import main
from fs3.storageserver.chunkstore.interface import ChunkStore, Commit, Piece, StageRequest
from fs3.storageserver.opening import open_target
from fs3.storageserver.settings import TargetSettings

pytestmark = pytest.mark.usefixtures("restored_logging")

DATA = Random(3).randbytes(150_000)
A = chunk_id(1, 0)


def fill(store: ChunkStore) -> None:
    """Some chunks, in two data files."""
    for slot in range(5):
        for version, offset, data in ((1, 0, DATA), (2, 20_000, b"over")):
            number = ChunkVersion(version)
            update = StageRequest(
                chunk_id(1, slot),
                UpdateKind.WRITE,
                number,
                offset,
                len(data),
                memoryview(data),
                crc32c(data),
            )
            assert store.stage([update])[0].code is Code.OK
            assert store.commit([Commit(update.chunk, number, ChainVersion(1))]) == [Code.OK]


@pytest.fixture
def said(tmp_path: Path) -> TargetSettings:
    """A target with chunks, closed."""
    made = TargetSettings(id=7, path=tmp_path / "target")
    for _ in range(2):  # the second opening puts the records into a table file
        opened = open_target(made, "default")
        if not opened.store.usage().chunks:
            fill(opened.store)
        opened.store.close()
        opened.close()
    return made


def remove_one(pattern: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        found = sorted(path.glob(pattern))
        assert found, f"nothing like {pattern}"
        found[0].unlink()

    return remove


def empty_one(pattern: str) -> Callable[[Path], None]:
    def empty(path: Path) -> None:
        os.truncate(sorted(path.glob(pattern))[0], 100)

    return empty


def flip_records(path: Path) -> None:
    for table in path.glob("records/*.sst"):
        content = bytearray(table.read_bytes())
        content[40] ^= 255
        table.write_bytes(content)


DAMAGES = {
    "no manifest": remove_one("records/MANIFEST-*"),
    "no table file": remove_one("records/*.sst"),
    "no CURRENT": remove_one("records/CURRENT"),
    "no data file": remove_one("blocks.02"),
    "short manifest": empty_one("records/MANIFEST-*"),
    "short table file": empty_one("records/*.sst"),
    "short data file": empty_one("blocks.02"),
    "flipped record": flip_records,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_store_is_lost_with_a_reason_and_never_empty(
    said: TargetSettings, damage: Callable[[Path], None]
) -> None:
    damage(said.path)
    opened = open_target(said, "default")
    assert opened.store.failed is not None
    assert "does not open" in opened.store.failed
    (found,) = opened.store.read([Piece(A, 0, 10)], [memoryview(bytearray(10))])
    assert found.code is Code.DISK
    with pytest.raises(Fs3Error, match="does not open"):
        opened.store.scan(None, 10)
    opened.store.close()
    opened.close()


def test_a_directory_that_cannot_be_made_is_a_lost_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    opened = open_target(TargetSettings(id=7, path=tmp_path / "file" / "target"), "default")
    assert "Not a directory" in (opened.store.failed or "")
    opened.close()


def test_a_second_process_is_refused_and_told_who_has_it(said: TargetSettings) -> None:
    opened = open_target(said, "default")
    with pytest.raises(Fs3Error, match=f"in use by process {os.getpid()}") as caught:
        open_target(said, "default")
    assert caught.value.code is Code.BUSY
    opened.store.close()
    opened.close()
    again = open_target(said, "default")
    assert again.store.usage().chunks == 5
    again.store.close()
    again.close()


def arguments(*targets: TargetSettings) -> list[str]:
    listed = [{"id": target.id, "path": str(target.path)} for target in targets]
    return ["--node-id", "1", "--targets", json.dumps(listed)]


def test_check_of_good_and_empty_targets_says_so(
    said: TargetSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    empty = TargetSettings(id=8, path=tmp_path / "empty")
    assert main(["--check", *arguments(said, empty)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("target 7 ")
    assert out[0].endswith("5 chunks  750,000 bytes  ok")
    assert out[1].endswith("empty: nothing was ever stored")
    assert list(empty.path.iterdir()) == []


def test_check_names_a_flipped_bit_a_lost_store_and_a_missing_directory(
    said: TargetSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, data = DATA[100_000:100_020], said.path / "blocks.02"
    data.write_bytes(data.read_bytes().replace(good, bytes([good[0] ^ 1]) + good[1:]))
    lost = TargetSettings(id=8, path=tmp_path / "lost")
    lost.path.mkdir()
    (lost.path / "blocks.00").write_bytes(bytes(65_536))
    gone = TargetSettings(id=9, path=tmp_path / "gone")
    assert main(["--check", *arguments(said, lost, gone)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("5 PROBLEMS")
    assert all("version 2: checksum block at byte 98304" in line for line in out[1:6])
    assert "target 8" in out[6]
    assert "LOST" in out[6]
    assert out[7].endswith("MISSING")
    assert not gone.path.exists()


def test_check_is_refused_while_a_server_has_the_target(
    said: TargetSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from fs3.storageserver.chunkstore.lock import DirectoryLock;"
        f"lock = DirectoryLock(Path({str(said.path)!r})); print('locked', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert main(["--check", *arguments(said)]) == 1
        assert f"in use by process {holder.pid}" in capsys.readouterr().err
        holder.communicate()
    assert main(["--check", *arguments(said)]) == 0
