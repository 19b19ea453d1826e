"""What a target answers clients that read: clean chunks in one pass, dirty ones through the core.

Large pieces that are checksum blocks as they stand are *promised*: answered for by what the index
says of them, and read while the answer is sent (filesource.py). A chunk that let such a promise
down is from then on read before it is answered for, so that who asks next is told what is wrong.

Reactor thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fs3.clock import Clock
from fs3.core import messages as m
from fs3.core.kv import is_value
from fs3.core.types import ChunkId
from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor
from fs3.transport.located import Location

from .chunkstore.interface import LocatingStore, Piece, ReadResult
from .filesource import Hold, Promised
from .jobs import LocateJob, ReadJob, may_promise

if TYPE_CHECKING:
    from .target import Target

HOLD_MS = 1000  # an answer that is not taken keeps blocks from being reused for so long
UNANSWERED_MS = 10_000  # and no longer for one whose other items are waited for
_LET_DOWN_MAX = 1024


class Files(NamedTuple):
    """Numbers under which clients of this machine know a target's files."""

    first: int  # data file of class 0
    stamps: int


class Reads:
    """The reading side of one target."""

    def __init__(self, target: Target, reactor: Reactor, clock: Clock) -> None:
        self._target = target
        self._reactor = reactor
        self._clock = clock
        # Asked once: whether it fulfils a protocol is a slow question.
        self._store = target.store if isinstance(target.store, LocatingStore) else None
        self._holds: list[Hold] = []  # those that were taken last stand last
        self._let_down: set[ChunkId] = set()

    def tick(self) -> None:
        """Every few tens of milliseconds: give up holds of answers that are not taken."""
        now_ms = self._clock.monotonic_ms()
        kept = [hold for hold in self._holds if hold.stands]
        for hold in kept:
            if hold.answered and hold.lies_since_ms is None:
                hold.lies_since_ms = now_ms
            lies = hold.lies_since_ms is not None and now_ms - hold.lies_since_ms >= HOLD_MS
            if lies or now_ms - hold.made_ms >= HOLD_MS + UNANSWERED_MS:
                hold.let_go()
        self._holds = [hold for hold in kept if hold.stands]

    def read(self, job: ReadJob | LocateJob, indexes: list[int]) -> None:
        """Serve these items of a batch."""
        self._serve_items(job, indexes, lambda clean: self._read_clean(job, clean))

    def locate(
        self, job: LocateJob, indexes: list[int], store: LocatingStore, files: Files
    ) -> None:
        """Say of these items where they lie, if their chunks are clean. ``store`` is held."""
        self._serve_items(job, indexes, lambda clean: self._locate_clean(job, clean, store, files))

    def _serve_items(
        self,
        job: ReadJob | LocateJob,
        indexes: list[int],
        serve_clean: Callable[[list[int]], None],
    ) -> None:
        """Lease? Version? Nothing pending? Then ``serve_clean``, for all in one pass."""
        target, core = self._target, self._target.core
        if core is None or not core.serves(self._clock.monotonic_ms()):
            detail = f"target {target.target} does not serve"
            job.refuse(indexes, Code.NOT_SERVING, target.problem or detail)
            return
        items, version = job.items, core.chain.version
        stale = [index for index in indexes if items[index][2] != version]
        if stale:
            detail = f"chain {core.chain.chain} is at version {version}"
            indexes = [index for index in indexes if items[index][2] == version]
            job.refuse(stale, Code.STALE_CHAIN, detail)
        if not indexes:
            return
        chunks = [ChunkId(items[index][0]) for index in indexes]
        dirty = target.store.dirty(chunks)
        if dirty:
            pending = set(dirty)
            clean = [at for i, at in enumerate(indexes) if i not in pending]
            events = []
            if self._reserve(job, [indexes[i] for i in dirty]):
                events = [m.Read((job, indexes[i]), version, chunks[i]) for i in dirty]
            if clean:
                serve_clean(clean)
            target.feed(events)
        elif not any(items[index][4] for index in indexes):
            rows = target.store.rows(chunks)
            found = job.look(indexes, target.store.columns["version"][rows] * (rows >= 0))
            target.values.looked_up(chunks, found)
        else:
            serve_clean(indexes)

    @staticmethod
    def _reserve(job: ReadJob | LocateJob, indexes: list[int]) -> bool:
        """Room for these items, or they are refused."""
        try:
            job.reserve(indexes)
        except Fs3Error as error:
            job.refuse(indexes, error.code, error.detail)
            return False
        return True

    def _promise(self, job: ReadJob, indexes: list[int]) -> list[int]:
        """Answer for the items that need not be seen to be answered for; returns the others."""
        store, items = self._store, job.items
        if store is None or store.failed is not None:
            return indexes
        let_down = self._let_down
        large = [
            index
            for index in indexes
            if may_promise(items[index]) and items[index][0] not in let_down
        ]
        if not large:
            return indexes
        hold = self._hold(store)
        pieces = self._pieces(job, large)
        good: list[int] = []
        found: list[tuple[Piece, Location]] = []
        for index, piece, place in zip(large, pieces, store.locate(pieces, 0), strict=True):
            if place[1] and not place[6] and not place[7]:
                good.append(index)
                found.append((piece, place))
        if not good:
            hold.let_go()
            return indexes
        if is_value(found[0][0].chunk):
            results = [ReadResult(Code.OK, place[1]) for _, place in found]
            self._target.values.read([piece for piece, _ in found], results)
        promised = set(good)
        left = [index for index in indexes if index not in promised]
        job.promise(good, [Promised(piece, place, hold) for piece, place in found])
        return left

    def _hold(self, store: LocatingStore) -> Hold:
        now_ms = self._clock.monotonic_ms()
        hold = Hold(store, now_ms, lambda: self._hold(store), self._note_let_down)
        self._holds.append(hold)
        return hold

    def _note_let_down(self, piece: Piece, error: Fs3Error) -> None:
        if len(self._let_down) >= _LET_DOWN_MAX:
            self._let_down.clear()
        self._let_down.add(piece.chunk)
        self._note_read(piece.chunk, ReadResult(error.code, detail=error.detail))

    def _read_clean(self, job: ReadJob | LocateJob, indexes: list[int]) -> None:
        if isinstance(job, ReadJob) and job.promises:
            indexes = self._promise(job, indexes)
        if not indexes or not self._reserve(job, indexes):
            return
        items, place = job.items, job.place
        pieces = self._pieces(job, indexes)
        results = self._target.store.read(pieces, [place(index) for index in indexes])
        self._target.values.read(pieces, results)
        for index, found in zip(indexes, results, strict=True):
            if found[0] is not Code.OK:
                self._note_read(ChunkId(items[index][0]), found)
        job.finish_all(indexes, results)

    def _locate_clean(
        self, job: LocateJob, indexes: list[int], store: LocatingStore, files: Files
    ) -> None:
        pieces = self._pieces(job, indexes)
        if job.wanted:
            self._remember(job, indexes, store, files)
        places = store.locate(pieces, files.first)
        if is_value(pieces[0].chunk):  # files and values do not come together
            results = [ReadResult(Code(place[0]), place[1]) for place in places]
            self._target.values.read(pieces, results)
        job.locate(indexes, places)

    @staticmethod
    def _remember(job: LocateJob, indexes: list[int], store: LocatingStore, files: Files) -> None:
        for index in indexes:
            chunk = job.items[index][0]
            if index in job.wanted:
                place = store.place(ChunkId(chunk), files.first)
                if place is not None:
                    job.remember(index, files.stamps, place)

    @staticmethod
    def _pieces(job: ReadJob | LocateJob, indexes: Sequence[int]) -> list[Piece]:
        pieces = []
        for index in indexes:
            chunk, _, _, offset, length = job.items[index]
            pieces.append(Piece(ChunkId(chunk), offset, length))
        return pieces

    def serve(self, effect: m.ServeRead) -> None:
        """What the core has decided about a dirty chunk."""
        job, index = effect.request
        _, _, _, offset, length = job.items[index]
        piece = Piece(effect.chunk, offset, length)
        (found,) = self._target.store.read([piece], [job.place(index)], pending=effect.pending)
        self._note_read(effect.chunk, found)
        job.finish(index, found.code, found.version, found.length, found.crc, found.detail)

    def _note_read(self, chunk: ChunkId, found: ReadResult) -> None:
        if found.code is Code.CORRUPT:
            self._target.repairs.suspect(chunk, found.detail)
        elif found.code is Code.DISK:
            self._reactor.call_soon(self._target.fail, found.detail)
