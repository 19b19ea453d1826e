"""What everything made by pyverbs has in common: Debian's python3-pyverbs (44) and later ones.

Whatever pyverbs makes holds a lock of the logging module for a moment.

A forked child must not touch what its parent opened, not even to close it: it is kept for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading
from typing import Any

from fs3.errors import Code, Fs3Error

MEMLOCK_HINT = (
    "allow more locked memory: LimitMEMLOCK=infinity in a systemd unit, ulimit -l unlimited in a"
    " shell, --ulimit memlock=-1 for a container"
)
# Opened here and not closed. In a forked child they are the parent's: kept, never touched.
_open: set[Opened] = set()
_inherited: list[object] = []
# Held while a channel is made or closed: pyverbs 44 does not tell its descriptor, so the new one is
# looked for, and must not have a number that another one had when the looking began.
making_channel = threading.RLock()


def load() -> Any:  # noqa: ANN401 - a module
    """The module of verbs' constants; Fs3Error UNSUPPORTED if pyverbs cannot be imported."""
    for name in ("pyverbs.enums", "pyverbs.libibverbs_enums"):  # Debian 12's; since rdma-core 53
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            raise Fs3Error(Code.UNSUPPORTED, f"pyverbs does not load: {error}") from error
    raise Fs3Error(
        Code.UNSUPPORTED, "pyverbs is not installed: python3-pyverbs on Debian, or fs3[rdma]"
    )


class Opened:
    """Something of pyverbs that is closed once, by the process that opened it."""

    order = 0  # of closing at the end of the process: who uses others has a lower one
    has_channel = False

    def __init__(self, *objects: Any) -> None:  # noqa: ANN401
        self._objects = objects  # in the order in which they are closed
        self._pid = os.getpid()
        _open.add(self)

    @property
    def closed(self) -> bool:
        return self not in _open

    def close(self) -> None:
        if self.closed or self._pid != os.getpid():
            return
        _open.discard(self)
        with making_channel if self.has_channel else contextlib.nullcontext():
            for made in self._objects:
                made.close()
        self._objects = ()


def descriptors(target: str) -> set[int]:
    """Those of this process that are open on ``target``, as /proc names it."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            is_one = os.readlink(f"/proc/self/fd/{name}") == target
        except OSError:
            continue  # closed meanwhile, as the one of listdir is
        if is_one:
            found.add(int(name))
    return found


def gid_text(gid: bytes) -> str:
    """As libraries and people write it."""
    return ":".join(gid[i : i + 2].hex() for i in range(0, 16, 2))


def _after_fork_in_child() -> None:
    _inherited.append(list(_open))
    _open.clear()


def _close_all() -> None:
    """Before the interpreter is taken apart, which would close things in any order."""
    for opened in sorted(_open, key=lambda one: one.order):
        opened.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
