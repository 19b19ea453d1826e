"""The order of use: which values are to go next."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from fs3.core.kv import NAMESPACE_FIRST
from fs3.core.recency import Recency, stamp_of
from fs3.core.types import chunk_id

V = [chunk_id(NAMESPACE_FIRST, number) for number in range(1000)]
ALL = 1 << 40


def filled(count: int, length: int = 10) -> Recency:
    recency = Recency()
    for number in range(count):
        assert recency.stored(V[number], length, number)
    return recency


def test_the_longest_unused_go_first():
    recency = filled(4)
    recency.used([V[0]], 10)
    assert recency.oldest(10, ALL, 11) == [V[1], V[2], V[3], V[0]]


def test_no_more_go_than_make_the_room_that_is_wanted():
    recency = filled(6)
    assert recency.oldest(10, 25, 11) == V[:3]
    assert recency.oldest(2, ALL, 11) == V[3:5]


def test_the_tail_of_a_batch_goes_before_its_head():
    recency = filled(4)
    recency.used(V[:4], 10)
    assert recency.oldest(3, ALL, 11) == [V[3], V[2], V[1]]


def test_a_value_used_after_it_was_looked_out_is_spared():
    recency = filled(5)
    assert recency.oldest(1, ALL, 11) == [V[0]]
    recency.used([V[1]], 12)
    assert recency.oldest(2, ALL, 13) == [V[2], V[3]]


def test_a_pinned_value_goes_when_its_time_is_over():
    recency = filled(3)
    assert recency.pin(V[0], 50)
    assert not recency.pin(V[9], 50)
    assert recency.pinned(20) == 1
    assert recency.oldest(1, ALL, 20) == [V[1]]
    assert recency.oldest(2, ALL, 20) == [V[2], V[1]]  # nothing was removed: from the start again
    assert set(recency.oldest(9, ALL, 51)) == {V[0], V[1], V[2]}


def test_nothing_but_pinned_values_is_no_endless_search():
    recency = filled(3)
    for chunk in V[:3]:
        recency.pin(chunk, 1000)
    assert recency.oldest(5, ALL, 20) == []


def test_values_expire_by_when_they_were_stored():
    recency = filled(5)
    recency.used([V[0]], 100)
    assert recency.expired(2, 10) == [V[0], V[1]]
    assert recency.expired(5, 3) == V[:3]


def test_removed_values_are_forgotten_and_their_places_used_again():
    recency = filled(300)
    for chunk in V[:300]:
        recency.removed([chunk])
    assert (len(recency), recency.used_bytes, recency.oldest(9, ALL, 9)) == (0, 0, [])
    recency.removed([V[0]])
    assert recency.stored(V[0], 3, 500)
    assert recency.oldest(9, ALL, 501) == [V[0]]


def test_as_many_as_are_wanted_are_found_at_once():
    """Also if more have to be looked out on the way: nobody asks again before the next second."""
    recency = filled(1000)
    assert recency.oldest(700, ALL, 2000) == V[:700]
    recency.removed(V[:700])
    assert recency.oldest(100, ALL, 2000) == V[700:800]
    assert sorted(recency.oldest(900, ALL, 2000)) == V[700:1000]


def test_a_value_with_a_past_keeps_it():
    recency = Recency()
    recency.stored(V[1], 1, 1000)
    recency.restore(V[0], 1, 5, stamp_of(500))
    assert recency.oldest(1, ALL, 1001) == [V[0]]
    chunks, born, used = recency.columns()
    assert (chunks, born.tolist(), used.tolist()) == (V[1] + V[0], [1000, 5], [1000, 500])
    assert recency.oldest_ms() == 500


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 30)),
        st.tuples(st.just("use"), st.lists(st.integers(0, 30), min_size=1, max_size=5)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("evict"), st.integers(1, 8)),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_is_an_lru(steps):
    """Against an ordered dictionary, whatever happens in whichever order."""
    recency, model = Recency(), OrderedDict[bytes, None]()
    for now, (what, value) in enumerate(steps):
        if what == "store":
            assert recency.stored(V[value], 1, now) == (V[value] not in model)
            model.setdefault(V[value])
        elif what == "use":
            recency.used([V[i] for i in value], now)
            for i in reversed(list(dict.fromkeys(value))):
                if V[i] in model:
                    model.move_to_end(V[i])
        elif what == "remove":
            recency.removed([V[value]])
            model.pop(V[value], None)
        else:
            wanted = list(model)[:value]
            found = recency.oldest(value, ALL, now)
            assert found == wanted[: len(found)]
            assert len(found) == len(wanted)
            for chunk in found:
                recency.removed([chunk])
                del model[chunk]
        assert len(recency) == recency.used_bytes == len(model)
