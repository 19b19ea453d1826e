"""Memory that clients of this machine can look into: the stamps of a store (fs3/core/stamps.py).

It is a memfd, so it goes with the last process that has it open. Whoever gets its descriptor can
map it for reading only, and its size is sealed: nobody's look at it can end in a SIGBUS.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from fs3.core.stamps import STAMPS_BYTES, Stamps
from fs3.log import get_logger

_F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; not in Python's fcntl
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
_log = get_logger(__name__)


class SharedStamps(Stamps):
    """Stamps in memory of their own. Where that cannot be had: none, and nobody remembers."""

    def __init__(self) -> None:
        try:
            made = os.memfd_create("fs3-stamps", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            _log.warning("no_shared_memory", reason=str(error))
            super().__init__()
            return
        try:
            os.ftruncate(made, STAMPS_BYTES)
            memory = mmap.mmap(made, STAMPS_BYTES)
            fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(made)
            _log.warning("no_shared_memory", reason=str(error))
            super().__init__()
            return
        self.descriptor = made
        super().__init__(memoryview(memory))

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Pass the descriptor on no more; who has it keeps seeing that nothing is served."""
        self.withdraw()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
