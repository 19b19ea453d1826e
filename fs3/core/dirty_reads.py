"""Reads of chunks that have a pending version: which version is committed?

CRAQ's apportioned query (Terrace and Freedman, USENIX ATC 2009): a replica asks the last serving
one, which commits first, and answers with the version it names. One query per chunk is under way;
later readers of the chunk share its answer only if they came before it was sent, so the answer is
never older than the read.

At the last serving replica itself reads and queries are held while a commit is under way: if it
took over from one that is gone, that one may have committed the pending version and shown it.

Whoever waited until the lease was over is refused, even if an answer from before comes late: what
was true when it was given may be history now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fs3.core.chunks import ChunkMeta, ChunkTable
from fs3.core.codes import Code
from fs3.core.limits import Limits
from fs3.core.messages import Answer, Effect, Query, Read, Reply, Send, ServeRead
from fs3.core.place import Place
from fs3.core.types import ChunkId, ChunkVersion

_NONE = ChunkMeta()


@dataclass(slots=True)
class _Question:
    number: int
    asked_at_ms: int
    readers: list[Read]
    late: list[Read] = field(default_factory=list)  # came after it was put: for the next one


class DirtyReads:
    """The readers that wait, on one replica."""

    def __init__(self, table: ChunkTable, limits: Limits, serves: Callable[[int], bool]) -> None:
        self._table = table
        self._limits = limits
        self._serves = serves
        self._questions: dict[ChunkId, _Question] = {}
        self._held: dict[ChunkId, list[Read | Query]] = {}
        self._asked = 0

    def read(self, read: Read, place: Place, now_ms: int) -> list[Effect]:
        """Answer at once if that is possible, else ask."""
        meta = self._table.meta(read.chunk) or _NONE
        if not meta.pending_version or place.last_serving == place.target:
            return [self._show(read, meta.version, now_ms)]
        question = self._questions.get(read.chunk)
        if question is None:
            return [self._ask(read.chunk, [read], place, now_ms)]
        if len(question.readers) + len(question.late) >= self._limits.waiting_per_chunk:
            return [_busy(read)]
        question.late.append(read)
        return []

    def hold(self, item: Read | Query) -> list[Effect]:
        """A reader or a replica that asks, at the last serving replica: until the commit."""
        held = self._held.setdefault(item.chunk, [])
        if len(held) < self._limits.waiting_per_chunk:
            held.append(item)
            return []
        return [_busy(item)] if isinstance(item, Read) else []

    def query(self, query: Query, place: Place) -> Effect:
        """What is committed here, at the last serving replica."""
        version = (self._table.meta(query.chunk) or _NONE).version
        return Send(Answer(place.route(query.route.source), query.chunk, query.number, version))

    def _ask(self, chunk: ChunkId, readers: list[Read], place: Place, now_ms: int) -> Send:
        assert place.last_serving is not None
        self._asked += 1
        self._questions[chunk] = _Question(self._asked, now_ms, readers)
        return Send(Query(place.route(place.last_serving), chunk, self._asked))

    def answer(self, answer: Answer, place: Place, now_ms: int) -> list[Effect]:
        """The last serving replica has spoken.

        A commit here settles the question before, so the chunk is what it was when asked, but for
        a pending version that was refused and followed by another; nobody has committed that one.
        """
        question = self._questions.get(answer.chunk)
        if question is None or answer.number != question.number:
            return []
        meta = self._table.meta(answer.chunk) or _NONE
        if answer.version == meta.version:
            return self.settled(answer.chunk, place, now_ms)
        pending = 0 if meta.pending_removed else meta.pending_version
        if not meta.pending_version or answer.version != pending:
            return []  # about something that is not here any more: the tick asks again
        del self._questions[answer.chunk]
        effects = [self._show(read, pending, now_ms, pending=True) for read in question.readers]
        return effects + self._ask_for_late(answer.chunk, question, place, now_ms)

    def settled(self, chunk: ChunkId, place: Place, now_ms: int) -> list[Effect]:
        """The update is committed or dropped here: what is committed answers all who wait."""
        effects: list[Effect] = []
        if chunk in self._held:
            version = (self._table.meta(chunk) or _NONE).version
            for item in self._held.pop(chunk):
                if isinstance(item, Read):
                    effects.append(self._show(item, version, now_ms))
                elif self._serves(now_ms):
                    effects.append(self.query(item, place))
        question = self._questions.pop(chunk, None)
        if question is None:
            return effects
        version = (self._table.meta(chunk) or _NONE).version
        effects += [self._show(read, version, now_ms) for read in question.readers]
        return effects + self._ask_for_late(chunk, question, place, now_ms)

    def _ask_for_late(
        self, chunk: ChunkId, question: _Question, place: Place, now_ms: int
    ) -> list[Effect]:
        if not question.late:
            return []
        meta = self._table.meta(chunk) or _NONE
        if not meta.pending_version:
            return [self._show(read, meta.version, now_ms) for read in question.late]
        return [self._ask(chunk, question.late, place, now_ms)]

    def tick(self, place: Place, now_ms: int) -> list[Effect]:
        """Ask again what was not answered."""
        return [
            self._ask(chunk, question.readers + question.late, place, now_ms)
            for chunk, question in list(self._questions.items())
            if now_ms - question.asked_at_ms >= self._limits.query_ms
        ]

    def _show(self, read: Read, version: int, now_ms: int, *, pending: bool = False) -> Effect:
        if not self._serves(now_ms):
            detail = "the lease ran out while the read waited"
            return Reply(read.request, Code.NOT_SERVING, ChunkVersion(0), 0, 0, detail)
        if version:
            return ServeRead(read.request, read.chunk, pending)
        return Reply(read.request, Code.NO_CHUNK, ChunkVersion(0), 0, 0, "")

    def take_all(self) -> list[Read]:
        """The chain has changed: everybody who waits must start over."""
        questions, self._questions = self._questions, {}
        held, self._held = self._held, {}
        readers = [read for q in questions.values() for read in (*q.readers, *q.late)]
        return readers + [i for items in held.values() for i in items if isinstance(i, Read)]


def _busy(read: Read) -> Reply:
    detail = "too many reads of this chunk wait for its committed version"
    return Reply(read.request, Code.BUSY, ChunkVersion(0), 0, 0, detail)
