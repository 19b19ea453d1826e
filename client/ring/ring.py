"""The ring: prepare I/Os, submit them, wait for results. docs/decisions says who moves the bytes.

A ring has connections of its own, and no thread: ``submit`` sends the requests, ``wait`` receives
the answers into the caller's memory. Servers, and the kernel as far as its buffers reach, work
between the two; whoever has other things to do may look in with ``wait(0, 0)``.

Every I/O that was submitted comes out of ``wait`` or ``cancel`` exactly once. Results are sorted
by the order of preparation. One that is never answered ends with an error at the client's deadline.
"""

from __future__ import annotations

import errno
import math
import os
import time
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fs3.client.context import ClientContext
from fs3.client.links import Links
from fs3.client.transfers import advance, now_ms
from fs3.errors import Code, Fs3Error
from fs3.types import FILE_BYTES_MAX

from .files import Registered, registered
from .memory import Iov
from .submission import RESULT, Prepared, Results, Submission

ENTRIES_MAX = 1 << 16
_BUSY_PAUSE_MS = 5  # until somebody else's updates have made room for ours
_BUSY_MAX_S = 30.0


class Ring:
    """For one thread at a time, of the process that made it. Close it, or use ``with``."""

    def __init__(self, entries: int, mode: Literal["read", "write"]) -> None:
        """``entries``: how many I/Os may be prepared or under way at once, up to ENTRIES_MAX."""
        if not 1 <= entries <= ENTRIES_MAX:
            raise Fs3Error(Code.INVALID, f"{entries} entries: 1 to {ENTRIES_MAX} are allowed")
        if mode not in ("read", "write"):
            raise Fs3Error(Code.INVALID, f'mode {mode!r}: "read" and "write" are allowed')
        self.entries = entries
        self.mode = mode
        self._pid = os.getpid()
        self._context: ClientContext | None = None  # that of the first file
        self._links: Links | None = None
        self._files: dict[int, Registered] = {}  # by handle, of what is prepared
        # What is prepared, as columns, in the order of preparation.
        self._handles: list[NDArray[np.int64]] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._userdata: list[NDArray[np.uint64]] = []
        self._views: list[memoryview] = []
        self._singles: list[tuple[int, int, int]] = []  # the last ones, one by one
        self._next_index = 0
        self._submissions: list[Submission] = []
        self._ready: list[Results] = []  # that ended, and were not handed out
        self._ready_count = 0
        self._start_by_s = time.monotonic() + _BUSY_MAX_S  # what waits for others' updates to end

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def prepared(self) -> int:
        """I/Os that wait for ``submit``."""
        return len(self._views)

    @property
    def in_flight(self) -> int:
        """I/Os that were submitted, and not handed out."""
        return self._ready_count + sum(submission.open for submission in self._submissions)

    # -- preparing ---------------------------------------------------------------------------------

    def prep_io(self, handle: int, offset: int, iov: Iov, userdata: int = 0) -> None:
        """Prepare one I/O between ``iov`` and the file; nothing begins before ``submit``.

        Fs3Error BUSY if the ring is full, ACCESS if the file is not open for it, INVALID.
        """
        self.check(handle, offset, iov.size)
        self._singles.append((handle, offset, userdata))
        self._views.append(iov.memory)

    def check(self, handle: int, offset: int, length: int, count: int = 1) -> None:
        """Raise what :meth:`prep_io` would, if so many were prepared."""
        self._check_room(count)
        self._file(handle)
        if not 0 <= offset <= FILE_BYTES_MAX - length:
            raise _bad_range(offset, length)

    def prep_many(
        self,
        handles: int | ArrayLike,
        offsets: ArrayLike,
        lengths: int | ArrayLike,
        iov: Iov,
        places: ArrayLike,
        userdata: int | ArrayLike = 0,
    ) -> None:
        """Prepare many at once; each argument but ``iov`` is a column, or one value for all.

        ``lengths`` bytes at ``offsets`` of a file go to, or come from, ``places`` in ``iov``.
        """
        handle, offset, length, place = _columns(handles, offsets, lengths, places)
        if not len(handle):
            return
        self._check_room(len(handle))
        outside = (offset < 0) | (offset > FILE_BYTES_MAX - length)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            raise _bad_range(int(offset[first]), int(length[first]))
        outside = (place < 0) | (length < 0) | (place + length > iov.size)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            raise Fs3Error(
                Code.INVALID,
                f"I/O {first}: {length[first]} bytes at {place[first]} are not within the"
                f" {iov.size} bytes of the region",
            )
        for each in [int(handle[0])] if np.ndim(handles) == 0 else np.unique(handle).tolist():
            self._file(each)
        self._flush_singles()
        self._handles.append(handle)
        self._offsets.append(offset)
        users = np.asarray(userdata, np.uint64)
        self._userdata.append(users if users.ndim else np.full(len(handle), users))
        memory = iov.memory
        self._views += [
            memory[start:end]
            for start, end in zip(place.tolist(), (place + length).tolist(), strict=True)
        ]

    def _check_room(self, count: int) -> None:
        if os.getpid() != self._pid:
            raise Fs3Error(Code.INVALID, f"the ring is that of process {self._pid}; make another")
        room = self.entries - self.prepared - self.in_flight
        if count > room:
            raise Fs3Error(Code.BUSY, f"{count} I/Os, and room for {room} of {self.entries}")

    def _file(self, handle: int) -> None:
        if handle in self._files:
            return
        found = registered(handle)
        file = found.file
        if not (file.readable if self.mode == "read" else file.writable):
            raise Fs3Error(Code.ACCESS, f"{file.name} was not opened to {self.mode}")
        if self._context is None:
            self._context = file.context
            self._links = file.context.data.new_links()
        elif self._context is not file.context:
            raise Fs3Error(
                Code.INVALID,
                f"{file.name} is of another client than the files that the ring had before:"
                " a ring serves one mount's cluster, or one client's files",
            )
        self._files[handle] = found.take()

    def _flush_singles(self) -> None:
        if self._singles:
            handles, offsets, userdata = zip(*self._singles, strict=True)
            self._handles.append(np.array(handles, np.int64))
            self._offsets.append(np.array(offsets, np.int64))
            self._userdata.append(np.array(userdata, np.uint64))
            self._singles.clear()

    # -- submitting --------------------------------------------------------------------------------

    def submit(self) -> int:
        """Start everything that is prepared; how many I/Os that were."""
        count = len(self._views)
        if not count:
            return 0
        self._check_room(0)
        self._flush_singles()
        if len(self._files) == 1:
            files, of_file = list(self._files.values()), np.zeros(count, np.int64)
        else:
            handles, of_file = np.unique(np.concatenate(self._handles), return_inverse=True)
            files = [self._files[handle] for handle in handles.tolist()]
        prepared = Prepared(
            files,
            of_file,
            np.concatenate(self._offsets),
            self._views,
            np.arange(self._next_index, self._next_index + count, dtype=np.uint64),
            np.concatenate(self._userdata),
        )
        self._next_index += count
        assert self._context is not None
        assert self._links is not None
        data, links = self._context.data, self._links
        self._submissions.append(Submission(prepared, data, links, reads=self.mode == "read"))
        self._forget_prepared()
        self._advance(0)  # not only started: what can leave has left
        return count

    # -- waiting -----------------------------------------------------------------------------------

    def wait(
        self,
        min_results: int | None = None,
        timeout_s: float | None = None,
        *,
        max_results: int | None = None,
    ) -> Results:
        """Results: ``min_results`` at least (default: of all that was submitted), unless time ends.

        An array of RESULT, sorted by ``index``, which counts the I/Os of the ring as they were
        prepared; ``userdata`` is what was given then; ``result`` the bytes read or written, fewer
        than asked only at the end of a file, or minus the errno. With 0 and 0 it only looks.
        What has not come in time stays under way; see :meth:`cancel`.
        """
        in_flight = self.in_flight
        wanted = in_flight if min_results is None else min(min_results, in_flight)
        if max_results is not None:
            wanted = min(wanted, max_results)
        until_ms = math.inf if timeout_s is None else now_ms() + timeout_s * 1000
        if not wanted:
            until_ms = 0
        self._collect()
        late = False
        while self._submissions and not late and (self._ready_count < wanted or not wanted):
            self._advance(until_ms)
            self._collect()
            late = now_ms() >= until_ms
        return self._take(max_results)

    def cancel(self) -> Results:
        """Give up what is under way. Its memory is not touched from here on.

        Returns all that was not handed out; the result of an I/O that was given up is -ECANCELED:
        a read has left anything in its memory, a write may have happened, or may happen yet.
        """
        self._abandon(errno.ECANCELED)
        return self._take(None)

    def close(self) -> None:
        """Cancel, and disconnect; idempotent."""
        if os.getpid() != self._pid:
            return
        self.cancel()
        if self._links is not None:
            self._links.close()
            self._links, self._context = None, None
        self._forget_prepared()

    def _forget_prepared(self) -> None:
        self._views = []
        for columns in (self._handles, self._offsets, self._userdata, self._singles):
            columns.clear()
        for file in self._files.values():
            file.release()
        self._files = {}

    def _advance(self, until_ms: float) -> None:
        """Move bytes. What fails in this process, for want of descriptors say, ends all I/Os."""
        assert self._links is not None
        busy = self._start_waiting()
        if busy:
            until_ms = min(until_ms, now_ms() + _BUSY_PAUSE_MS)
        transfers = [t for s in self._submissions for t in s.transfers]
        if not transfers and not busy:
            return
        try:
            advance(transfers, self._links, until_ms)
        except OSError as error:
            self._abandon(error.errno or errno.EIO)

    def _start_waiting(self) -> bool:
        """Start what has waited for others; True if some of it still does."""
        try:
            for submission in self._submissions:
                submission.start()
        except OSError as error:
            busy = isinstance(error, Fs3Error) and error.code is Code.BUSY
            if busy and time.monotonic() < self._start_by_s:
                return True
            self._abandon(error.errno or errno.EIO)
        self._start_by_s = time.monotonic() + _BUSY_MAX_S
        return False

    def _collect(self) -> None:
        """Take the results of what has ended."""
        for submission in self._submissions:
            self._put(submission.collect())
        self._submissions = [s for s in self._submissions if s.open]

    def _abandon(self, number: int) -> None:
        """Every I/O ends."""
        for submission in self._submissions:
            self._put(submission.abandon(number))
        self._submissions = []

    def _put(self, results: Results) -> None:
        if len(results):
            self._ready.append(results)
            self._ready_count += len(results)

    def _take(self, limit: int | None) -> Results:
        if not self._ready:
            return np.zeros(0, RESULT)
        results = self._ready[0] if len(self._ready) == 1 else np.concatenate(self._ready)
        results = results[np.argsort(results["index"], kind="stable")]
        taken = results if limit is None else results[:limit]
        left = results[len(taken) :]
        self._ready = [left] if len(left) else []
        self._ready_count = len(left)
        return taken


def _columns(*values: ArrayLike) -> list[NDArray[np.int64]]:
    """As long as each other; one value for all is repeated."""
    arrays = [np.asarray(value, np.int64) for value in values]
    shapes = {array.shape for array in arrays if array.ndim}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1:
        raise Fs3Error(
            Code.INVALID, f"columns of shapes {[a.shape for a in arrays]}: one length is allowed"
        )
    return [array if array.ndim else np.full(shape, array) for array in arrays]


def _bad_range(offset: int, length: int) -> Fs3Error:
    return Fs3Error(
        Code.INVALID,
        f"{length} bytes at offset {offset}: files have bytes 0 to {FILE_BYTES_MAX} at most",
    )
