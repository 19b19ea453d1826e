"""Giving the disk space of idle blocks back, a bounded amount at a time."""

from __future__ import annotations

import errno

from .allocator import Allocator
from .datafiles import ChunkStoreSettings, DataFiles
from .health import Health


def punch_idle(
    allocator: Allocator, data: DataFiles, settings: ChunkStoreSettings, health: Health
) -> None:
    """Punch the highest runs of free blocks, up to ``settings.punch_bytes``."""
    left = settings.punch_bytes
    for size_class in sorted(data.all_classes()):
        while left > 0:
            run = allocator.take_run(size_class, settings.idle_bytes_max, left)
            if run is None:
                break
            try:
                left -= data.punch(size_class, run)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    health.fail(error)
                left = 0
            allocator.punched(size_class, run)
