"""The one thread of a target that waits for its disk: syncs, and the store's background work.

One sync at a time; what comes meanwhile shares the next. Results come back on the reactor's thread,
and so does a bug: whoever waits for a sync that is never told of would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fs3.core.types import TargetId
from fs3.errors import Fs3Error
from fs3.reactor import Reactor

from .chunkstore.interface import ChunkStore

T = TypeVar("T")


class Syncs(Generic[T]):
    """Reactor thread only, but for what runs on the thread."""

    def __init__(
        self,
        target: TargetId,
        store: ChunkStore,
        reactor: Reactor,
        done: Callable[[list[T]], None],
        fail: Callable[[str], None],
    ) -> None:
        self._store = store
        self._reactor = reactor
        self._done = done
        self._fail = fail
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"sync-{target}")
        self._waiting: list[T] = []
        self._under_way = False

    def put(self, what: T) -> None:
        """Hand it to ``done`` when everything stored before :meth:`start` is on stable storage."""
        self._waiting.append(what)

    def start(self) -> None:
        """Sync for what waits, unless a sync is under way: then for that next."""
        if self._waiting and not self._under_way:
            self._under_way = True
            group, self._waiting = self._waiting, []
            self._submit(self._sync, group)

    def background(self) -> None:
        """The store's own work, behind what is under way."""
        self._submit(self._background)

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown(wait=True)

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._thread.submit(work, *arguments).add_done_callback(self._look)

    def _look(self, done: Future[None]) -> None:
        if done.exception() is not None:
            self._reactor.call_soon(done.result)  # raises it, and ends the process

    def _sync(self, group: list[T]) -> None:
        failure = None
        try:
            self._store.sync()
        except Fs3Error as error:
            failure = error.detail
        self._reactor.call_soon(self._synced, group, failure)

    def _synced(self, group: list[T], failure: str | None) -> None:
        self._under_way = False
        if failure is not None:
            self._fail(failure)
            return
        self._done(group)
        self.start()

    def _background(self) -> None:
        try:
            self._store.tick()
        except Fs3Error as error:
            self._reactor.call_soon(self._fail, error.detail)
