"""The INIT exchange: what we ask of the kernel, out of what it offers. Pure.

Asked for, where offered:

- BIG_WRITES, MAX_PAGES: requests of 1 MiB.
- ASYNC_READ, ASYNC_DIO, PARALLEL_DIROPS: several requests under way for one file or directory.
- DO_READDIRPLUS with READDIRPLUS_AUTO: listings bring attributes when somebody stats the names.
- ATOMIC_O_TRUNC: open(O_TRUNC) is one request and one step.
- HANDLE_KILLPRIV_V2: the file system clears set-uid bits itself. Without it the kernel asks for the
  xattr security.capability before every write: twice the requests.
- POSIX_LOCKS, FLOCK_LOCKS: locks hold between mounts.
- AUTO_INVAL_DATA: pages go when fresh attributes show another mtime or size. Opening a file drops
  pages anyway unless ``keep_cache``; this is for a file held open while another mount appends: with
  EXPLICIT_INVAL_DATA the old last page would show zeros where the new bytes are.
- CACHE_SYMLINKS: a symlink's target never changes.
- DIRECT_IO_ALLOW_MMAP: files opened with direct_io can still be mapped.
- WRITEBACK_CACHE if the user asks: small writes gather in the page cache. Then other mounts see
  data only after close or fsync, and the kernel believes its own length and mtime of an open file.

Never: EXPORT_SUPPORT (look-ups of "." and ".." by node id), DONT_MASK (the kernel applies the
umask, which is right without default ACLs), POSIX_ACL (we store none).
"""

from __future__ import annotations

from dataclasses import dataclass

from fs3.errors import Code, Fs3Error

from . import kernel_structs as k
from .mount import REQUEST_BYTES_MAX

PAGE_BYTES = 4096
_ALWAYS = (
    k.Init.ASYNC_READ
    | k.Init.POSIX_LOCKS
    | k.Init.ATOMIC_O_TRUNC
    | k.Init.BIG_WRITES
    | k.Init.FLOCK_LOCKS
    | k.Init.AUTO_INVAL_DATA
    | k.Init.DO_READDIRPLUS
    | k.Init.READDIRPLUS_AUTO
    | k.Init.ASYNC_DIO
    | k.Init.PARALLEL_DIROPS
    | k.Init.MAX_PAGES
    | k.Init.CACHE_SYMLINKS
    | k.Init.HANDLE_KILLPRIV_V2
    | k.Init.INIT_EXT
    | k.Init.DIRECT_IO_ALLOW_MMAP
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """How a mount behaves, apart from the file system behind it."""

    workers: int = 4  # threads that serve requests; as many may block at once
    read_only: bool = False
    allow_other: bool = True  # let other users than the mounting one in
    writeback_cache: bool = False
    readahead_bytes: int = 4 << 20  # ahead of a sequential reader
    background_requests_max: int = 64  # read-ahead and asynchronous requests under way

    def validate(self) -> None:
        """Raise INVALID for a value that cannot work."""
        if not 1 <= self.workers <= 256:
            raise Fs3Error(Code.INVALID, f"workers = {self.workers}: 1 to 256 are allowed")
        if not 1 <= self.background_requests_max <= 65_535:
            raise Fs3Error(
                Code.INVALID,
                f"background_requests_max = {self.background_requests_max}: 1 to 65535 are allowed",
            )
        if not PAGE_BYTES <= self.readahead_bytes <= 1 << 30:
            raise Fs3Error(
                Code.INVALID,
                f"readahead_bytes = {self.readahead_bytes}: 4 KiB to 1 GiB are allowed",
            )


def answer_init(major: int, minor: int, offered: int, options: FrontOptions) -> bytes:
    """The reply to INIT.

    A kernel of a newer major version gets our version and asks again; an older one is refused.
    """
    if major < k.MAJOR or (major == k.MAJOR and minor < k.MINOR_MIN):
        raise Fs3Error(
            Code.PROTOCOL,
            f"the kernel speaks FUSE {major}.{minor}: {k.MAJOR}.{k.MINOR_MIN} (Linux 3.15) or newer"
            " is needed",
        )
    wanted = int(_ALWAYS | k.Init.WRITEBACK_CACHE if options.writeback_cache else _ALWAYS)
    flags = wanted & offered if major == k.MAJOR else 0
    background = options.background_requests_max
    return k.INIT_OUT.pack(
        *(k.MAJOR, k.MINOR, options.readahead_bytes, flags & 0xFFFFFFFF),
        *(background, (background * 3 + 3) // 4, REQUEST_BYTES_MAX, 1),
        *(REQUEST_BYTES_MAX // PAGE_BYTES, 0, flags >> 32),
    )
