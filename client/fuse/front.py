"""The direct front: threads that read requests from /dev/fuse, and write the replies.

A worker owns one buffer, reads one request into it, handles it, replies with one ``writev``, and
only then reads the next. The kernel hands each request to one reader, so workers share nothing.
The buffer starts 80 bytes before a page border: the data of a WRITE then begins on the border and
can go on to O_DIRECT files and the NIC as it is.

All workers read the same descriptor. A descriptor of its own per worker (FUSE_DEV_IOC_CLONE) saves
a kernel lock that Python threads, which take turns anyway, do not fight for.

The loop ends when the kernel says ENODEV: somebody unmounted, or :meth:`Front.stop` did.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import signal
import threading
from types import TracebackType

from fs3.client.filesystem_interface import Buffer, FileSystem
from fs3.core.types import InodeId
from fs3.errors import Fs3Error

from . import kernel as codec
from . import kernel_structs as k
from .handlers import Answer
from .mount import REQUEST_BYTES_MAX, Mount, mount
from .negotiation import PAGE_BYTES, FrontOptions
from .operations import Operations

log = logging.getLogger(__name__)

_HEAD_BYTES = k.IN_HEADER.size + k.WRITE_IN.size
_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED})
_AGAIN = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})  # ENOENT: withdrawn before we had it
_OUT_HEADER_BYTES = k.OUT_HEADER.size


class Front:
    """One mount and its workers: ``start`` ... ``stop``, or ``with Front(...)``."""

    def __init__(
        self,
        filesystem: FileSystem,
        mountpoint: str | os.PathLike[str],
        options: FrontOptions | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._options = options or FrontOptions()
        self._options.validate()
        self._operations = Operations(filesystem, self._options, self._send, self.invalidate_inode)
        self._threads: list[threading.Thread] = []
        self._mount: Mount | None = None
        self._fd = -1
        self._life = threading.Lock()  # held while starting, and while cleaning up

    def start(self) -> None:
        """Mount, and serve from now on."""
        options = self._options
        with self._life:
            self._mount = mount(
                self._mountpoint, read_only=options.read_only, allow_other=options.allow_other
            )
            self._fd = self._mount.fd
            try:
                self._filesystem.attach(self)
            except BaseException:  # a mount that nobody serves would hang whoever looks at it
                self._mount.abort()
                os.close(self._fd)
                self._fd = -1
                raise
            for number in range(options.workers):
                thread = threading.Thread(target=self._work, name=f"fuse-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._mount.set_readahead(options.readahead_bytes)
        log.info("fuse_mounted mountpoint=%s device=%s", self._mountpoint, self._mount.device)

    def join(self) -> None:
        """Wait until the mount is gone, then clean up."""
        for thread in self._threads:
            thread.join()
        with self._life:
            if self._fd < 0:
                return
            self._operations.close()
            os.close(self._fd)
            self._fd = -1
            self._filesystem.detach()
        log.info("fuse_unmounted mountpoint=%s", self._mountpoint)

    def stop(self) -> None:
        """Unmount and end; programs that still use the mount get ENOTCONN from now on.

        It waits, so a signal handler must call it in a thread of its own.
        """
        with self._life:
            mounted = self._mount
        if mounted is not None and not mounted.unmount():
            log.warning("fuse_mount_in_use_aborted mountpoint=%s", self._mountpoint)
            mounted.abort()
        self.join()

    def __enter__(self) -> Front:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- Notifier ----------------------------------------------------------------------------------

    def invalidate_inode(self, inode: InodeId, offset: int = 0, length: int = 0) -> None:
        """Make the kernel forget attributes and pages; see ``Notifier``."""
        self._notify(codec.encode_invalidate_inode(inode, offset, length))

    def invalidate_entry(self, parent: InodeId, name: str) -> None:
        """Make the kernel forget a name; see ``Notifier``."""
        self._notify(codec.encode_invalidate_entry(parent, name))

    def _notify(self, message: list[bytes]) -> None:
        try:
            os.writev(self._fd, message)
        except OSError as error:
            if error.errno not in _GONE and error.errno != errno.ENOENT:  # ENOENT: not cached
                raise

    # -- the loop ----------------------------------------------------------------------------------

    def _work(self) -> None:
        buffer = mmap.mmap(-1, PAGE_BYTES + REQUEST_BYTES_MAX)
        view = memoryview(buffer)[PAGE_BYTES - _HEAD_BYTES :]
        vector = [view]
        fd, answer, send = self._fd, self._operations.answer, self._send
        while True:
            try:
                length = os.readv(fd, vector)
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno not in _GONE:
                    log.exception("fuse_read_failed mountpoint=%s", self._mountpoint)
                return
            request = view[:length]
            try:
                header = codec.decode_header(request)
            except Fs3Error:  # nobody to answer: it does not even say who asked
                log.exception("fuse_request_unreadable mountpoint=%s", self._mountpoint)
                continue
            reply = answer(header, request)
            if reply is not None:
                send(header[2], reply)

    def _send(self, unique: int, reply: Answer) -> None:
        """Write one reply; the kernel takes it whole or not at all."""
        vector: list[Buffer]
        if isinstance(reply, int):
            vector = [k.OUT_HEADER.pack(_OUT_HEADER_BYTES, -reply, unique)]
        elif isinstance(reply, list):
            length = _OUT_HEADER_BYTES + sum(map(len, reply))
            vector = [k.OUT_HEADER.pack(length, 0, unique), *reply]
        else:
            header = k.OUT_HEADER.pack(_OUT_HEADER_BYTES + len(reply), 0, unique)
            vector = [header, reply]
        try:
            os.writev(self._fd, vector)
        except OSError as error:
            # ENOENT: nobody waits for it any more. Anything else is a reply the kernel refused: it
            # has failed the request with EIO, and the mount goes on.
            if error.errno not in _GONE and error.errno != errno.ENOENT:
                log.exception("fuse_reply_refused unique=%s", unique)


def serve(
    filesystem: FileSystem, mountpoint: str | os.PathLike[str], options: FrontOptions
) -> None:
    """Mount and serve until it is unmounted or SIGTERM or SIGINT comes; call in the main thread."""
    front = Front(filesystem, mountpoint, options)

    def stop(*_: object) -> None:
        threading.Thread(target=front.stop, name="fuse-stop").start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        front.start()
        front.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
