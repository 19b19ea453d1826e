"""The thread of a target that waits for its disk: what comes of its work is heard of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from fs3.core.types import TargetId
from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor
from fs3.storageserver.chunkstore.interface import ChunkStore
from fs3.storageserver.syncs import Syncs


class Store:
    """Syncs and ticks as a test says."""

    def __init__(self) -> None:
        self.work: Callable[[], None] = lambda: None

    def sync(self) -> None:
        self.work()

    def tick(self) -> None:
        self.work()


class Rig:
    def __init__(self) -> None:
        self.reactor = Reactor()
        self.store = Store()
        self.heard: list[Any] = []
        self.syncs: Syncs[str] = Syncs(
            TargetId(1), cast(ChunkStore, self.store), self.reactor, self.hear, self.hear
        )

    def hear(self, what: object) -> None:
        self.heard.append(what)
        self.reactor.stop()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    late = made.reactor.call_later(30, made.reactor.stop)
    yield made
    late.cancel()
    made.syncs.close()
    made.reactor.close()


def raises(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_what_waits_shares_a_sync(rig: Rig) -> None:
    rig.syncs.put("a")
    rig.syncs.put("b")
    rig.syncs.start()
    rig.reactor.run()
    assert rig.heard == [["a", "b"]]


def test_a_disk_that_fails_is_told_of(rig: Rig) -> None:
    rig.store.work = raises(Fs3Error(Code.DISK, "it burns"))
    rig.syncs.put("a")
    rig.syncs.start()
    rig.reactor.run()
    assert rig.heard == ["it burns"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_bug_in_the_thread_ends_the_process(rig: Rig, in_background: bool) -> None:
    """Else every fsync of the target would wait for ever."""
    rig.store.work = raises(ZeroDivisionError("a bug"))
    if in_background:
        rig.syncs.background()
    else:
        rig.syncs.put("a")
        rig.syncs.start()
    with pytest.raises(ZeroDivisionError):
        rig.reactor.run()
