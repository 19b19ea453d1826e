"""The two ends of a link between neighbours: each forward is applied once and answered once.

Forwards may be lost, come twice and come late, and so may their answers. A forward's number names
it for as long as its chain version stands; chunk and version do not, since a chunk that is removed
and made anew starts again at version 1, and a version that was refused is given to another update.

The receiver keeps every answer until the sender says that it has arrived. So a refusal stays a
refusal: a sender that hears it, late, while its second try is on the way, may drop the update.
"""

from __future__ import annotations

from collections import OrderedDict

from fs3.core.messages import Ack


class OutgoingLink:
    """The sender's end: which numbers are given, and which still want an answer."""

    def __init__(self) -> None:
        self._last = 0
        self._open: OrderedDict[int, None] = OrderedDict()

    def open(self) -> int:
        """A number for a new forward."""
        self._last += 1
        self._open[self._last] = None
        return self._last

    def close(self, sequence: int) -> None:
        """Its answer is here."""
        self._open.pop(sequence, None)

    @property
    def settled(self) -> int:
        """The greatest number up to which all are answered."""
        return next(iter(self._open), self._last + 1) - 1


class IncomingLink:
    """The receiver's end: which numbers were taken, and what was answered."""

    def __init__(self) -> None:
        self._settled = 0
        self._answers: dict[int, Ack | None] = {}  # None: still under way

    def settle(self, sequence: int) -> None:
        """The sender has all answers up to this number."""
        while self._settled < sequence:
            self._settled += 1
            self._answers.pop(self._settled, None)

    def known(self, sequence: int) -> bool:
        """Whether this forward was taken before."""
        return sequence <= self._settled or sequence in self._answers

    def take(self, sequence: int) -> None:
        """It is under way now."""
        self._answers[sequence] = None

    def answered(self, sequence: int, ack: Ack) -> None:
        """It is done."""
        if sequence > self._settled:
            self._answers[sequence] = ack

    def answer(self, sequence: int) -> Ack | None:
        """What was answered; None if nothing was yet, or if nobody waits for it any more."""
        return self._answers.get(sequence)

    def forget(self, sequence: int) -> None:
        """It left no trace and was not answered: when it comes again it is new."""
        self._answers.pop(sequence, None)
