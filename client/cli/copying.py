"""``fs3 cp``: trees between this machine and fs3, or within fs3, with a progress bar.

One plan for all three directions: list what is to be copied, then copy it, directories first. The
two ends differ only in who is asked, so each is an object with the same few calls.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fs3.errors import Code, Fs3Error

from .files import SCHEME, remote_path

if TYPE_CHECKING:
    from fs3.client.api import Client

_COPY_BYTES = 4 << 20


class End(Protocol):
    """Where files are read or written: the functions of ``os`` and fs3's client agree on these."""

    def lstat(self, path: str) -> os.stat_result: ...
    def stat(self, path: str) -> os.stat_result: ...
    def listdir(self, path: str) -> Sequence[str]: ...
    def readlink(self, path: str) -> str: ...
    def symlink(self, target: str, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def makedirs(self, path: str, *, exist_ok: bool) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def utime(self, path: str, *, ns: tuple[int, int]) -> None: ...
    def open(self, path: str, mode: str) -> IO[bytes]: ...


class LocalEnd:
    """This machine's files."""

    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    listdir = staticmethod(os.listdir)
    readlink = staticmethod(os.readlink)
    symlink = staticmethod(os.symlink)
    unlink = staticmethod(os.unlink)
    makedirs = staticmethod(os.makedirs)
    chmod = staticmethod(os.chmod)
    utime = staticmethod(os.utime)

    def open(self, path: str, mode: str) -> IO[Any]:
        """The builtin."""
        return open(path, mode)


class Item(NamedTuple):
    """One thing to copy."""

    source: str
    target: str
    found: os.stat_result


class Copier:
    """Copies as ``cp`` does: into the target if that is a directory, else under its name."""

    def __init__(self, client: Client, *, recursive: bool, show_progress: bool) -> None:
        self._remote: End = client
        self._local: End = LocalEnd()
        self._recursive = recursive
        self._console = Console(stderr=True)
        self._shown = show_progress and self._console.is_terminal

    def copy(self, sources: Sequence[str], target: str) -> None:
        """Copy every source. Raises at the first failure; what was copied stays."""
        writer, target = self._end_of(target)
        into = target.endswith("/") or _is_directory(writer, target)
        if len(sources) > 1 and not into:
            raise Fs3Error(Code.NOT_DIRECTORY, f"{target}: not a directory, but several sources")
        plan = [
            (reader, item)
            for source in sources
            for reader, path in [self._end_of(source)]
            for item in self._items(reader, path, _inside(target, path) if into else target)
        ]
        with self._progress() as progress:
            total_bytes = sum(item.found.st_size for _, item in plan)
            task = progress.add_task("copy", total=total_bytes)
            files = progress.add_task("files", total=len(plan))
            for reader, item in plan:
                _copy_item(reader, writer, item)
                progress.advance(task, item.found.st_size)
                progress.advance(files)
        # Last, as files that are made in a directory change its time; deepest first for the same.
        for _, item in reversed(plan):
            if stat.S_ISDIR(item.found.st_mode):
                _copy_attributes(writer, item)

    def _end_of(self, path: str) -> tuple[End, str]:
        if path.startswith(SCHEME):
            return self._remote, remote_path(path)
        return self._local, path

    def _items(self, reader: End, source: str, target: str) -> Iterator[Item]:
        """``source`` and all below it, parents first; follows ``source`` if it is a symlink."""
        found = reader.stat(source)
        if stat.S_ISDIR(found.st_mode) and not self._recursive:
            raise Fs3Error(Code.IS_DIRECTORY, f"{source} is a directory; -r copies those")
        pending = [Item(source, target, found)]
        while pending:
            item = pending.pop()
            yield item
            if stat.S_ISDIR(item.found.st_mode):
                for name in reader.listdir(item.source):
                    path = _join(item.source, name)
                    pending.append(Item(path, _join(item.target, name), reader.lstat(path)))

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            MofNCompleteColumn(),
            console=self._console,
            disable=not self._shown,
            transient=True,
        )


def _is_directory(end: End, path: str) -> bool:
    try:
        return stat.S_ISDIR(end.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _join(parent: str, name: str) -> str:
    return f"{parent.rstrip('/')}/{name}"


def _inside(directory: str, source: str) -> str:
    """Where ``source`` goes when it is copied into ``directory``."""
    name = PurePosixPath(os.path.abspath(source)).name
    return _join(directory, name) if name else directory


def _copy_item(reader: End, writer: End, item: Item) -> None:
    mode = item.found.st_mode
    if stat.S_ISDIR(mode):
        writer.makedirs(item.target, exist_ok=True)
    elif stat.S_ISLNK(mode):
        with contextlib.suppress(FileNotFoundError):
            writer.unlink(item.target)
        writer.symlink(reader.readlink(item.source), item.target)
    elif stat.S_ISREG(mode):
        with reader.open(item.source, "rb") as source, writer.open(item.target, "wb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        _copy_attributes(writer, item)
    else:
        raise Fs3Error(Code.UNSUPPORTED, f"{item.source} is neither file, directory nor symlink")


def _copy_attributes(writer: End, item: Item) -> None:
    writer.chmod(item.target, stat.S_IMODE(item.found.st_mode))
    writer.utime(item.target, ns=(item.found.st_atime_ns, item.found.st_mtime_ns))
