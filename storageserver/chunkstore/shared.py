"""Memory that this process shares with clients of its machine; the stamps of a store lie in such.

It is a memfd, so it goes with the last process that has it open. Whoever gets the descriptor of the
stamps (fs3/core/stamps.py) can map them for reading only. Sizes are sealed: nobody's look at such
memory can end in a SIGBUS.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from fs3.core.stamps import STAMPS_BYTES, Stamps
from fs3.log import get_logger

_F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; not in Python's fcntl
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # no SIGBUS for anybody who maps it
_log = get_logger(__name__)


def sealed_memory(name: str, size_bytes: int, *, others_write: bool) -> tuple[int, memoryview]:
    """Zeroed memory to share: a descriptor to pass on (the caller's to close), and the same here.

    Its size is sealed, and unless ``others_write`` nobody can map it for writing from now on.
    OSError if it cannot be had.
    """
    seals = _SIZE_SEALS | (0 if others_write else _F_SEAL_FUTURE_WRITE) | fcntl.F_SEAL_SEAL
    made = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, size_bytes)
        memory = mmap.mmap(made, size_bytes)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(made)
        raise
    return made, memoryview(memory)


class SharedStamps(Stamps):
    """Stamps in memory of their own. Where that cannot be had: none, and nobody remembers."""

    def __init__(self) -> None:
        try:
            made, memory = sealed_memory("fs3-stamps", STAMPS_BYTES, others_write=False)
        except OSError as error:
            _log.warning("no_shared_memory", reason=str(error))
            super().__init__()
            return
        self.descriptor = made
        super().__init__(memory)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Pass the descriptor on no more; who has it keeps seeing that nothing is served."""
        self.withdraw()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
