"""The second front, on libfuse 3 through mfusepy: for systems where the direct one cannot be used.

It serves the same ``FileSystem`` object, at several times the cost per operation and with the
limits that path_operations.py lists. Needs the package mfusepy and the library libfuse3
(Debian: libfuse3-3). A bug in the file system becomes EINVAL here: mfusepy decides that.

mfusepy drops arguments that libfuse 3 passes on: the flags of rename (so that an exchange would
overwrite), the open file of fchmod and its kin, and "leave this time alone". :func:`_fuse_class`
brings them back.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from fs3.client.filesystem_interface import FileSystem
from fs3.errors import Code, Fs3Error
from fs3.types import SetAttributes

from .negotiation import FrontOptions
from .path_operations import NAME_TIMEOUT_S, PathOperations

log = logging.getLogger(__name__)

_ENDED_BY_SIGNAL = 8  # of fuse_main; also if the connection broke, which it logs itself
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # tv_nsec of utimensat(2)


def serve(
    filesystem: FileSystem, mountpoint: str | os.PathLike[str], options: FrontOptions
) -> None:
    """Mount and serve until it is unmounted or SIGTERM or SIGINT comes; call in the main thread."""
    options.validate()
    mfusepy = _import_mfusepy()
    if options.writeback_cache:
        raise Fs3Error(Code.UNSUPPORTED, "writeback_cache = True: only the direct front has it")
    try:
        _run(mfusepy, filesystem, os.fspath(mountpoint), options)
    except RuntimeError as reason:
        if reason.args != (_ENDED_BY_SIGNAL,):
            raise Fs3Error(
                Code.UNSUPPORTED, f"mount on {mountpoint}: libfuse failed with code {reason}"
            ) from reason
        log.info("fusepy_ended mountpoint=%s", mountpoint)


def _run(mfusepy: Any, filesystem: FileSystem, mountpoint: str, options: FrontOptions) -> None:  # noqa: ANN401
    _fuse_class(mfusepy)(
        PathOperations(filesystem, mfusepy.fuse_get_context),
        mountpoint,
        raw_fi=True,
        foreground=True,
        fsname="fs3",
        subtype="fs3",
        default_permissions=True,
        allow_other=options.allow_other,
        ro=options.read_only,
        max_threads=options.workers,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=NAME_TIMEOUT_S,
        negative_timeout=0,
    )


def _import_mfusepy() -> Any:  # noqa: ANN401 - a module without types
    """mfusepy loads its library when imported, and takes libfuse 2 unless told otherwise."""
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    try:
        import mfusepy
    except (ImportError, OSError) as reason:
        raise Fs3Error(
            Code.UNSUPPORTED,
            f"the fusepy front needs mfusepy and libfuse 3 ({reason}):"
            " pip install mfusepy; apt-get install libfuse3-3",
        ) from reason
    return mfusepy


def _info(pointer: Any) -> Any:  # noqa: ANN401 - ctypes
    return pointer.contents if pointer else None


def _fuse_class(mfusepy: Any) -> Any:  # noqa: ANN401 - made when the module is there
    def text(path: bytes | None) -> str | None:
        return None if path is None else os.fsdecode(path)

    class Fuse3(mfusepy.FUSE):  # type: ignore[misc]  # its base is known at run time only
        """mfusepy's table of callbacks, with those that lose arguments replaced."""

        operations: PathOperations

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> None:
            self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)

        def chmod_fuse_3(self, path: bytes | None, mode: int, pointer: object) -> None:
            self.operations.chmod(text(path), mode, _info(pointer))

        def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, pointer: object) -> None:
            uid, gid = (-1 if number == 0xFFFFFFFF else number for number in (uid, gid))
            self.operations.chown(text(path), uid, gid, _info(pointer))

        def truncate_fuse_3(self, path: bytes | None, length: int, pointer: object) -> None:
            self.operations.truncate(text(path), length, _info(pointer))

        def utimens_fuse_3(self, path: bytes | None, times: Any, pointer: object) -> None:  # noqa: ANN401
            atime, mtime = times.contents.actime, times.contents.modtime
            changes = SetAttributes(
                atime_ns=_nanoseconds(atime),
                mtime_ns=_nanoseconds(mtime),
                atime_now=atime.tv_nsec == _UTIME_NOW,
                mtime_now=mtime.tv_nsec == _UTIME_NOW,
            )
            self.operations.utimens(text(path), changes, _info(pointer))

    return Fuse3


def _nanoseconds(time: Any) -> int | None:  # noqa: ANN401 - a struct timespec
    if time.tv_nsec in (_UTIME_NOW, _UTIME_OMIT):
        return None
    return int(time.tv_sec) * 1_000_000_000 + int(time.tv_nsec)
