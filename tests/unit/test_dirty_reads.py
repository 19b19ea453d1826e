"""Reads of chunks with a pending version: who is asked, who waits, and what is shown."""

from __future__ import annotations

from replica_rig import FOREVER, OFF, K, Rig, S, Y, ack, chain, forward, route, write

from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.limits import Limits
from fs3.errors import Code

ABC = chain(1, (1, S), (2, S), (3, S))


def read(request: object, version: int = 1) -> m.Read:
    return m.Read(request, version, K)


def dirty_middle(limits: Limits | None = None) -> Rig:
    """Replica 2 of 3: version 1 committed, version 2 pending and forwarded."""
    rig = Rig(2, ABC, limits=limits)
    rig.put(1, b"old")
    rig.settle(forward(route(1, 2), 1, 2, b"new"))
    return rig


def query(number: int, version: int = 1) -> m.Send:
    return m.Send(m.Query(route(2, 3, version), K, number))


def answer(number: int, version: int) -> m.Answer:
    return m.Answer(route(3, 2), K, number, version)


def test_clean_chunk_is_served_without_asking():
    rig = Rig(2, ABC)
    rig.put(1, b"old")
    assert rig.step(read("r")) == [m.ServeRead("r", K, False)]


def test_chunk_that_is_not_there_is_said_to_be_none():
    assert rig_codes(Rig(2, ABC).step(read("r"))) == [("r", Code.NO_CHUNK)]


def rig_codes(effects: list[m.Effect]) -> list[tuple[object, Code]]:
    return [(e.request, e.code) for e in effects if isinstance(e, m.Reply)]


def test_dirty_chunk_is_served_as_the_tail_says_committed():
    rig = dirty_middle()
    assert rig.step(read("r")) == [query(1)]
    assert rig.step(answer(1, 1)) == [m.ServeRead("r", K, False)]


def test_dirty_chunk_is_served_as_the_tail_says_pending():
    rig = dirty_middle()
    rig.step(read("r"))
    assert rig.step(answer(1, 2)) == [m.ServeRead("r", K, True)]


def test_pending_removal_that_the_tail_has_committed_is_no_chunk():
    rig = Rig(2, ABC)
    rig.put(1, b"old")
    rig.settle(forward(route(1, 2), 1, 2, b"", kind=UpdateKind.REMOVE))
    rig.step(read("r"))
    assert rig_codes(rig.step(answer(1, 0))) == [("r", Code.NO_CHUNK)]


def test_readers_that_came_after_the_question_get_a_new_one():
    """The tail may have answered before they came; its answer could be older than their read."""
    rig = dirty_middle()
    rig.step(read("a"))
    assert rig.step(read("b")) == []
    assert rig.step(answer(1, 1)) == [m.ServeRead("a", K, False), query(2)]
    assert rig.step(answer(2, 2)) == [m.ServeRead("b", K, True)]


def test_a_commit_here_answers_everybody_who_waits():
    rig = dirty_middle()
    rig.step(read("a"))
    rig.step(read("b"))
    effects = rig.settle(ack(route(3, 2), 1, 2, b"new"))
    assert [e for e in effects if isinstance(e, m.ServeRead)] == [
        m.ServeRead("a", K, False),
        m.ServeRead("b", K, False),
    ]


def test_a_refusal_of_the_pending_version_answers_with_what_is_committed():
    rig = dirty_middle()
    rig.step(read("a"))
    effects = rig.settle(ack(route(3, 2), 1, 2, b"", Code.NO_SPACE))
    assert m.ServeRead("a", K, False) in effects


def test_answer_to_an_older_question_is_ignored():
    rig = dirty_middle(Limits(query_ms=100))
    rig.step(read("a"))
    rig.now_ms = 100
    assert rig.step(m.Tick()) == [query(2)]
    assert rig.step(answer(1, 1)) == []
    assert rig.step(answer(2, 2)) == [m.ServeRead("a", K, True)]


def test_answer_about_a_version_that_is_not_here_is_asked_again():
    rig = dirty_middle(Limits(query_ms=100))
    rig.step(read("a"))
    assert rig.step(answer(1, 7)) == []
    rig.now_ms = 100
    assert rig.step(m.Tick()) == [query(2)]


def test_the_tail_shows_what_is_committed_while_an_update_is_being_staged():
    rig = Rig(3, ABC)
    rig.put(1, b"old")
    stage = rig.step(forward(route(2, 3), 1, 2, b"new"))
    rig.store(stage)
    assert rig.step(read("r")) == [m.ServeRead("r", K, False)]


def test_the_tail_answers_a_query_with_its_committed_version():
    rig = Rig(3, ABC)
    rig.put(4, b"x")
    assert rig.step(m.Query(route(2, 3), K, 11)) == [m.Send(m.Answer(route(3, 2), K, 11, 4))]


def test_query_without_a_lease_is_not_answered():
    rig = Rig(3, ABC, lease_ms=5)
    rig.now_ms = 5
    assert rig.step(m.Query(route(2, 3), K, 11)) == []


def test_whoever_takes_over_from_a_lost_tail_shows_nothing_before_the_commit():
    """The lost tail may have committed the pending version and shown it: no way back from there."""
    rig = dirty_middle()
    effects = rig.step(m.ChainChanged(chain(2, (1, S), (2, S), (3, OFF))))
    assert rig.step(read("r", 2)) == []
    assert rig.step(m.Query(route(1, 2, 2), K, 5)) == []
    done = rig.settle(*rig.store(effects))
    assert m.ServeRead("r", K, False) in done
    assert m.Send(m.Answer(route(2, 1, 2), K, 5, 2)) in done
    assert rig.content() == b"new"


def test_the_same_holds_while_a_syncing_successor_is_awaited():
    rig = dirty_middle()
    rig.step(m.ChainChanged(chain(2, (1, S), (2, S), (3, Y))))
    assert rig.step(read("r", 2)) == []
    effects = rig.settle(ack(route(3, 2, 2), 1, 2, b"new"))
    assert m.ServeRead("r", K, False) in effects


def test_the_last_serving_replica_shows_the_old_while_a_new_update_goes_to_a_syncing_one():
    rig = Rig(2, chain(1, (1, S), (2, S), (3, Y)))
    rig.put(1, b"old")
    rig.settle(forward(route(1, 2), 1, 2, b"new"))
    assert rig.step(read("r")) == [m.ServeRead("r", K, False)]


def test_who_comes_back_as_the_last_shows_nothing_before_taken_up_updates_are_committed():
    table = dirty_middle().table
    rig = Rig(2, chain(5, (2, S), (1, OFF), (3, OFF)), table=table)
    assert rig.step(read("r", 5)) == []
    assert rig.settle(*rig.store(rig.started)) == [m.ServeRead("r", K, False)]
    assert rig.content() == b"new"


def test_readers_are_refused_when_the_chain_changes():
    rig = dirty_middle()
    rig.step(read("a"))
    rig.step(read("b"))
    effects = rig.settle(m.ChainChanged(chain(2, (1, S), (2, S), (3, S))))
    assert rig_codes(effects) == [("a", Code.STALE_CHAIN), ("b", Code.STALE_CHAIN)]


def test_read_past_the_lease_or_at_another_chain_version_is_refused():
    rig = Rig(2, ABC, lease_ms=5)
    assert rig_codes(rig.step(read("a", 2))) == [("a", Code.STALE_CHAIN)]
    rig.now_ms = 5
    assert rig_codes(rig.step(read("b"))) == [("b", Code.NOT_SERVING)]


def test_too_many_readers_of_one_chunk_get_busy():
    rig = dirty_middle(Limits(waiting_per_chunk=2))
    rig.step(read("a"))
    rig.step(read("b"))
    assert rig_codes(rig.step(read("c"))) == [("c", Code.BUSY)]


def test_too_many_held_readers_get_busy():
    rig = Rig(3, ABC, limits=Limits(waiting_per_chunk=1))
    rig.step(rig.store(rig.step(forward(route(2, 3), 1, 1, b"x")))[0])
    assert rig.step(read("a")) == []
    assert rig_codes(rig.step(read("b"))) == [("b", Code.BUSY)]


def test_a_head_with_a_dirty_chunk_asks_too():
    rig = Rig(1, ABC)
    rig.settle(write("w", b"x"))
    assert rig.step(read("r")) == [m.Send(m.Query(route(1, 3), K, 1))]


def test_an_answer_that_comes_past_the_lease_is_not_shown():
    rig = dirty_middle()
    rig.step(read("a"))
    rig.now_ms = FOREVER
    assert rig_codes(rig.step(answer(1, 2))) == [("a", Code.NOT_SERVING)]


def test_a_commit_past_the_lease_answers_nobody_with_data():
    rig = Rig(3, ABC, lease_ms=5)
    commit = rig.step(rig.store(rig.step(forward(route(2, 3), 1, 1, b"x")))[0])
    rig.step(read("a"))
    rig.step(m.Query(route(2, 3), K, 7))
    rig.now_ms = 5
    effects = rig.settle(*rig.store(commit))
    assert rig_codes(effects) == [("a", Code.NOT_SERVING)]
    assert not any(isinstance(e, m.Send) and isinstance(e.message, m.Answer) for e in effects)
