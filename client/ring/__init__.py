"""Rings: thousands of reads or writes in flight, prepared and reaped by columns, like io_uring's.

    from fs3.client.ring import Iov, Ring, deregister_fd, register_fd

    iov = Iov(256 << 20)                       # or a SharedMemory, or any writable buffer
    file = register_fd(fd)                     # a descriptor on an fs3 mount, or an fs3 file
    with Ring(entries=4096, mode="read") as ring:
        ring.prep_many(file, offsets, 4096, iov, places)
        ring.submit()
        done = ring.wait(timeout_s=5.0)        # done["userdata"], done["result"]

A mount is asked when a descriptor is registered and told when something was written, and nobody
but the storageservers is asked in between.
"""

from .files import deregister_fd, register_fd
from .memory import Iov
from .ring import Ring
from .submission import RESULT

__all__ = ["RESULT", "Iov", "Ring", "deregister_fd", "register_fd"]
