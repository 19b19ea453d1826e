"""Reads of KV values that a server has not seen, and when it is told of them."""

from __future__ import annotations

import numpy as np
import pytest

from fs3 import dataplane
from fs3.core.kv import NAMESPACE_FIRST
from fs3.core.types import chunk_id
from fs3.transport import uses
from fs3.transport.uses import Uses


def head(*slots, owner=NAMESPACE_FIRST):
    items = np.zeros(len(slots), dataplane.READ_ITEM)
    items["chunk"] = np.frombuffer(b"".join(chunk_id(owner, slot) for slot in slots), "V24")
    return items.tobytes()


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(uses.time, "monotonic", lambda: now[0])
    return now


def test_they_are_told_when_the_first_is_some_time_ago(clock):
    made = Uses()
    assert not made.note(head(1, 2))
    clock[0] += uses.PAUSE_S - 0.01
    assert not made.note(head(3))
    clock[0] += 0.02
    assert made.note(head(4))
    assert made.take() == [head(1, 2, 3, 4)]
    assert not made
    assert made.take() == []
    assert not made.note(head(5))


def test_they_are_told_when_there_are_many(clock):
    made = Uses()
    assert not made.note(head(*range(uses.USES_MAX - 1)))
    assert made.note(head(1))


def test_no_more_items_are_told_at_once_than_a_request_may_have(clock):
    made = Uses()
    for _ in range(3):
        made.note(head(*range(3000)))
    told = made.take()
    counts = [len(part) // dataplane.ITEM.size for part in told]
    assert counts == [4096, 4096, 9000 - 2 * 4096]
    assert b"".join(told) == head(*range(3000)) * 3


def test_files_are_of_no_interest(clock):
    made = Uses()
    assert not made.note(head(1, 2, owner=7))
    assert not made
