"""Map-style data sets of what is there already: plain files, and WebDataset's tar shards.

Both list what there is once, when they are made, and read all that a batch needs in one call.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fs3.client.records.packing import KEY, split_name
from fs3.client.records.reader import Place, fresh
from fs3.client.records.storage import Range, Storage, locate
from fs3.client.shared_clients import Address
from fs3.errors import Code, Fs3Error


class _Part(NamedTuple):
    """A stretch of a file."""

    name: str
    path: str
    offset: int
    length: int


def _read(storage: Storage, parts: Sequence[_Part]) -> list[memoryview]:
    """All of them, in one batch and one piece of memory."""
    memory = fresh(sum(part.length for part in parts))
    views, ranges = [], list[Range]()
    end = 0
    for part in parts:
        views.append(memory[end : end + part.length])
        ranges.append((part.path, part.offset, views[-1]))
        end += part.length
    storage.read(ranges)
    return views


class FilesDataset:
    """A sample is a file: ``(path, bytes)``, or ``transform(path, memoryview)``.

    Paths are relative to the directory. Files must not change while they are read.
    """

    def __init__(
        self,
        folder: Place,
        *,
        address: Address = None,
        cluster_id: str | None = None,
        suffixes: Sequence[str] = (),
        transform: Callable[[str, memoryview], Any] | None = None,
    ) -> None:
        """All files below ``folder`` whose names end with one of ``suffixes`` (none: all)."""
        self._storage, self._folder = locate(folder, address, cluster_id)
        self._files = [
            _Part(os.path.relpath(path, self._folder), path, 0, size)
            for path, size in self._storage.files(self._folder)
            if not suffixes or path.endswith(tuple(suffixes))
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        files = [self._files[number] for number in numbers]
        views = _read(self._storage, files)
        if self.transform is None:
            return [(file.name, bytes(view)) for file, view in zip(files, views, strict=True)]
        return [self.transform(file.name, view) for file, view in zip(files, views, strict=True)]


class ShardDataset:
    """A sample is all members of one name in a tar, as WebDataset has them: a dict by suffix.

    Any sample is reached at once, so that the shuffle is over all of them, not within a buffer. A
    ``transform`` takes a dict of memoryviews; without one they are bytes. The tars' headers are
    read when the set is made; pickling it takes what was found along.
    """

    def __init__(
        self,
        shards: Place | Sequence[Place],
        *,
        address: Address = None,
        cluster_id: str | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        """``shards``: tars that are not compressed, or one directory of them."""
        several = [shards] if isinstance(shards, str | os.PathLike) else shards
        self._samples: list[tuple[str, list[_Part]]] = []
        for place in several:
            self._storage, path = locate(place, address, cluster_id)
            inside = self._storage.isdir(path)
            names = [n for n, _ in self._storage.files(path)] if inside else [path]
            for name in names:
                if name.endswith(".tar") or not inside:
                    self._samples += _samples_of(self._storage, name)
        self.transform = transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        samples = [self._samples[number] for number in numbers]
        views = iter(_read(self._storage, [part for _, parts in samples for part in parts]))
        batch = []
        for key, parts in samples:
            found: dict[str, Any] = {KEY: key}
            for part in parts:
                view = next(views)
                found[part.name] = view if self.transform else bytes(view)
            batch.append(self.transform(found) if self.transform else found)
        return batch


def _samples_of(storage: Storage, path: str) -> list[tuple[str, list[_Part]]]:
    samples: list[tuple[str, list[_Part]]] = []
    try:
        with storage.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, part = split_name(member.name)
                if not samples or samples[-1][0] != key:
                    samples.append((key, []))
                samples[-1][1].append(_Part(part, path, member.offset_data, member.size))
    except tarfile.ReadError as error:
        raise Fs3Error(
            Code.INVALID,
            f"{path}: {error}; a tar that is not compressed is allowed, or `fs3 records pack`"
            " makes a record file of it",
        ) from error
    return samples
