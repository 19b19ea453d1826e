"""Who is slow, what is late, and how many reads may be asked twice; with made-up times."""

from __future__ import annotations

import math
import random

from fs3.core.pace import Pace
from fs3.core.types import NodeId

FAST, SLOW = NodeId(1), NodeId(2)


def test_nothing_is_late_before_enough_is_known():
    pace = Pace()
    for turn in range(31):
        assert pace.late_ms(4096) == math.inf
        pace.answered(FAST, 4096, 1.0, turn)


def test_late_is_what_takes_longer_than_95_of_100_of_the_same_size():
    pace, chance = Pace(), random.Random(1)
    taken = [chance.uniform(1.0, 10.0) for _ in range(2000)]
    for turn, ms in enumerate(taken):
        pace.answered(FAST, 4096, ms, turn)
        pace.answered(FAST, 1 << 20, 100 * ms, turn)
    for size, factor in ((4096, 1), (1 << 20, 100)):
        late = pace.late_ms(size) / factor
        assert sum(ms > late for ms in taken) / len(taken) <= 0.06
        assert 9.0 < late < 12.0


def test_of_a_size_that_was_not_asked_for_something_is_known_too():
    pace = Pace()
    for turn in range(100):
        pace.answered(FAST, 4096, 1.0, turn)
        pace.answered(FAST, 1 << 20, 40.0, turn)
    assert pace.late_ms(65536) == pace.late_ms(1 << 20)
    assert pace.late_ms(4 << 20) == 4 * pace.late_ms(1 << 20)
    assert pace.late_ms(1) == pace.late_ms(4096)


def test_late_follows_when_everything_becomes_slower():
    pace = Pace()
    for turn in range(200):
        pace.answered(FAST, 4096, 1.0, turn)
    assert pace.late_ms(4096) < 2.0
    for turn in range(2000):
        pace.answered(FAST, 4096, 50.0, turn)
    assert pace.late_ms(4096) > 50.0


def test_a_slow_node_counts_as_loaded_and_equal_ones_do_not():
    pace = Pace()
    for turn in range(100):
        pace.answered(FAST, 4096, 1.0, turn)
    assert pace.weighed({FAST: 10}, 1000, 100) == {FAST: 10}
    for turn in range(100):
        pace.answered(FAST, 4096, 1.0, turn)
        pace.answered(SLOW, 4096, 10.0, turn)
    weighed = pace.weighed({FAST: 5000}, 100_000, 100)
    assert weighed[FAST] == 5000
    assert weighed[SLOW] > 50_000
    more = pace.weighed({FAST: 5000, SLOW: 5000}, 100_000, 100)
    assert more[SLOW] > weighed[SLOW] + 5000


def test_a_node_that_was_slow_is_tried_again_after_a_while():
    pace = Pace()
    for turn in range(100):
        pace.answered(FAST, 4096, 1.0, turn)
        pace.answered(SLOW, 4096, 10.0, turn)
    assert pace.slowness(SLOW, 100) > 2.0
    assert pace.slowness(SLOW, 60_000) < 1.01
    assert pace.weighed({}, 1000, 60_000) == {}


def test_only_a_small_part_of_all_reads_may_be_asked_twice():
    pace = Pace(hedge_share=0.05)
    hedged = 0
    for turn in range(2000):
        hedged += pace.take_hedge()
        pace.answered(FAST, 4096, 1.0, turn)
    assert 95 <= hedged <= 102


def test_unused_hedges_are_saved_only_up_to_a_limit():
    pace = Pace(hedge_share=0.05, hedges_saved_max=3)
    for turn in range(10_000):
        pace.answered(FAST, 4096, 1.0, turn)
    assert [pace.take_hedge() for _ in range(4)] == [True, True, True, False]
