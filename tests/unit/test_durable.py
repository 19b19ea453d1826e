"""Which names and contents are synced, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fs3 import durable


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Syncs and renames as they happen; a sync by what the descriptor is open on."""
    seen: list[tuple[str, Path]] = []
    fsync, replace, mkdir = os.fsync, Path.replace, Path.mkdir

    def note_sync(fd: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        seen.append(("rename", self))
        return replace(self, target)

    def note_mkdir(self: Path, *arguments: object, **more: object) -> None:
        seen.append(("mkdir", self))
        mkdir(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(Path, "mkdir", note_mkdir)
    return seen


def test_every_directory_that_is_made_has_its_name_synced_before_the_next_is_made(tmp_path, calls):
    durable.make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert calls == [
        ("mkdir", tmp_path / "a"),
        ("sync", tmp_path),
        ("mkdir", tmp_path / "a" / "b"),
        ("sync", tmp_path / "a"),
        ("mkdir", tmp_path / "a" / "b" / "c"),
        ("sync", tmp_path / "a" / "b"),
    ]


def test_a_directory_that_is_there_may_be_from_just_before_a_crash_and_is_synced(tmp_path, calls):
    (tmp_path / "there").mkdir()
    calls.clear()
    durable.make_directory(tmp_path / "there")
    assert ("sync", tmp_path) in calls


def test_a_file_has_its_content_synced_before_its_name_and_its_name_before_the_end(tmp_path, calls):
    path = tmp_path / "file"
    path.write_text("old")
    durable.write_file(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
    assert calls == [
        ("sync", tmp_path / "file.new"),
        ("rename", tmp_path / "file.new"),
        ("sync", tmp_path),
    ]


def test_a_name_that_cannot_be_synced_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        durable.sync_directory(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        durable.sync_directory(tmp_path / "file")
