"""The scrubber of one target: reads every chunk in turn, so that bad bytes are found while others
still have good ones. A pass goes through the chunks in key order, at a limited rate; the next
begins a while after its end. What is bad goes to repair (repair.py).

How far a pass is stands in the file ``scrub.json`` of the target's directory, so that a restart
goes on where the last process was. Nothing depends on it: without it a pass begins anew.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fs3.clock import Clock
from fs3.core.types import CHUNK_ID_BYTES, ChunkId, TargetId
from fs3.errors import Fs3Error
from fs3.log import get_logger

from .chunkstore.interface import BadChunk, ChunkStore
from .settings import ScrubSettings

_log = get_logger(__name__)
_STEP_BYTES = 2 << 20  # about so much is read between two looks at the clock
_STEP_CHUNKS_MAX = 256
_CHUNK_COST_BYTES = 16 << 10  # a small chunk counts for so much: it costs a read, too
_SAVE_S = 30.0
_FILE = "scrub.json"


@dataclass(slots=True)
class Progress:
    """Of one target. Times are in ns since 1970; 0: never."""

    running: bool = False
    position: str = ""  # the last chunk checked, as hex digits
    started_ns: int = 0  # this pass, or the last one
    finished_ns: int = 0  # the last whole pass
    chunks: int = 0  # checked in this pass, or the last one
    length_bytes: int = 0
    bad: int = 0


class Scrubber:
    """Any thread may call. ``_changed`` guards everything but what is being verified."""

    def __init__(
        self,
        target: TargetId,
        store: ChunkStore,
        directory: Path,
        settings: ScrubSettings,
        *,
        clock: Clock,
        on_bad: Callable[[BadChunk], None],
        fail: Callable[[str], None],
    ) -> None:
        self._target = target
        self._store = store
        self._file = directory / _FILE
        self._pause_ns = int(settings.pause_s * 1e9)
        self._bytes_per_s = settings.bytes_per_s
        self._clock = clock
        self._on_bad = on_bad
        self._fail = fail
        self._changed = threading.Condition()
        self._closed = False
        self._chunk_bytes = 1 << 20  # what a chunk of the last step cost
        self._next_s = 0.0  # by time.monotonic: not before then is the next step
        self._saved_s = time.monotonic()
        self._progress = Progress() if store.failed else self._load()
        self._thread = threading.Thread(target=self._run, name=f"scrub-{target}", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """How far it is; a copy."""
        with self._changed:
            return Progress(**asdict(self._progress))

    @property
    def bytes_per_s(self) -> int:
        """The rate; 0: it rests."""
        return self._bytes_per_s

    def set_rate(self, bytes_per_s: int) -> None:
        """From now on, until the process ends."""
        with self._changed:
            self._bytes_per_s = bytes_per_s
            self._next_s = 0.0
            self._changed.notify_all()

    def begin(self) -> None:
        """A pass from the first chunk on, now."""
        with self._changed:
            self._begin()
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; the store may be closed then."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        if not self._store.failed:
            self._save()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._changed:
            while not self._closed and not self._store.failed:
                wait_s = self._wait_s()
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                elif not self._progress.running:
                    self._begin()
                else:
                    self._step()

    def _wait_s(self) -> float | None:
        """Until there is something to do; None: until somebody says so."""
        if not self._bytes_per_s:
            return None
        if self._progress.running:
            return self._next_s - time.monotonic()
        due_ns = self._progress.finished_ns + self._pause_ns
        return (due_ns - self._clock.wall_ns()) / 1e9

    def _begin(self) -> None:
        finished_ns = self._progress.finished_ns
        self._progress = Progress(
            running=True, started_ns=self._clock.wall_ns(), finished_ns=finished_ns
        )
        self._next_s = 0.0

    def _step(self) -> None:
        """Some chunks; the lock is let go while they are read."""
        now = self._progress
        after = ChunkId(bytes.fromhex(now.position)) if now.position else None
        limit = max(1, min(_STEP_BYTES // self._chunk_bytes, _STEP_CHUNKS_MAX))
        began_s = time.monotonic()
        self._changed.release()
        try:
            verified = self._store.verify(after, limit)
        except Fs3Error as error:
            self._fail(error.detail)
            return
        finally:
            self._changed.acquire()
        if self._progress is not now:
            return  # begun anew meanwhile
        for bad in verified.bad:
            self._on_bad(bad)
        cost = max(verified.length_bytes, verified.chunks * _CHUNK_COST_BYTES)
        self._chunk_bytes = max(cost // max(verified.chunks, 1), 1)
        self._next_s = began_s + cost / max(self._bytes_per_s, 1)
        now.chunks += verified.chunks
        now.length_bytes += verified.length_bytes
        now.bad += len(verified.bad)
        if verified.last is None:
            self._finish(now)
        else:
            now.position = verified.last.hex()
            if time.monotonic() - self._saved_s > _SAVE_S:
                self._save()

    def _finish(self, now: Progress) -> None:
        now.running, now.position = False, ""
        now.finished_ns = self._clock.wall_ns()
        _log.info(
            "scrub_finished",
            target=self._target,
            chunks=now.chunks,
            length_bytes=now.length_bytes,
            bad=now.bad,
            duration_s=round((now.finished_ns - now.started_ns) / 1e9, 3),
        )
        self._save()

    # --- the file --------------------------------------------------------------------------------

    def _load(self) -> Progress:
        try:
            found = Progress(**json.loads(self._file.read_text()))
            position = bytes.fromhex(found.position)
        except FileNotFoundError:
            return Progress()
        except (OSError, ValueError, TypeError) as error:
            _log.warning("scrub_progress_lost", target=self._target, reason=str(error))
            return Progress()
        return found if len(position) in (0, CHUNK_ID_BYTES) else Progress()

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        scratch = self._file.with_suffix(".new")
        try:
            scratch.write_text(json.dumps(asdict(self._progress)))
            scratch.rename(self._file)
        except OSError as error:  # a full disk, perhaps; the store itself says what is wrong
            _log.warning("scrub_progress_not_saved", target=self._target, reason=str(error))
