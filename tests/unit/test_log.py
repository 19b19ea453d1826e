"""Logs: one line an event, JSON for machines, and libraries' records in the same form."""

import json
import logging
from pathlib import Path

import pytest

from fs3.clock import SystemClock
from fs3.errors import Fs3Error
from fs3.log import configure_logging, get_logger


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("restored_logging")
def test_a_file_gets_json_with_every_key(tmp_path):
    path = tmp_path / "log"
    log = get_logger("fs3.test")
    configure_logging("info", None, path)
    log.debug("not_shown")
    log.bind(chain=3).warning("peer_lost", peer="h:1", path=Path("/x"))
    (line,) = lines_of(path)
    assert (line["event"], line["chain"], line["peer"]) == ("peer_lost", 3, "h:1")
    assert (line["level"], line["logger"]) == ("warning", "fs3.test")
    assert line["timestamp"].endswith("Z")


@pytest.mark.usefixtures("restored_logging")
def test_an_exception_is_one_line_with_its_traceback(tmp_path):
    path = tmp_path / "log"
    configure_logging("info", True, path)
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        get_logger("fs3.test").exception("failed")
    (line,) = lines_of(path)
    assert "ZeroDivisionError: integer" in line["exception"]


@pytest.mark.usefixtures("restored_logging")
def test_records_of_libraries_take_the_same_form(tmp_path):
    path = tmp_path / "log"
    configure_logging("info", True, path)
    logging.getLogger("some.library").warning("told %s", "plainly")
    (line,) = lines_of(path)
    assert (line["event"], line["logger"]) == ("told plainly", "some.library")


@pytest.mark.usefixtures("restored_logging")
def test_people_get_text_on_stderr(capsys):
    configure_logging("debug", False)
    get_logger("fs3.test").debug("started", port=7)
    shown = capsys.readouterr().err
    assert "started" in shown
    assert "port=7" in shown
    assert not shown.startswith("{")


@pytest.mark.usefixtures("restored_logging")
def test_configuring_again_replaces_the_first(tmp_path):
    configure_logging("info", True, tmp_path / "first")
    configure_logging("info", True, tmp_path / "second")
    get_logger("fs3.test").info("once")
    assert (tmp_path / "first").read_text() == ""
    assert len(lines_of(tmp_path / "second")) == 1


@pytest.mark.usefixtures("restored_logging")
def test_what_cannot_be_is_named(tmp_path):
    with pytest.raises(Fs3Error, match="'loud' is not allowed: debug, info"):
        configure_logging("loud")
    with pytest.raises(Fs3Error, match="No such file"):
        configure_logging("info", True, tmp_path / "no" / "log")


def test_the_system_clock_does_not_go_back():
    clock = SystemClock()
    readings = [clock.monotonic_ms() for _ in range(100)]
    assert readings == sorted(readings)
    assert clock.wall_ns() > 1_700_000_000 * 10**9
