"""Giving the disk space of idle blocks back, a bounded amount at a time.

Not at once: a cache that evicts as fast as it is filled needs them again, and what was touched
before is written several times as fast.
"""

from __future__ import annotations

import errno

from .allocator import Allocator
from .datafiles import ChunkStoreSettings, DataFiles
from .health import Health


class Punching:
    """Under the store's lock only."""

    def __init__(
        self, allocator: Allocator, data: DataFiles, settings: ChunkStoreSettings, health: Health
    ) -> None:
        self._allocator = allocator
        self._data = data
        self._settings = settings
        self._health = health
        self._ticks = 0  # since it was looked again which blocks are not needed

    def tick(self) -> None:
        """Punch the highest runs of free blocks, up to ``settings.punch_bytes``, if it is time."""
        if not self._settings.idle_ticks:
            self._allocator.look_again()
        self._ticks += 1
        if self._ticks >= self._settings.idle_ticks and self._punch():
            self._allocator.look_again()
            self._ticks = 0

    def _punch(self) -> bool:
        """Whether all is done that there was to do."""
        left = self._settings.punch_bytes
        for size_class in sorted(self._data.all_classes()):
            while True:
                if left <= 0:
                    return False
                run = self._allocator.take_run(size_class, self._settings.idle_bytes_max, left)
                if run is None:
                    break
                try:
                    left -= self._data.punch(size_class, run)
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP:
                        self._health.fail(error)
                    left = 0
                self._allocator.punched(size_class, run)
        return True
