"""Grants: who may still be reading blocks of data files by itself, and until when.

A grant holds *tokens*; as long as one is out, no block that it covers is reused. It is numbered,
numbers grow, and it ends in one of three ways, whichever comes first: its holder says that it has
read everything up to a number, the holder is gone, or the lease has run out. All leases are equally
long, so they run out in the order of the numbers.

The holder counts the lease from before it asked, so it stops believing in a grant before this does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

Token = TypeVar("Token")


class _Grant(NamedTuple, Generic[Token]):
    holder: Hashable
    tokens: list[Token]
    until_ms: int


class Grants(Generic[Token]):
    """Every method that ends grants returns their tokens, each exactly once."""

    def __init__(self, lease_ms: int, per_holder_max: int = 256) -> None:
        """``per_holder_max``: grants that one holder may have out at once."""
        self.lease_ms = lease_ms
        self._per_holder_max = per_holder_max
        self._grants: dict[int, _Grant[Token]] = {}  # in the order of their numbers
        self._of_holder: dict[Hashable, deque[int]] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._grants)

    def room(self, holder: Hashable) -> bool:
        """May the holder have one more?"""
        return len(self._of_holder.get(holder, ())) < self._per_holder_max

    def give(self, holder: Hashable, tokens: list[Token], now_ms: int) -> int:
        """The number of a new grant, above 0. ``tokens`` may be added to at once, not later."""
        assert self.room(holder), f"{self._per_holder_max} grants are out: ask room() first"
        self._last += 1
        self._grants[self._last] = _Grant(holder, tokens, now_ms + self.lease_ms)
        self._of_holder.setdefault(holder, deque()).append(self._last)
        return self._last

    def release(self, holder: Hashable, through: int) -> list[Token]:
        """The holder has read all that it was granted up to number ``through``."""
        numbers = self._of_holder.get(holder)
        ended = []
        while numbers and numbers[0] <= through:
            ended.append(numbers.popleft())
        return self._end(ended)

    def drop(self, holder: Hashable) -> list[Token]:
        """The holder is gone."""
        return self._end(self._of_holder.pop(holder, ()))

    def expire(self, now_ms: int) -> list[Token]:
        """End what has run out."""
        ended = []
        for number, grant in self._grants.items():
            if grant.until_ms > now_ms:
                break
            ended.append(number)
            self._of_holder[grant.holder].popleft()  # its oldest: numbers run out in order
        return self._end(ended)

    def _end(self, numbers: Iterable[int]) -> list[Token]:
        return [token for number in numbers for token in self._grants.pop(number).tokens]
