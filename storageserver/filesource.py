"""The bytes of an answer that lie in data files as they are sent: read when the socket takes them.

Whole checksum blocks need not be seen to be answered for: lengths, versions and checksums stand in
the index. So the head of the answer goes out first, and each piece is read just before it is sent,
into memory that is in the processor's cache. Meanwhile their blocks must not be reused, so the
stores are *held*; but not for as long as a reader that does something else lets its answer lie. A
hold that has been given up is taken again when the answer goes on, and then its pieces must be what
was promised, same version and same checksum; if one is not, the answer breaks off, and with it the
connection: the reader asks again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fs3.errors import Code, Fs3Error
from fs3.transport.located import Location

from .chunkstore.interface import LocatingStore, Piece


class Hold:
    """No block of a store that was found under it is reused while it stands."""

    def __init__(
        self,
        store: LocatingStore,
        made_ms: int,
        again: Callable[[], Hold],
        on_failure: Callable[[Piece, Fs3Error], None],
    ) -> None:
        """``again`` takes another one. ``on_failure`` is told of pieces that cannot be read."""
        self.store = store
        self.made_ms = made_ms
        self.answered = False  # the answer is on its way; before, what else it says is waited for
        self.lies_since_ms: int | None = None  # as far as is known
        self.again = again
        self.on_failure = on_failure
        self._token: int | None = store.hold()

    @property
    def stands(self) -> bool:
        """Nothing has been reused."""
        return self._token is not None

    def let_go(self) -> None:
        """Idempotent."""
        token, self._token = self._token, None
        if token is not None:
            self.store.let_go(token)


class Promised(NamedTuple):
    """A piece whose bytes are still in its file. ``place`` has no edges."""

    piece: Piece
    place: Location
    hold: Hold


class FileSource:
    """Promised pieces, one behind the other: a :class:`fs3.transport.sources.Source`."""

    def __init__(self, promised: Sequence[Promised]) -> None:
        self._promised = list(promised)
        self._starts: list[int] = []
        total = 0
        for each in promised:
            each.hold.answered = True
            self._starts.append(total)
            total += each.place[1]
        self._length = total

    def __len__(self) -> int:
        return self._length

    def fetch(self, start: int, window: memoryview) -> int:
        """See :class:`fs3.transport.sources.Source`."""
        at = bisect_right(self._starts, start) - 1
        skip = start - self._starts[at]
        filled, room = 0, len(window)
        while filled < room and at < len(self._promised):
            piece, place, hold = self._promised[at]
            if not hold.stands:
                self._find_again(hold, at)
                _, place, hold = self._promised[at]
            count = min(place[1] - skip, room - filled)
            try:
                hold.store.fetch(place[4], place[5] + skip, window[filled : filled + count])
            except Fs3Error as error:
                hold.on_failure(piece, error)
                raise
            filled += count
            skip = 0
            at += 1
        return filled

    def close(self) -> None:
        """It is sent, or never will be. Idempotent."""
        for each in self._promised:
            each.hold.let_go()

    def _find_again(self, gone: Hold, first: int) -> None:
        """Find what was found under ``gone``, from the piece ``first`` on."""
        hold = gone.again()
        hold.answered = True
        at = [i for i in range(first, len(self._promised)) if self._promised[i].hold is gone]
        found = hold.store.locate([self._promised[i].piece for i in at], 0)
        for i, place in zip(at, found, strict=True):
            piece, before, _ = self._promised[i]
            self._promised[i] = Promised(piece, place, hold)
            if place[:4] != before[:4] or any(place[6:]):
                raise Fs3Error(
                    Code.BUSY, f"chunk {piece.chunk.hex()} changed while its answer was not taken"
                )
