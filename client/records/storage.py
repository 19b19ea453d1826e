"""Where files of records lie: on fs3, or in a local directory. Both read many ranges in one call.

A place is a URL, ``fs3://host:port/path`` or ``fs3:///path``, or the path of a local file. Objects
here are pickled and survive a fork: they hold a client only by asking for the process's own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

from fs3.client.shared_clients import Address, shared_client, split_url
from fs3.errors import Code, Fs3Error

if TYPE_CHECKING:
    from fs3.client.api import Client
    from fs3.client.batch import ReadRequest
    from fs3.client.file import File

Range: TypeAlias = "tuple[str, int, memoryview]"  # path, offset, where the bytes go
_OPEN_MAX = 256  # files that are kept open


class Storage(Protocol):
    """Failures are OSError."""

    checks_bytes: bool  # does it verify what it reads, end to end?

    @property
    def key(self) -> object:
        """Equal for two that are the same place."""

    def size(self, path: str) -> int:
        """Bytes in a file."""

    def read(self, ranges: Sequence[Range]) -> None:
        """Fill every buffer; Fs3Error CORRUPT if a file ends before."""

    def hold(self, path: str) -> None:
        """This file will be read many times: keep what makes that cheap."""

    def files(self, folder: str) -> list[tuple[str, int]]:
        """All files below a directory and their sizes, in the order of their paths."""

    def create(self, path: str) -> IO[bytes]:
        """A new file, for writing."""

    def open(self, path: str) -> IO[bytes]:
        """A file, for reading in order."""

    def isdir(self, path: str) -> bool:
        """Is it a directory?"""


def locate(
    place: str | os.PathLike[str], address: Address = None, cluster_id: str | None = None
) -> tuple[Storage, str]:
    """The storage that ``place`` is in, and the path there.

    ``address`` and ``cluster_id`` are those of :func:`fs3.connect`, for URLs that name no address.
    """
    text = os.fspath(place)
    if not text.startswith("fs3:"):
        return LocalStorage(), text
    named, path = split_url(text)
    return Fs3Storage(named or address, cluster_id), "/" + path.strip("/")


class Fs3Storage:
    """A cluster. A held file is opened when it is read first: then no metaserver is asked."""

    checks_bytes = True

    def __init__(self, address: Address = None, cluster_id: str | None = None) -> None:
        self._address = address
        self._cluster_id = cluster_id
        self._held: dict[str, File | None] = {}
        self._opener: Client | None = None  # of the files that are held

    @property
    def key(self) -> object:
        """See :class:`Storage`."""
        return os.fspath(self._address or ""), self._cluster_id

    def size(self, path: str) -> int:
        """See :class:`Storage`."""
        return self._client().stat(path).st_size

    def read(self, ranges: Sequence[Range]) -> None:
        """See :class:`Storage`: a few requests per storageserver."""
        client = self._client()
        if self._held:
            requests: list[ReadRequest] = [
                (self._held_file(client, path) or path, offset, buffer)
                for path, offset, buffer in ranges
            ]
        else:
            requests = list(ranges)
        got = client.read_batch(requests)
        for (path, offset, buffer), view in zip(ranges, got, strict=True):
            if len(view) != len(buffer):
                raise _cut_off(path, offset, len(buffer), len(view))

    def hold(self, path: str) -> None:
        """See :class:`Storage`."""
        if len(self._held) < _OPEN_MAX:
            self._held[path] = None

    def _held_file(self, client: Client, path: str) -> File | None:
        """Open, unless it is none that is held."""
        if client is not self._opener:  # after unpickling, too
            self._opener = client
            self._held = dict.fromkeys(self._held)
        file = self._held.get(path)
        if file is None and path in self._held:
            file = self._held[path] = client.open_file(path)
        return file

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": dict.fromkeys(self._held), "_opener": None}

    def files(self, folder: str) -> list[tuple[str, int]]:
        """See :class:`Storage`."""
        found, folders = [], [folder]
        while folders:
            for entry in self._client().scandir(folders.pop()):
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    found.append((entry.path, entry.stat().st_size))
        return sorted(found)

    def create(self, path: str) -> IO[bytes]:
        """See :class:`Storage`; directories above it are made."""
        self._client().makedirs(os.path.dirname(path), exist_ok=True)
        return self._client().open(path, "wb", 1 << 20)

    def open(self, path: str) -> IO[bytes]:
        """See :class:`Storage`."""
        return self._client().open(path, "rb")

    def isdir(self, path: str) -> bool:
        """See :class:`Storage`."""
        return self._client().isdir(path)

    def _client(self) -> Client:
        return shared_client(self._address, self._cluster_id)


class _Descriptor:
    """Closed when neither the table nor a read has it any more."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class LocalStorage:
    """This machine's files."""

    checks_bytes = False

    def __init__(self) -> None:
        self._opened: dict[str, _Descriptor] = {}

    @property
    def key(self) -> object:
        """See :class:`Storage`."""
        return "local"

    def size(self, path: str) -> int:
        """See :class:`Storage`."""
        return os.stat(path).st_size

    def read(self, ranges: Sequence[Range]) -> None:
        """See :class:`Storage`."""
        for path, offset, buffer in ranges:
            file = self._descriptor(path)
            got = os.preadv(file.number, [buffer], offset)
            while 0 < got < len(buffer):
                more = os.preadv(file.number, [buffer[got:]], offset + got)
                if not more:
                    break
                got += more
            if got < len(buffer):
                raise _cut_off(path, offset, len(buffer), got)

    def hold(self, path: str) -> None:
        """See :class:`Storage`: any file that was read is kept open."""

    def _descriptor(self, path: str) -> _Descriptor:
        descriptor = self._opened.get(path)
        if descriptor is None:
            if len(self._opened) >= _OPEN_MAX:
                for oldest in list(self._opened)[:1]:
                    self._opened.pop(oldest, None)  # another thread may do the same
            descriptor = self._opened[path] = _Descriptor(path)
        return descriptor

    def files(self, folder: str) -> list[tuple[str, int]]:
        """See :class:`Storage`."""
        paths = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
        return [(path, os.stat(path).st_size) for path in sorted(paths) if os.path.isfile(path)]

    def create(self, path: str) -> IO[bytes]:
        """See :class:`Storage`; directories above it are made."""
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        return open(path, "wb", 1 << 20)

    def open(self, path: str) -> IO[bytes]:
        """See :class:`Storage`."""
        return open(path, "rb")

    def isdir(self, path: str) -> bool:
        """See :class:`Storage`."""
        return os.path.isdir(path)

    def __getstate__(self) -> dict[str, object]:
        return {"_opened": {}}


def _cut_off(path: str, offset: int, wanted: int, got: int) -> Fs3Error:
    return Fs3Error(
        Code.CORRUPT, f"{path}: {wanted} bytes at {offset} were asked for; it ends after {got}"
    )
