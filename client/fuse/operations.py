"""From a request to its reply: finds the handler, and turns what goes wrong into an errno.

:meth:`Operations._guarded` is the one place that turns an exception into an errno. Requests without
a handler are answered ENOSYS, after which the kernel stops asking: ACCESS (``default_permissions``
answers it), POLL (always ready), BMAP and whatever newer kernels have.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from fs3.client.filesystem_interface import Cancellation, FileSystem
from fs3.core.types import InodeId
from fs3.errors import Fs3Error

from . import kernel as codec
from . import kernel_structs as k
from .file_operations import FileOperations
from .handlers import Answer, Callers, Handler, Reply
from .kernel import Arguments, Header
from .name_operations import NameOperations
from .negotiation import FrontOptions, answer_init
from .waits import Waits

log = logging.getLogger(__name__)


class Operations:
    """The handlers of one mount.

    ``send(unique, reply)`` serves what had to wait, ``invalidate(inode)`` makes the kernel forget
    an inode's pages and attributes.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        options: FrontOptions,
        send: Callable[[int, Answer], None],
        invalidate: Callable[[InodeId], None],
    ) -> None:
        self._filesystem = filesystem
        self._options = options
        self._send = send
        self._invalidate = invalidate
        self._waits = Waits()
        callers = Callers()
        self._files = FileOperations(filesystem, callers)
        table: dict[int, Handler] = {
            **NameOperations(filesystem, callers).table(),
            **self._files.table(),
            k.Opcode.SETLKW: self._setlkw,
            k.Opcode.INIT: self._init,
            k.Opcode.INTERRUPT: self._interrupt,
            k.Opcode.DESTROY: lambda *_: 0,
            k.Opcode.IOCTL: self._ioctl,
        }
        self._handlers = [table.get(number) for number in range(len(codec.DECODERS))]

    def answer(self, header: Header, request: memoryview) -> Reply:
        """Decode the request's arguments and handle it."""
        opcode = header[1]
        handler = self._handlers[opcode] if opcode < len(self._handlers) else None
        if handler is None:
            return errno.ENOSYS
        try:
            arguments = codec.decode_arguments(opcode, request)
        except Fs3Error as error:
            log.exception("fuse_request_malformed opcode=%s", opcode)
            return error.errno
        return self._guarded(handler, arguments, header)

    def close(self) -> None:
        """Give up the locks that are waited for."""
        self._waits.close()

    def _guarded(self, handler: Handler, arguments: Arguments, header: Header) -> Reply:
        try:
            return handler(InodeId(header[3]), arguments, header)
        except Fs3Error as error:
            return error.errno
        except Exception:  # the edge: a bug must fail one request, not the mount
            log.exception("fuse_request_failed opcode=%s inode=%s", header[1], header[3])
            return errno.EIO

    def _init(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        major, minor, _, offered = arguments
        return answer_init(major, minor, offered, self._options)

    def _interrupt(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._waits.interrupt(arguments[0])
        return None

    def _setlkw(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        """Take the lock now if it is free; otherwise a thread waits for it and replies."""
        if self._files.take_lock(node, arguments, header) == 0:
            return 0

        def wait(cancellation: Cancellation) -> None:
            def handler(node: InodeId, arguments: Arguments, _: Header) -> Reply:
                return self._files.wait_for_lock(node, arguments, cancellation)

            self._send(header[2], self._guarded(handler, arguments, header) or 0)

        return None if self._waits.start(header[2], wait) else errno.ENOLCK

    def _ioctl(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        """Answered after the kernel has forgotten what is old.

        It waits for pages that other workers are about to fill, so a worker must not wait for it.
        """
        handle, flags, command, _, _, out_size, data = arguments
        done = None
        if not flags & k.IOCTL_DIRECTORY:
            done = self._filesystem.control(handle, command, data)
        if done is None:
            return errno.ENOTTY
        reply = k.IOCTL_OUT.pack(0, 0, 0, 0) + done.answer[:out_size]
        if not done.stale:
            return reply

        def wait(_: Cancellation) -> None:
            def handler(node: InodeId, *_: object) -> Reply:
                self._invalidate(node)
                return reply

            self._send(header[2], self._guarded(handler, arguments, header) or 0)

        return None if self._waits.start(header[2], wait) else errno.EAGAIN
