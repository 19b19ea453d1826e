"""Timed calls, and what comes out: rates, latencies, a table, JSON, a picture."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a result: medians of its rounds."""

    who: str  # "fs3 tcp", "fs3 local", redis, memcpy, tcp
    operation: str
    value_bytes: int
    batch: int
    rounds: int
    gb_per_s: float  # 0: no bytes travel
    keys_per_s: float
    p50_us: float  # of one call
    best_gb_per_s: float
    misses: int = 0  # values that were not there, or not taken, in all rounds


def measure(
    who: str,
    operation: str,
    value_bytes: int,
    batch: int,
    call: Callable[[int], int],
    *,
    rounds: int,
    calls: int,
    payload: bool = True,
    prepare: Callable[[], object] | None = None,
    spoil: Callable[[], object] | None = None,
    check: Callable[[int], object] | None = None,
) -> Line:
    """Call ``call(number)``, which returns how much it missed, ``calls`` times a round.

    The numbers never come again. The medians are over rounds. Untimed: ``prepare`` runs before each
    round, ``spoil`` before each call, ``check(number)`` after it.
    """
    latencies: list[float] = []
    misses = 0
    for number in range(rounds * calls):
        if prepare is not None and not number % calls:
            prepare()
        if spoil is not None:
            spoil()
        before = time.perf_counter()
        missed = call(number)
        latencies.append(time.perf_counter() - before)
        misses += missed
        if check is not None:
            check(number)
    seconds = [sum(latencies[start : start + calls]) for start in range(0, rounds * calls, calls)]
    middle, best = statistics.median(seconds), min(seconds)
    hit = 1 - misses / (rounds * calls * batch)
    travelled = calls * batch * value_bytes * hit if payload else 0.0
    return Line(
        who=who,
        operation=operation,
        value_bytes=value_bytes,
        batch=batch,
        rounds=rounds,
        gb_per_s=travelled / middle / GB,
        keys_per_s=calls * batch / middle,
        p50_us=statistics.median(latencies) * 1e6,
        best_gb_per_s=travelled / best / GB,
        misses=misses,
    )


def as_json(lines: Sequence[Line], about: dict[str, Any]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {**about, "lines": [asdict(line) for line in lines]}


def as_svg(lines: Sequence[Line], title: str) -> str:
    """Bars of GB/s (of keys/s where no bytes travel), a row per line; needs no library."""
    height, left, width = 18, 330, 420
    rows: list[str] = []
    for operation in dict.fromkeys(line.operation for line in lines):
        group = [line for line in lines if line.operation == operation]
        rates = [line.gb_per_s or line.keys_per_s for line in group]
        for line, rate in zip(group, rates, strict=True):
            y = 30 + height * len(rows)
            name = f"{operation}  {line.value_bytes} B x {line.batch}  {line.who}"
            unit = f"{rate:.2f} GB/s" if line.gb_per_s else f"{rate:,.0f} keys/s"
            color = "#2a6f97" if line.who.startswith("fs3") else "#b0b8bf"
            length = max(1.0, width * rate / max(rates))
            rows.append(
                f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{name}</text>'
                f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{height - 4}"'
                f' fill="{color}"/><text x="{left + length + 6:.0f}" y="{y + 12}">{unit}</text>'
            )
    size = f'width="{left + width + 120}" height="{40 + height * len(rows)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    return f'{head} font-size="11"><text x="8" y="18">{title}</text>{"".join(rows)}</svg>\n'
