"""The order of an epoch: a pseudo-random permutation that is computed, not stored.

Sample p of an epoch is number f(p), where f is a Feistel network over the smallest 2k-bit domain
that holds all numbers, keyed by seed and epoch; a value outside is put through it again until it is
inside ("cycle walking"; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). Every rank
computes the same f and takes every ranks-th position, so that any number of ranks sees each sample
exactly once, without a list of numbers, a message, or a local copy; and a position is one number,
by which an epoch is resumed, also with another number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Code, Fs3Error

Numbers: TypeAlias = NDArray[np.int64]

_ROUNDS = 6
_BLOCK = 4096  # positions computed at once
_MIX_A, _MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


class Permutation:
    """A pseudo-random order of ``range(length)``; some 300 ns per number, asked by thousands."""

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        if length < 0:
            raise Fs3Error(Code.INVALID, f"length {length} is not allowed: 0 or more is")
        self._length = np.uint64(length)
        half_bits = max(1, ((max(length, 1) - 1).bit_length() + 1) // 2)
        self._shift = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        key = hashlib.blake2b(f"fs3 shuffle {seed} {epoch}".encode(), digest_size=8 * _ROUNDS)
        self._keys = np.frombuffer(key.digest(), "<u8")

    def __call__(self, positions: Numbers) -> Numbers:
        """The numbers at these positions, which must be inside."""
        values = self._once(positions.astype(np.uint64))
        while (outside := np.flatnonzero(values >= self._length)).size:
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._shift, values & self._mask
        for key in self._keys:
            mixed = (right + key) * _MIX_A
            mixed = (mixed ^ (mixed >> np.uint64(32))) * _MIX_B
            left, right = right, left ^ ((mixed >> np.uint64(29)) & self._mask)
        return (left << self._shift) | right


class Remainder(StrEnum):
    """What to do with the samples that are left when all ranks have equally many."""

    KEEP = "keep"  # some ranks have one more; each sample exactly once
    DROP = "drop"  # nobody gets them
    REPEAT = "repeat"  # every rank has one more: some samples come twice


class ShuffledSampler:
    """Numbers of samples, for a DataLoader of one of ``ranks`` processes that train together.

    An iteration is one epoch, from where :meth:`load_state_dict` put it or from its start; the next
    iteration is the next epoch. One that is broken off is begun again by the next. It is Stateful
    as torchdata's StatefulDataLoader wants it. With torch's own DataLoader, which asks ahead of
    what it hands out, use :class:`fs3.client.training.ResumableLoader`.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        remainder: str = Remainder.KEEP,
    ) -> None:
        if not 0 <= rank < ranks:
            raise Fs3Error(Code.INVALID, f"rank {rank} of {ranks} is not allowed: 0 to {ranks - 1}")
        self.length = length
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.shuffle = shuffle
        self.remainder = Remainder(remainder)
        self.epoch = 0
        self._start = 0  # position in the epoch, of all ranks together, where an iteration begins
        self._taken = 0  # by this rank in the iteration that is going on

    def __len__(self) -> int:
        """Samples of this rank, from where the next iteration begins to the end of the epoch."""
        left = self.length - self._start
        match self.remainder:
            case Remainder.KEEP:
                return max(-(-(left - self.rank) // self.ranks), 0)
            case Remainder.DROP:
                return left // self.ranks
            case Remainder.REPEAT:
                return -(-left // self.ranks)

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch, at its start."""
        self.epoch, self._start, self._taken = epoch, 0, 0

    def __iter__(self) -> Iterator[int]:
        self._taken = 0
        order = Permutation(self.length, self.seed, self.epoch)
        count, start = len(self), self._start
        for first in range(0, count, _BLOCK):
            nth = np.arange(first, min(first + _BLOCK, count), dtype=np.int64)
            positions = (start + nth * self.ranks + self.rank) % self.length
            for number in (order(positions) if self.shuffle else positions).tolist():
                self._taken += 1
                yield number
        self.set_epoch(self.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where it is: small, and of plain numbers. The same on all ranks that are equally far."""
        return self.state_after(self._taken)

    def state_after(self, taken: int) -> dict[str, Any]:
        """Where it is when ``taken`` samples of the iteration that is going on are done with."""
        return {
            "epoch": self.epoch,
            "position": min(self._start + taken * self.ranks, self.length),
            "seed": self.seed,
            "length": self.length,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there. The number of ranks may be another; Fs3Error INVALID if the samples are."""
        for name in ("seed", "length"):
            if state[name] != getattr(self, name):
                raise Fs3Error(
                    Code.INVALID,
                    f"a state of {name} {state[name]}; this sampler has {name}"
                    f" {getattr(self, name)}: its order is another",
                )
        left = self.length - state["position"]
        if left <= 0 or (self.remainder is Remainder.DROP and left < self.ranks):
            self.set_epoch(state["epoch"] + 1)  # nothing was left to do
        else:
            self.set_epoch(state["epoch"])
            self._start = state["position"]
