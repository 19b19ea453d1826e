"""An open file as fsspec wants it: the client's own, with what transactions and pickle need."""

from __future__ import annotations

import io
import posixpath
import secrets
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from fsspec.callbacks import DEFAULT_CALLBACK

from fs3.errors import Code, Fs3Error

if TYPE_CHECKING:
    from .fsspec_filesystem import Fs3FileSystem

_COPY_BYTES = 8 << 20
READ_BUFFER_BYTES = 256 << 10  # below it a file reads ahead by itself when it is read in order


class FsspecFile(io.IOBase):
    """Made by :meth:`Fs3FileSystem.open`; what it does not define itself is the client's file.

    With ``autocommit=False`` (within a transaction) what is written goes to a file beside ``path``,
    whose name begins with a dot, and takes its place in one step at :meth:`commit`. A file that is
    open for reading can be pickled, with its position.
    """

    def __init__(
        self,
        fs: Fs3FileSystem,
        path: str,
        mode: str,
        *,
        block_size: int | None = None,
        autocommit: bool = True,
    ) -> None:
        self.fs = fs
        self.path = path
        self.mode = mode
        self.blocksize = block_size
        self.autocommit = autocommit or mode.startswith("r")
        self._at = path if self.autocommit else self._stand_in()
        buffering = block_size if block_size is not None else -1
        if buffering == -1 and mode == "rb":
            buffering = READ_BUFFER_BYTES
        self.f: IO[bytes] = fs.client.open(self._at, mode, buffering)

    def _stand_in(self) -> str:
        """Where to write until the commit."""
        directory, name = posixpath.split(self.path)
        taken = self.fs.exists(self.path)
        if taken and self.mode.startswith("x"):
            raise Fs3Error(Code.EXISTS, f"{self.path}: it exists")
        at = posixpath.join(directory, f".{name[:200]}.{secrets.token_hex(8)}.uncommitted")
        if taken and self.mode.startswith("a"):
            source, target = self.fs.client.open_file(self.path), self.fs.client.open_file(at, "wb")
            with source, target:
                copy_bytes(source.readinto, target.write, len(source))
        return at

    def commit(self) -> None:
        """Put what was written where it belongs."""
        if self.autocommit:
            raise Fs3Error(Code.INVALID, f"{self.path}: not opened within a transaction")
        self.f.close()
        self.fs.client.rename(self._at, self.path, no_replace=self.mode.startswith("x"))

    def discard(self) -> None:
        """Forget what was written."""
        if self.autocommit:
            raise Fs3Error(Code.INVALID, f"{self.path}: not opened within a transaction")
        self.f.close()
        self.fs.client.unlink(self._at)

    @property
    def full_name(self) -> str:
        """The URL."""
        name: str = self.fs.unstrip_protocol(self.path)
        return name

    @property
    def size(self) -> int:
        """Bytes in it when it is asked, without what Python's buffers hold."""
        raw: Any = self.f
        return len(getattr(raw, "raw", raw))

    def info(self) -> dict[str, Any]:
        """See :meth:`Fs3FileSystem.info`."""
        return self.fs.info(self._at)

    # io.IOBase defines these, so that they would not be looked for in the client's file.

    @property
    def closed(self) -> bool:
        """Is it?"""
        return "f" not in self.__dict__ or self.f.closed  # not, if opening it failed

    def close(self) -> None:
        """Write what is left; idempotent."""
        if "f" in self.__dict__:
            self.f.close()

    def flush(self) -> None:
        """Make what was written visible to every client."""
        self.f.flush()

    def readable(self) -> bool:
        """Opened for reading?"""
        return self.f.readable()

    def writable(self) -> bool:
        """Opened for writing?"""
        return self.f.writable()

    def seekable(self) -> bool:
        """Always."""
        return self.f.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        return self.f.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self.f.tell()

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        return self.f.truncate(size)

    def readline(self, size: int | None = -1) -> bytes:
        """One line."""
        return self.f.readline(-1 if size is None else size)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """All lines."""
        return self.f.readlines(-1 if hint is None else hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.f)

    def __next__(self) -> bytes:
        return next(self.f)

    def __getattr__(self, name: str) -> Any:
        if name == "f":  # opening it failed, or unpickling is not done
            raise AttributeError(name)
        return getattr(self.f, name)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.mode != "rb":
            raise Fs3Error(Code.INVALID, f"{self.path}: only a file opened with 'rb' is pickled")
        return _reopen, (self.fs, self.path, self.blocksize, self.tell())


def copy_bytes(
    read_into: Callable[[Any], int | None],
    write: Callable[[Any], int | None],
    size: int,
    callback: Any = DEFAULT_CALLBACK,
) -> None:
    """All of it, through one piece of memory, and fsspec's ``callback`` told."""
    callback.set_size(size)
    memory = memoryview(bytearray(min(max(size, 1), _COPY_BYTES)))
    while count := read_into(memory):
        done = 0
        while done < count:  # a raw local file may take less than it is given
            done += write(memory[done:count]) or 0
        callback.relative_update(count)


def _reopen(fs: Fs3FileSystem, path: str, block_size: int | None, position: int) -> FsspecFile:
    file = FsspecFile(fs, path, "rb", block_size=block_size)
    file.seek(position)
    return file
