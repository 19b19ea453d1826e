"""How ``fs3 job`` shows how far a job is."""

from __future__ import annotations

from dataclasses import replace

from fs3.client.cli.jobs import _left
from fs3.jobs import Job, JobKind, JobProgress, JobState

GIB = 1 << 30
RUNNING = JobProgress(
    job=Job(number=1, kind=JobKind.DRAIN, subject=2, started_ns=0),
    moves_total=2,
    bytes_done=6 * GIB,
    bytes_total=10 * GIB,
    remaining_ms=40_000,
    waits_for="",
)


def test_time_left_and_rate_belong_together():
    assert _left(RUNNING) == "0:00:40 left, 102.4 MiB/s"


def test_without_an_estimate_or_bytes_there_is_no_rate():
    assert _left(replace(RUNNING, remaining_ms=None)) == "estimating"
    assert _left(replace(RUNNING, bytes_done=0, bytes_total=0)) == "0:00:40 left"
    assert _left(replace(RUNNING, remaining_ms=0)) == "0:00:00 left"


def test_a_job_that_is_over_has_nothing_left():
    over = replace(RUNNING, job=replace(RUNNING.job, state=JobState.DONE))
    assert _left(over) == ""
