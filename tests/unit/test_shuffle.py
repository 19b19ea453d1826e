"""The order of an epoch: a permutation, shared by ranks, resumed anywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.client.records.shuffle import Permutation, ShuffledSampler
from fs3.errors import Fs3Error

lengths = st.integers(0, 3000)


@given(lengths, st.integers(), st.integers(0, 5))
def test_every_number_comes_exactly_once(length, seed, epoch):
    order = Permutation(length, seed, epoch)(np.arange(length))
    assert sorted(order.tolist()) == list(range(length))


def test_order_looks_random_and_differs_by_seed_and_epoch():
    length = 10_000
    positions = np.arange(length)
    order = Permutation(length, 1, 0)(positions)
    assert abs(np.corrcoef(positions, order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).sum() < 10  # about 2 by chance
    # Where the first tenth goes: evenly into all tenths (chi-squared, 9 degrees of freedom).
    counts = np.histogram(order[: length // 10], 10, (0, length))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 40
    for other in (Permutation(length, 2, 0), Permutation(length, 1, 1)):
        assert (other(positions) == order).sum() < 20


def test_order_is_the_same_for_ever():
    # A position that was saved by one release is loaded by another.
    assert Permutation(1_000_000, 7, 3)(np.arange(5)).tolist() == [
        681418,
        743466,
        930077,
        734176,
        150974,
    ]


@given(lengths, st.integers(1, 9), st.integers(0, 9))
def test_ranks_share_an_epoch_without_a_rest(length, ranks, seed):
    samplers = [ShuffledSampler(length, seed=seed, rank=r, ranks=ranks) for r in range(ranks)]
    sizes = [len(sampler) for sampler in samplers]
    taken = [list(sampler) for sampler in samplers]
    assert [len(numbers) for numbers in taken] == sizes
    assert max(sizes) - min(sizes) <= 1
    assert sorted(number for numbers in taken for number in numbers) == list(range(length))


@pytest.mark.parametrize(("remainder", "each", "different"), [("drop", 3, 9), ("repeat", 4, 10)])
def test_ranks_are_made_equal_by_dropping_or_repeating(remainder, each, different):
    taken = [
        list(ShuffledSampler(10, rank=rank, ranks=3, remainder=remainder)) for rank in range(3)
    ]
    assert [len(numbers) for numbers in taken] == [each] * 3
    assert len({number for numbers in taken for number in numbers}) == different


@given(
    st.integers(1, 500), st.integers(1, 4), st.integers(1, 4), st.integers(0, 200), st.booleans()
)
def test_epoch_goes_on_exactly_where_it_was_with_any_number_of_ranks(
    length, ranks, later_ranks, taken, shuffle
):
    taken = min(taken, length // ranks)
    first = []
    for rank in range(ranks):
        sampler = ShuffledSampler(length, seed=3, rank=rank, ranks=ranks, shuffle=shuffle)
        sampler.set_epoch(5)
        drawn = iter(sampler)
        first += [next(drawn) for _ in range(taken)]
        state = json.loads(json.dumps(sampler.state_dict()))
    rest = []
    for rank in range(later_ranks):
        sampler = ShuffledSampler(length, seed=3, rank=rank, ranks=later_ranks, shuffle=shuffle)
        sampler.load_state_dict(state)
        if state["position"] < length:
            rest += list(sampler)
            assert sampler.epoch == 6
    assert sorted(first + rest) == list(range(length))


def test_epochs_follow_each_other_and_a_broken_off_one_begins_again():
    sampler = ShuffledSampler(100, seed=1)
    zero, one = list(sampler), list(sampler)
    assert zero != one
    assert next(iter(sampler)) == next(iter(sampler))
    sampler.set_epoch(0)
    assert list(sampler) == zero
    sampler.load_state_dict({"epoch": 0, "position": 100, "seed": 1, "length": 100})
    assert list(sampler) == one


def test_state_of_other_samples_is_refused():
    state = ShuffledSampler(100, seed=1).state_dict()
    with pytest.raises(Fs3Error, match="length 100; this sampler has length 99"):
        ShuffledSampler(99, seed=1).load_state_dict(state)
    with pytest.raises(Fs3Error, match="seed 1; this sampler has seed 2"):
        ShuffledSampler(100, seed=2).load_state_dict(state)
    with pytest.raises(Fs3Error, match="rank 2 of 2"):
        ShuffledSampler(10, rank=2, ranks=2)
