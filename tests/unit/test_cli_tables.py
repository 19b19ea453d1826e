"""Tables of the ``fs3`` command: whatever the width, nothing in them is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Group
from rich.text import Text

from fs3.client.administration import ScrubStatus
from fs3.client.cli.appearance import human_age, new_table, show
from fs3.client.cli.scrub import _table
from fs3.core.types import TargetId

HOUR_NS = 3600 * 10**9
SMALL = ScrubStatus(
    target=TargetId(101),
    running=True,
    bytes_per_s=16 << 20,
    chunks=1_351,
    chunks_total=3_500,
    length_bytes=70 << 20,
    bad_in_pass=0,
    started_ns=1,
    finished_ns=HOUR_NS,
    bad_found=3,
    repaired=2,
    bad_waiting=1,
)
LARGE = replace(
    SMALL,
    target=TargetId(4_294_967_295),
    bytes_per_s=1000 << 20,
    chunks=123_456_789,
    chunks_total=987_654_321,
    length_bytes=1 << 50,
    finished_ns=0,
    bad_found=1_234_567,
    repaired=1_234_566,
)


@pytest.fixture(params=[40, 80, 120])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.mark.parametrize("state", [SMALL, LARGE])
def test_a_scrubs_numbers_are_whole_at_any_width(columns, capsys, state):
    show(_table([state], 6 * HOUR_NS))
    shown = capsys.readouterr().out
    assert "…" not in shown
    row = shown.splitlines()[-1]
    for number in (state.target, state.bad_found, state.repaired, state.bad_waiting):
        assert f"{number:,}" in row or str(number) in row
    assert f"{state.chunks:,} of {state.chunks_total:,}" in row
    assert ("5 h ago" if state.finished_ns else "never") in row


def test_the_scrubs_of_a_small_cluster_fit_into_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show(_table([SMALL], 6 * HOUR_NS))
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


def test_prose_is_wrapped_between_words_and_numbers_stay_whole(columns, capsys):
    table = new_table("Targets")
    table.add_column("used", no_wrap=True)
    table.add_column("remarks")
    path = "/srv/fs3/" + "d" * 50
    table.add_row("1,234.5 GiB", Text(f"the store in {path} cannot be opened: Input/output error"))
    show(Group(table, Text("the end")))
    lines = capsys.readouterr().out.splitlines()
    assert "1,234.5 GiB" in lines[3]
    assert any(path in line for line in lines)
    assert lines[-1].strip() == "the end"


def test_a_pipe_gets_a_line_for_each_row(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = new_table("Chains")
    for name in ("chain", "replicas", "preferred order"):
        table.add_column(name)
    row = " -> ".join(f"{n}@{n} SERVING" for n in range(100, 112))
    table.add_row("1", row, Text(row))
    prose = "DEGRADED: " + "word " * 40 + "end"
    show(Group(table, Text(prose)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].count(row) == 2
    assert lines[4:] == [prose]


def test_names_are_no_markup(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = new_table("Chunks of /[b]old/:smile:")
    table.add_column("name")
    table.add_row("[red]x")
    show(table)
    shown = capsys.readouterr().out
    assert "/[b]old/:smile:" in shown
    assert "[red]x" in shown


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 400, "400 d")],
)
def test_ages_name_their_largest_unit(seconds, age):
    assert human_age(seconds) == age
