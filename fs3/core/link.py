"""Which forwards of the predecessor were taken: one connection may deliver what another lost.

A forward that comes twice must not be applied twice, even when its chunk has been removed in
between and its version number starts anew. Sequence numbers start at 1 in every chain version.
"""

from __future__ import annotations


class IncomingLink:
    """The set of sequence numbers taken, kept small: all up to a mark, and a few beyond it."""

    def __init__(self) -> None:
        self._mark = 0
        self._beyond: set[int] = set()
        self._forgotten: set[int] = set()

    def seen(self, sequence: int) -> bool:
        """Whether this forward was taken before."""
        if sequence in self._forgotten:
            return False
        return sequence <= self._mark or sequence in self._beyond

    def note(self, sequence: int) -> None:
        """It is taken now."""
        self._forgotten.discard(sequence)
        if sequence <= self._mark:
            return
        self._beyond.add(sequence)
        while self._mark + 1 in self._beyond:
            self._mark += 1
            self._beyond.remove(self._mark)

    def forget(self, sequence: int) -> None:
        """It failed without a trace: when it comes again it is new."""
        if sequence and self.seen(sequence):
            self._forgotten.add(sequence)
