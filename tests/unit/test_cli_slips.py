"""Slips on the command line: one line that says what is allowed, before anything is done."""

from __future__ import annotations

import pytest

from fs3.client.cli.main import run

NUMBER = "0 to 4294967295 are allowed"
SIZE = "is no size; 65536, 64KiB, 1.5GiB are"
COUNTS = "whole numbers from 1 on are allowed"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chain add 99999999999", NUMBER),
        ("chain add -- -1", NUMBER),
        ("chain add 1 99999999999", NUMBER),
        ("chain prefer 1 101 99999999999", NUMBER),
        ("target replace 99999999999", NUMBER),
        ("node drain 99999999999", NUMBER),
        ("job cancel 99999999999999999999999", NUMBER),
        ("kv create x --capacity 1ZB", SIZE),
        ("kv create x --capacity 999999PiB", "8191 PiB"),
        ("kv create x --ttl -1", NUMBER),
        ("kv create x --replicas 0", "greater than or equal to 1"),
        ("kv create x --replicas 99999999999", NUMBER),
        ("kv create x --table 99999999999", NUMBER),
        ("kv set x --value-max foo", SIZE),
        ("scrub rate abc", SIZE),
        ("resync rate 99999999PiB", "8191 PiB"),
        ("records pack --record foo a fs3:/b", SIZE),
        ("bench io --sizes foo", SIZE),
        ("bench io --sizes 0", "begin at 1 byte"),
        ("bench io --depths 1,x", COUNTS),
        ("bench io --depths 0", COUNTS),
        ("bench io --fronts foo", "native, batch, ring, fuse are allowed"),
        ("bench io --operations foo", "read, write are allowed"),
        ("bench io --rounds 0", "greater than or equal to 1"),
        ("bench kv --sizes foo", SIZE),
        ("bench kv --batches x", COUNTS),
        ("bench kv --transports x", "tcp are allowed"),
    ],
)
def test_a_slip_is_one_line_that_says_what_is_allowed(line, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no cluster is: a slip is noticed before one is sought
    assert run(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("fs3: error: ")
    assert said in shown.err


@pytest.mark.parametrize("path", ["/", "fs3:/", "//", "/a/..", "/./"])
def test_all_there_is_is_not_removed_by_a_slip(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["rm", "-r", "/a", path]) == 1
    assert "is all there is" in capsys.readouterr().err
