"""A client's batch under way: items finish in any order, the reply leaves with the last.

Where payload lies: a read's pieces have their place in one pooled buffer from the start, a write's
data stays in the buffer it was received into. :class:`Payload` keeps such a buffer for as long as
anybody (the store, a neighbour's queue, the core) still refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.buffers import PooledBuffer
from fs3.core.types import ChunkVersion
from fs3.errors import Code


class Payload:
    """Bytes in a pooled buffer; the buffer goes back to its pool with the last payload of it.

    ``place``: of a reply's, how far into the memory for all that was asked for it belongs.
    """

    __slots__ = ("_owner", "place", "view")

    def __init__(self, view: memoryview, owner: BufferOwner | None, place: int = 0) -> None:
        self.view = view
        self.place = place
        self._owner = owner


class BufferOwner:
    """Releases a pooled buffer when nobody refers to it any more."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: PooledBuffer) -> None:
        self.buffer = buffer

    def __del__(self) -> None:
        self.buffer.release()


class Job(Protocol):
    """What the shell of a target owes an answer to, item by item."""

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """One item is done."""


class _Batch:
    """What reads and writes share: results, details, and the reply when all are there."""

    def __init__(
        self, results: NDArray[Any], reply: Callable[[bytes, Sequence[Payload]], None]
    ) -> None:
        self.results = results
        self._details: list[tuple[int, str]] = []
        self._reply = reply
        self._left = len(results)

    def refuse(self, indexes: NDArray[np.int64], code: Code, detail: str) -> None:
        """Several items fail for one reason; the first of them says it."""
        if len(indexes):
            self.results["code"][indexes] = code
            self._details.append((int(indexes[0]), detail))
            self.done(len(indexes))

    def fail(self, index: int, code: Code, detail: str) -> None:
        """One item fails."""
        self.results["code"][index] = code
        if detail:
            self._details.append((index, detail))

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """See :class:`Job`; both kinds of result begin alike: code, length, version, checksum."""
        if code is Code.OK:
            self.results[index] = (Code.OK, length, version, checksum, 0)
        else:
            self.fail(index, code, detail)
        self.done(1)

    def done(self, count: int) -> None:
        """So many more items have their result."""
        self._left -= count
        if self._left == 0:
            head = dataplane.encode_results(self.results, self._details)
            self._reply(head, self._payload())

    def _payload(self) -> Sequence[Payload]:
        return ()


class WriteJob(_Batch):
    """A WRITE_BATCH."""

    def __init__(self, count: int, reply: Callable[[bytes, Sequence[Payload]], None]) -> None:
        super().__init__(np.zeros(count, dataplane.WRITE_RESULT), reply)


class ReadJob(_Batch):
    """A READ_BATCH: its items, and room for what they read."""

    def __init__(
        self,
        items: NDArray[Any],
        room: BufferOwner,
        reply: Callable[[bytes, Sequence[Payload]], None],
    ) -> None:
        super().__init__(np.zeros(len(items), dataplane.READ_RESULT), reply)
        self.items = items
        self._room = room
        lengths = items["length"].astype(np.int64)
        self._starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).tolist()

    def look(self, indexes: NDArray[np.int64], versions: NDArray[Any]) -> int:
        """Items that want no bytes: is there a version, and which (0: none)? How many there are."""
        results = self.results
        results["version"][indexes] = versions
        results["code"][indexes] = np.where(versions, Code.OK, Code.NO_CHUNK)
        found = int(np.count_nonzero(versions))
        self.done(len(indexes))
        return found

    def place(self, index: int, length: int) -> memoryview:
        """Where an item's bytes go."""
        start = self._starts[index]
        return self._room.buffer.view[start : start + length]

    def _payload(self) -> Sequence[Payload]:
        """The bytes read, neighbours joined: mostly one piece."""
        parts: list[tuple[int, int]] = []
        for start, length in zip(self._starts, self.results["length"].tolist(), strict=True):
            if not length:
                continue
            if parts and parts[-1][1] == start:
                parts[-1] = (parts[-1][0], start + length)
            else:
                parts.append((start, start + length))
        view = self._room.buffer.view
        return [Payload(view[start:end], self._room, start) for start, end in parts]
