"""Sync: the data of an epoch, then its mark and the log, once for all who wait.

The store's lock is held only to end the epoch and to note that it is durable; mutations go on while
the disk works. A failed sync is never tried again: the kernel reports a lost write once, and a
second fdatasync would lie.
"""

from __future__ import annotations

from threading import Lock, RLock

from fs3.watermark import Watermark

from .datafiles import DataFiles
from .epochs import Epochs
from .files import Records
from .health import Health
from .records import DURABLE_KEY, encode_epoch


class Flusher:
    """``lock`` is the store's; this class's own is taken before it."""

    def __init__(
        self,
        lock: RLock,
        epochs: Epochs,
        data: DataFiles,
        records: Records,
        health: Health,
        watermark: Watermark,
    ) -> None:
        self._lock = lock
        self._one_at_a_time = Lock()
        self._epochs = epochs
        self._data = data
        self._records = records
        self._health = health
        self._watermark = watermark
        self.changed = False  # since the last epoch ended

    def sync(self) -> None:
        """Return when everything written so far is on stable storage."""
        wanted = self._epochs.current
        with self._one_at_a_time:
            if self._epochs.durable < wanted:  # else a flush that began after our call did it
                self._flush()

    def _flush(self) -> None:
        with self._lock:
            self._health.check()
            if not self.changed:
                return
            ended = self._epochs.end()
            dirty = self._data.take_dirty()
            self.changed = False
        with self._health.guard():
            self._data.sync(dirty)
            self._records.write([(DURABLE_KEY, encode_epoch(ended))])
            self._records.sync()
            self._watermark.rise(ended)
        with self._lock:
            self._epochs.made_durable(ended)
