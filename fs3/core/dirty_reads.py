"""Reads of chunks that have a pending version: which version is committed?

CRAQ's apportioned query (Terrace and Freedman, USENIX ATC 2009): a replica asks the last serving
one, which commits first, and answers with the version it names. One query per chunk is under way;
later readers of the chunk share its answer only if they came before it was sent, so the answer is
never older than the read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fs3.core.chunks import ChunkMeta, ChunkTable
from fs3.core.codes import Code
from fs3.core.messages import Answer, Effect, Query, Read, Reply, Send, ServeRead
from fs3.core.place import Place
from fs3.core.types import ChunkId, ChunkVersion

_NONE = ChunkMeta()


@dataclass(slots=True)
class _Question:
    number: int
    meta: ChunkMeta  # the chunk as it was when the question was put
    asked_at_ms: int
    readers: list[Read] = field(default_factory=list)
    late: list[Read] = field(default_factory=list)  # came after it was put: for the next one


class DirtyReads:
    """The readers that wait for an Answer, on one replica."""

    def __init__(self, table: ChunkTable, query_ms: int) -> None:
        self._table = table
        self._query_ms = query_ms
        self._questions: dict[ChunkId, _Question] = {}
        self._asked = 0

    def read(self, read: Read, place: Place, now_ms: int) -> list[Effect]:
        """Answer at once if that is possible, else ask."""
        meta = self._table.meta(read.chunk) or _NONE
        if not meta.pending_version or place.last_serving == place.target:
            return [_serve(read, meta.version)]
        question = self._questions.get(read.chunk)
        if question is not None:
            question.late.append(read)
            return []
        return [self._ask(read.chunk, [read], meta, place, now_ms)]

    def _ask(
        self, chunk: ChunkId, readers: list[Read], meta: ChunkMeta, place: Place, now_ms: int
    ) -> Send:
        assert place.last_serving is not None
        self._asked += 1
        self._questions[chunk] = _Question(self._asked, meta, now_ms, readers)
        return Send(Query(place.route(place.last_serving), chunk, self._asked))

    def answer(self, answer: Answer, place: Place, now_ms: int) -> list[Effect]:
        """The last serving replica has spoken."""
        question = self._questions.get(answer.chunk)
        if question is None or answer.number != question.number:
            return []
        meta = self._table.meta(answer.chunk) or _NONE
        if meta.version != question.meta.version or answer.version == question.meta.version:
            # Unchanged, or committed here since: then it is as new as any answer to the question.
            return self.committed(answer.chunk, place, now_ms)
        if meta.pending_version != question.meta.pending_version:
            return []  # staged anew since: this answer is about something else; ask again later
        del self._questions[answer.chunk]
        gone = meta.pending_removed or not answer.version
        effects: list[Effect] = [
            _serve(read, 0 if gone else answer.version, pending=True) for read in question.readers
        ]
        return effects + self._ask_for_late(question, place, now_ms)

    def committed(self, chunk: ChunkId, place: Place, now_ms: int) -> list[Effect]:
        """What is committed here answers the readers that wait."""
        question = self._questions.pop(chunk, None)
        if question is None:
            return []
        version = (self._table.meta(chunk) or _NONE).version
        effects: list[Effect] = [_serve(read, version) for read in question.readers]
        return effects + self._ask_for_late(question, place, now_ms)

    def _ask_for_late(self, question: _Question, place: Place, now_ms: int) -> list[Effect]:
        if not question.late:
            return []
        chunk = question.late[0].chunk
        meta = self._table.meta(chunk) or _NONE
        if not meta.pending_version:
            return [_serve(read, meta.version) for read in question.late]
        return [self._ask(chunk, question.late, meta, place, now_ms)]

    def tick(self, place: Place, now_ms: int) -> list[Effect]:
        """Ask again what was not answered."""
        effects: list[Effect] = []
        for chunk, question in list(self._questions.items()):
            if now_ms - question.asked_at_ms >= self._query_ms:
                meta = self._table.meta(chunk) or _NONE
                readers = question.readers + question.late
                effects.append(self._ask(chunk, readers, meta, place, now_ms))
        return effects

    def take_all(self) -> list[Read]:
        """The chain has changed: everybody who waits must start over."""
        questions, self._questions = self._questions, {}
        return [read for q in questions.values() for read in (*q.readers, *q.late)]


def _serve(read: Read, version: int, *, pending: bool = False) -> Effect:
    if version:
        return ServeRead(read.request, read.chunk, pending)
    return Reply(read.request, Code.NO_CHUNK, ChunkVersion(0), 0, 0, "")
