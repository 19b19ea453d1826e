"""Time, order and chance: a heap of (at_ms, number, thing to do), and one random generator.

Nothing in the simulator has any other source of time or chance, so that a seed is a story that can
be told again. Things due at one moment happen in the order in which they were asked for.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from random import Random

_MOMENT_EVENTS_MAX = 20_000


class Violation(AssertionError):
    """A promise was broken."""


class World:
    """One simulated world."""

    def __init__(self, seed: int, *, tell: bool = False, digest: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now_ms = 0
        self.story: list[str] = []
        self.events = 0
        self._tell = tell
        self._digest = hashlib.blake2b(digest_size=16) if digest or tell else None
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._in_a_row = 0  # things that happened at this moment

    def after(self, delay_ms: int, thing: Callable[[], None]) -> None:
        """Do ``thing`` in so many milliseconds."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, delay_ms), self._number, thing))

    def run(self, until_ms: int, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True if ``done`` came true before ``until_ms``."""
        while self._heap and self._heap[0][0] <= until_ms:
            if done is not None and done():
                return True
            at_ms, _, thing = heapq.heappop(self._heap)
            self._in_a_row = self._in_a_row + 1 if at_ms == self.now_ms else 0
            if self._in_a_row > _MOMENT_EVENTS_MAX:
                raise Violation(f"time stands still at {at_ms} ms: somebody asks for ever")
            self.now_ms = at_ms
            self.events += 1
            thing()
        self.now_ms = until_ms
        return done is not None and done()

    @property
    def watched(self) -> bool:
        """Whether anybody wants to know what happens."""
        return self._digest is not None

    def note(self, who: str, what: object) -> None:
        """One line of the story."""
        if self._digest is None:
            return
        line = f"{self.now_ms:>7} {who:<9} {what}"
        self._digest.update(line.encode())
        if self._tell:
            self.story.append(line)

    @property
    def digest(self) -> str:
        """A hash of the whole story."""
        return self._digest.hexdigest() if self._digest is not None else ""

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability
