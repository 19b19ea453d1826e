"""``fs3://`` for everything that speaks fsspec: pandas, pyarrow, DuckDB, zarr, dask, datasets.

    import pandas
    frame = pandas.read_parquet("fs3://127.0.0.1:7000/data/part-0.parquet")

    fs = fsspec.filesystem("fs3", address="./fs3-data")
    fs.cat_ranges(paths, starts, ends)   # one request per storageserver

A URL is ``fs3://host:port/path``, or ``fs3:///path`` of the cluster that the storage option
``address`` or the environment's FS3_ADDRESS names. Paths are absolute: "a/b" means "/a/b", and what
has no port is no address, so that ``fs3://a/b`` means ``fs3:///a/b``.

Unlike in an object store, directories are real, and a rename is one step. Directories above a new
file are made when they are missing, unless ``auto_mkdir=False``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import isfilelike

from .fsspec_file import FsspecFile, copy_bytes
from .fsspec_names import Fs3Names

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_TO_THE_END = 1 << 62  # bytes; no file is as long


class Fs3FileSystem(Fs3Names):
    """See the module. Failures are Fs3Error, which is FileNotFoundError and so on.

    Instances are cached by fsspec, per thread; all of a process share one client per cluster. They
    can be pickled, and used after a fork.
    """

    # -- reading ---------------------------------------------------------------------------------

    def cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        **_: Any,
    ) -> bytes:
        """The bytes of a file from ``start`` to ``end``, which count from its end if negative."""
        return self._read([path], [start], [end])[0]

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Ranges of many files in one batch: a few requests per storageserver.

        ``max_gap`` makes no difference: neighbours travel together anyhow. A range that failed is
        an exception in the list, unless ``on_error`` is "raise".
        """
        if not isinstance(paths, list):
            raise TypeError(f"paths is a {type(paths).__name__}; a list is allowed")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(f"{len(paths)} paths, {len(starts)} starts, {len(ends)} ends")
        try:
            return self._read(paths, starts, ends)
        except OSError as error:
            if on_error == "raise":
                raise
            if len(paths) == 1:
                return [error]
        return [
            self.cat_ranges([path], [start], [end])[0]
            for path, start, end in zip(paths, starts, ends, strict=True)
        ]

    def _read(
        self, paths: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]
    ) -> list[bytes]:
        requests = []
        for path, start, end in zip(paths, starts, ends, strict=True):
            stripped = self._strip_protocol(path)
            first, last = start or 0, _TO_THE_END if end is None else end
            if first < 0 or last < 0:
                size = self.client.stat(stripped).st_size
                first = max(size + first, 0) if first < 0 else first
                last = size + last if last < 0 else last
            requests.append((stripped, first, max(last - first, 0)))
        return [bytes(view) for view in self.client.read_batch(requests)]

    def cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        **_: Any,
    ) -> Any:
        """The content of one file, or a dict of those of many, which are read in one batch."""
        paths = self.expand_path(path, recursive=recursive)
        if not isinstance(path, list) and paths == [self._strip_protocol(path)] and not recursive:
            return self.cat_file(paths[0])
        if recursive:
            paths = [one for one in paths if not self.isdir(one)]
        how = "raise" if on_error == "raise" else "return"
        contents = self.cat_ranges(paths, 0, None, on_error=how)
        return {
            one: content
            for one, content in zip(paths, contents, strict=True)
            if on_error != "omit" or isinstance(content, bytes)
        }

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: IO[bytes] | None = None,
        **_: Any,
    ) -> None:
        """Copy one file to this machine; of a directory, make an empty one."""
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with self.client.open_file(self._strip_protocol(rpath)) as source:
            if outfile is not None:
                copy_bytes(source.readinto, outfile.write, len(source), callback)
                return
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb", buffering=0) as target:
                copy_bytes(source.readinto, target.write, len(source), callback)

    # -- writing ---------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: object = None,
        **_: Any,
    ) -> FsspecFile:
        def opened() -> FsspecFile:
            return FsspecFile(self, path, mode, block_size=block_size, autocommit=autocommit)

        return opened() if mode.startswith("r") else self._with_parents(path, opened)

    def pipe_file(
        self,
        path: str,
        value: ReadableBuffer,
        mode: str = "overwrite",
        **_: Any,
    ) -> None:
        """Make ``value`` the content of a file; mode "create": that does not exist yet."""
        with self.open(path, _write_mode(mode), block_size=0) as file:
            file.write(value)

    def put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **_: Any,
    ) -> None:
        """Copy one file of this machine; of a directory, make an empty one."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with (
            open(lpath, "rb", buffering=0) as source,
            self.open(rpath, _write_mode(mode), block_size=0) as target,
        ):
            size = os.fstat(source.fileno()).st_size
            copy_bytes(source.readinto, target.write, size, callback)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy one file, through this client; of a directory, make an empty one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with (
            self.client.open_file(self._strip_protocol(path1)) as source,
            self.open(path2, "wb", block_size=0) as target,
        ):
            copy_bytes(source.readinto, target.write, len(source))

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Make an empty file; of one that exists, cut it to nothing, or set its times to now."""
        path = self._strip_protocol(path)
        with self._open(path, "wb" if truncate else "ab"):
            pass
        self.client.utime(path)


def _write_mode(mode: str) -> str:
    modes = {"overwrite": "wb", "create": "xb"}
    if mode not in modes:
        raise ValueError(f"mode {mode!r} is not allowed: one of {', '.join(modes)} is")
    return modes[mode]
