"""Listing a directory through a handle, page by page.

The metaserver lists in the order of names and continues behind any name, so a cookie is the number
of a line and the handle keeps the names of the lines it has given out. The entries themselves are
kept for one page.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from fs3.core.types import InodeId
from fs3.types import Dentry

from .metadata import LISTING_PAGE, Metadata


class Listing:
    """One open directory. Several threads may list at once."""

    def __init__(self, directory: InodeId, metadata: Metadata) -> None:
        self.directory = directory
        self._metadata = metadata
        self._lock = threading.Lock()  # guards the page and the names
        self._names: list[str] = []  # of lines 1, 2, ...
        self._page: list[Dentry] = []
        self._first = 1  # the cookie of the page's first line
        self._more = True
        self._detailed = False  # the page has attributes

    def lines(self, after: int, *, attributes: bool) -> Iterator[tuple[int, Dentry]]:
        """Cookie and entry, behind cookie ``after``; 0 starts over, with what is there now."""
        with self._lock:
            if after == 0:
                self._names.clear()
                self._page = []
                self._first, self._more = 1, True
        cookie = after + 1
        while True:
            with self._lock:
                found = self._line(cookie, attributes)
            if found is None:
                return
            yield cookie, found
            cookie += 1

    def _line(self, cookie: int, attributes: bool) -> Dentry | None:
        place = cookie - self._first
        stale = attributes and not self._detailed
        if not 0 <= place < len(self._page) or stale:
            at_end = place == len(self._page) and not self._more
            if at_end or cookie - 1 > len(self._names):
                return None
            self._fetch(cookie, attributes)
            place = 0
        return self._page[place] if place < len(self._page) else None

    def _fetch(self, cookie: int, attributes: bool) -> None:
        after = self._names[cookie - 2] if cookie > 1 else ""
        self._page, self._more = self._metadata.readdir(
            self.directory, after, attributes=attributes, limit=LISTING_PAGE
        )
        self._first, self._detailed = cookie, attributes
        self._names[cookie - 1 :] = [entry.name for entry in self._page]
