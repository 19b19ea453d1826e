"""For tests of one part: what a program sets for its whole process is set back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import pytest


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """For tests that call a program's ``main``: later tests' records would go to its stream."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


@pytest.fixture
def no_clock_in_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store makes the same calls however long they take: it syncs its watermark once a second."""
    monkeypatch.setattr("fs3.watermark.SYNC_S", math.inf)


@pytest.fixture
def stays_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written leaves when it has to, never because a loaded machine took a second."""
    monkeypatch.setattr("fs3.client.open_inodes.DIRTY_AGE_S", math.inf)


@pytest.fixture
def no_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask for what their callers want, and nothing in the background."""
    monkeypatch.setattr("fs3.client.context.ClientContext._start_upkeep", lambda _: None)
