"""Names and small files that are on stable storage when the call returns.

A file's fsync says nothing of its name: that is the directory's, and the directory's name is that
of the one above.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Put the names in a directory on stable storage."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing; nothing if it is there.

    If it is there it may have been made just before a crash, so its name is synced in any case.
    """
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def write_file(path: Path, text: str) -> None:
    """Make ``path`` hold ``text``, or leave it as it is: never anything between."""
    scratch = path.with_name(f"{path.name}.new")
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_directory(path.parent)
