"""What every request handler is: its type, its replies, and who the caller is.

A handler is ``handler(node, arguments, header) -> Reply``. A reply is

- a number: that errno, or 0 for success without data;
- bytes or a list of buffers: success with data;
- None: nothing is sent (forget, interrupt, and locks that will answer later).
"""

from __future__ import annotations

from collections.abc import Callable

from fs3.client.filesystem_interface import Buffer
from fs3.core.types import InodeId
from fs3.types import Credentials

from .kernel import Arguments, Header

Answer = int | Buffer | list[Buffer]
Reply = Answer | None
Handler = Callable[[InodeId, Arguments, Header], Reply]

_CREDENTIALS_MAX = 4096


class Callers:
    """One Credentials object per user, because making one costs as much as a look-up."""

    def __init__(self) -> None:
        self._credentials: dict[tuple[int, int], Credentials] = {}

    def of(self, header: Header) -> Credentials:
        """Who made the request."""
        key = header[4], header[5]
        found = self._credentials.get(key)
        if found is None:
            if len(self._credentials) >= _CREDENTIALS_MAX:
                self._credentials.clear()
            found = self._credentials[key] = Credentials(uid=key[0], gid=key[1])
        return found
