"""What a bench counts."""

from __future__ import annotations

from fs3.client.bench.io import Tally
from fs3.client.bench.io_cells import Entrant


def test_what_is_under_way_at_the_end_of_a_round_counts_in_it(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 4.0])  # the start, two steps, the end
    monkeypatch.setattr("fs3.client.bench.io.time.perf_counter", lambda: next(now))
    tally = Tally(Entrant(step=lambda turn: 3, settle=lambda: 2))
    tally.round(1.5)
    assert tally.rates == [(3 + 3 + 2) / 4.0]
    assert tally.latencies == [1.0, 1.0]
