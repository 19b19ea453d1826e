"""The replica core: what goes in, and exactly what comes out."""

from __future__ import annotations

from replica_rig import FOREVER, OFF, K, L, Rig, S, Y, ack, chain, forward, route, write

from fs3.checksum import crc32c
from fs3.core import messages as m
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.limits import Limits
from fs3.core.types import ChainVersion, ChunkVersion, LocalState, TargetId, chunk_id
from fs3.errors import Code

ABC = chain(1, (1, S), (2, S), (3, S))
TAG = Tag(9, 1, 5)


def sends(effects: list[m.Effect]) -> list[m.Message]:
    return [e.message for e in effects if isinstance(e, m.Send)]


def replies(effects: list[m.Effect]) -> list[tuple[object, Code]]:
    return [(e.request, e.code) for e in effects if isinstance(e, m.Reply)]


# --- the way of a write ------------------------------------------------------------------------


def test_head_stages_a_write_at_the_next_version_before_anything_else():
    rig = Rig(1, ABC)
    assert rig.step(write("r", b"abc", tag=TAG)) == [
        m.Stage(K, UpdateKind.WRITE, 1, 0, 3, crc32c(b"abc"), 1, TAG, False, b"abc")
    ]


def test_a_staged_write_is_forwarded_to_the_successor():
    rig = Rig(1, ABC)
    assert rig.settle(write("r", b"abc")) == [m.Send(forward(route(1, 2), 1, 1, b"abc"))]


def test_middle_commits_only_after_its_successor_and_then_acknowledges():
    rig = Rig(2, ABC)
    assert rig.settle(forward(route(1, 2), 1, 1, b"abc")) == [
        m.Send(forward(route(2, 3), 1, 1, b"abc"))
    ]
    assert rig.content() is None
    assert rig.settle(ack(route(3, 2), 1, 1, b"abc")) == [m.Send(ack(route(2, 1), 1, 1, b"abc"))]
    assert rig.content() == b"abc"


def test_tail_commits_at_once_and_acknowledges():
    rig = Rig(3, ABC)
    assert rig.settle(forward(route(2, 3), 1, 1, b"abc")) == [
        m.Send(ack(route(3, 2), 1, 1, b"abc"))
    ]


def test_head_replies_when_the_chain_has_committed():
    rig = Rig(1, ABC)
    rig.settle(write("r", b"abc"))
    assert rig.settle(ack(route(2, 1), 1, 1, b"abc")) == [
        m.Reply("r", Code.OK, 1, 3, crc32c(b"abc"), "")
    ]


def test_a_second_write_of_the_chunk_waits_for_the_first():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"one"))
    assert rig.settle(write("b", b"two")) == []
    effects = rig.settle(ack(route(2, 1), 1, 1, b"one"))
    assert replies(effects) == [("a", Code.OK)]
    assert [(f.version, f.link_sequence, f.settled) for f in sends(effects)] == [(2, 2, 1)]


def test_too_many_waiting_writes_get_busy():
    rig = Rig(1, ABC, limits=Limits(waiting_per_chunk=1))
    rig.settle(write("a", b"x"), write("b", b"x"))
    assert replies(rig.settle(write("c", b"x"))) == [("c", Code.BUSY)]


def test_hundreds_of_waiting_writes_are_refused_without_deep_recursion():
    rig = Rig(1, chain(1, (1, S)), lease_ms=10)
    stage = rig.step(write("first", b"x"))
    for number in range(256):
        rig.step(write(number, b"x"))
    (commit,) = rig.step(rig.store(stage)[0])
    rig.now_ms = 10  # the lease is over
    effects = rig.step(rig.store([commit])[0])
    assert [code for _, code in replies(effects)] == [Code.OK] + [Code.NOT_SERVING] * 256
    assert rig.core.lanes == {}


def test_write_at_another_chain_version_is_refused():
    assert replies(Rig(1, ABC).step(write("r", b"x", version=2))) == [("r", Code.STALE_CHAIN)]


def test_write_at_another_place_than_the_head_is_refused():
    assert replies(Rig(2, ABC).step(write("r", b"x"))) == [("r", Code.NOT_SERVING)]


def test_write_past_the_lease_is_refused():
    rig = Rig(1, ABC, lease_ms=5)
    rig.now_ms = 5
    assert replies(rig.step(write("r", b"x"))) == [("r", Code.NOT_SERVING)]


def test_write_that_cannot_be_staged_fails_and_leaves_nothing():
    rig = Rig(1, ABC)
    rig.table.capacity_bytes = 0
    assert replies(rig.settle(write("r", b"x"))) == [("r", Code.NO_SPACE)]
    assert rig.core.lanes == {}


def test_removing_what_is_not_there_succeeds_at_once():
    rig = Rig(1, ABC)
    assert replies(rig.step(write("r", kind=UpdateKind.REMOVE))) == [("r", Code.OK)]


def test_versions_of_a_chunk_made_anew_start_again_at_one():
    rig = Rig(1, chain(1, (1, S)))
    rig.settle(write("a", b"x"), write("b", b"y"), write("c", kind=UpdateKind.REMOVE))
    assert rig.content() is None
    (reply,) = rig.settle(write("d", b"z"))
    assert reply == m.Reply("d", Code.OK, 1, 1, crc32c(b"z"), "")


# --- exactly once ------------------------------------------------------------------------------


def test_a_retry_of_the_update_under_way_shares_its_reply():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x", tag=TAG), write("b", b"x", tag=TAG))
    effects = rig.settle(ack(route(2, 1), 1, 1, b"x"))
    assert replies(effects) == [("a", Code.OK), ("b", Code.OK)]


def test_a_retry_of_a_finished_update_gets_the_first_result():
    rig = Rig(1, chain(1, (1, S)))
    first = rig.settle(write("a", b"x", tag=TAG))
    rig.settle(write("other", b"longer"))
    assert rig.settle(write("b", b"x", tag=TAG)) == [first[0]._replace(request="b")]


def test_an_older_update_of_a_channel_is_refused():
    rig = Rig(1, chain(1, (1, S)))
    rig.settle(write("a", b"x", tag=TAG))
    old = TAG._replace(sequence=4)
    assert replies(rig.step(write("b", b"x", tag=old))) == [("b", Code.STALE_UPDATE)]


def test_a_retry_goes_to_the_update_that_a_new_head_took_over():
    rig = Rig(2, ABC)
    rig.settle(forward(route(1, 2), 1, 1, b"x", tag=TAG))
    rig.settle(m.ChainChanged(chain(2, (2, S), (3, S), (1, OFF))))
    assert rig.settle(write("b", b"x", version=2, tag=TAG)) == []
    assert replies(rig.settle(ack(route(3, 2, 2), 1, 1, b"x"))) == [("b", Code.OK)]


def test_a_late_copy_of_a_removal_that_had_nothing_to_do_removes_nothing():
    """Two tries are on their way; between them another client makes the chunk."""
    rig = Rig(1, chain(1, (1, S)))
    remove = write("r", kind=UpdateKind.REMOVE, tag=TAG)
    assert replies(rig.settle(remove)) == [("r", Code.OK)]
    rig.settle(write("w", b"new"))
    assert replies(rig.settle(remove)) == [("r", Code.OK)]
    assert rig.content() == b"new"


def test_a_removal_that_has_nothing_to_do_leaves_its_record_at_every_replica():
    rig = Rig(3, ABC)
    first = forward(route(2, 3), 1, 1, b"", kind=UpdateKind.REMOVE, tag=TAG)
    assert [a.code for a in sends(rig.settle(first))] == [Code.OK]
    assert rig.table.channel(9, 1).sequence == 5


def test_a_retry_of_a_refused_update_is_tried_anew_even_before_the_store_dropped_it():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x", tag=TAG))
    refused = rig.step(ack(route(2, 1), 1, 1, b"", Code.NO_SPACE))
    assert m.Drop(K) in refused
    assert isinstance(rig.step(write("b", b"x", tag=TAG))[0], m.Stage)


# --- links: lost, doubled and late messages ----------------------------------------------------


def test_a_forward_that_comes_twice_is_applied_once():
    rig = Rig(3, ABC)
    first = forward(route(2, 3), 1, 1, b"abc")
    answer = rig.settle(first)
    assert rig.settle(first) == answer
    assert rig.table.meta(K).version == 1


def test_a_forward_that_comes_again_while_it_is_under_way_is_ignored():
    rig = Rig(2, ABC)
    rig.settle(forward(route(1, 2), 1, 1, b"abc"))
    assert rig.settle(forward(route(1, 2), 1, 1, b"abc")) == []


def test_an_old_create_that_comes_after_the_removal_does_not_bring_the_chunk_back():
    rig = Rig(3, ABC)
    create = forward(route(2, 3), 1, 1, b"abc")
    rig.settle(create, forward(route(2, 3), 2, 2, b"", kind=UpdateKind.REMOVE, settled=1))
    assert rig.settle(create) == []
    assert rig.content() is None


def test_an_ack_of_a_chunk_that_was_removed_does_not_count_for_the_new_one():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"))
    late = ack(route(2, 1), 1, 1, b"x")
    for event in (late, write("b", kind=UpdateKind.REMOVE), ack(route(2, 1), 2, 2, b"")):
        rig.settle(event)
    rig.settle(write("c", b"x"))
    assert rig.settle(late) == []
    assert rig.content() is None


def test_a_refusal_stays_a_refusal():
    """The first answer is delayed, the second try would succeed: the sender may have dropped it."""
    rig = Rig(3, ABC)
    rig.table.capacity_bytes = 0
    refused = rig.settle(forward(route(2, 3), 1, 1, b"x"))
    assert [a.code for a in sends(refused)] == [Code.NO_SPACE]
    rig.table.capacity_bytes = 1 << 30
    assert rig.settle(forward(route(2, 3), 1, 1, b"x")) == refused
    assert rig.table.meta(K) is None


def test_a_refused_update_is_dropped_and_refused_upstream():
    rig = Rig(2, ABC)
    rig.settle(forward(route(1, 2), 1, 1, b"x"))
    effects = rig.step(ack(route(3, 2), 1, 1, b"", Code.NO_SPACE))
    assert effects[0] == m.Drop(K)
    (upstream,) = sends(effects)
    assert (upstream.route, upstream.link_sequence, upstream.code) == (
        route(2, 1),
        1,
        Code.NO_SPACE,
    )


def test_what_is_not_acknowledged_is_sent_again_from_the_store_with_doubling_pauses():
    rig = Rig(1, ABC, limits=Limits(resend_ms=100, resend_ms_max=150))
    rig.settle(write("a", b"x"))
    sent_at = []
    for rig.now_ms in range(50, 600, 50):
        sent_at += [(rig.now_ms, f.kind, f.link_sequence) for f in sends(rig.step(m.Tick()))]
    assert sent_at == [(t, UpdateKind.REPLACE, 1) for t in (100, 250, 400, 550)]


def test_a_link_that_is_up_again_gets_everything_unanswered():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"), write("b", b"y", chunk=chunk_id(7, 1)))
    again = sends(rig.step(m.PeerUp(TargetId(2))))
    assert [(f.chunk, f.link_sequence, f.data) for f in again] == [
        (K, 1, None),
        (chunk_id(7, 1), 2, None),
    ]
    assert rig.step(m.PeerUp(TargetId(3))) == []


def test_busy_is_no_refusal():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"))
    assert rig.step(ack(route(2, 1), 1, 1, b"", Code.BUSY)) == []
    assert replies(rig.settle(ack(route(2, 1), 1, 1, b"x"))) == [("a", Code.OK)]


def test_a_gap_in_the_versions_takes_the_replica_out():
    rig = Rig(3, ABC)
    (fault,) = rig.step(forward(route(2, 3), 1, 3, b"x"))
    assert isinstance(fault, m.Fault)


def test_disagreement_about_the_content_is_reported_and_nothing_is_committed():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"))
    assert rig.step(ack(route(2, 1), 1, 1, b"y")) == [
        m.Mismatch(K, 1, TargetId(2), crc32c(b"x"), crc32c(b"y"))
    ]
    assert rig.content() is None


# --- chain versions ----------------------------------------------------------------------------


def test_message_of_an_older_chain_version_is_ignored():
    rig = Rig(3, chain(2, (2, S), (3, S)))
    assert rig.step(forward(route(2, 3, 1), 1, 1, b"x")) == []


def test_message_of_a_newer_chain_version_waits_until_it_is_heard_of():
    rig = Rig(3, ABC)
    early = forward(route(1, 3, 2), 1, 1, b"x")
    assert rig.settle(early, early) == [m.RefreshRouting(ChainVersion(2))]
    assert rig.step(m.Tick()) == [m.RefreshRouting(ChainVersion(2))]
    effects = rig.settle(m.ChainChanged(chain(2, (1, S), (3, S), (2, OFF))))
    assert sends(effects) == [ack(route(3, 1, 2), 1, 1, b"x")]


def test_parked_messages_are_bounded_in_number_and_bytes():
    limits = Limits(parked=2, parked_bytes=100)
    rig = Rig(3, ABC, limits=limits)
    rig.step(forward(route(2, 3, 2), 1, 1, bytes(101)))
    for number in range(3):
        rig.step(forward(route(2, 3, 2), 2 + number, 1, b"x", chunk=chunk_id(7, number)))
    effects = rig.settle(m.ChainChanged(chain(2, (2, S), (3, S))))
    assert [a.link_sequence for a in sends(effects)] == [2, 3]


def test_message_of_another_chain_or_target_is_ignored():
    rig = Rig(3, ABC)
    stranger = forward(m.Route(TargetId(2), TargetId(3), 2, ChainVersion(9)), 1, 1, b"x")
    assert rig.step(stranger) == []
    assert rig.step(forward(route(2, 1), 1, 1, b"x")) == []
    assert rig.step(forward(route(1, 3), 1, 1, b"x")) == []  # not the predecessor


def test_lost_tail_lets_its_predecessor_commit():
    rig = Rig(2, ABC)
    rig.settle(forward(route(1, 2), 1, 1, b"x"))
    effects = rig.settle(m.ChainChanged(chain(2, (1, S), (2, S), (3, OFF))))
    assert effects == []  # nobody has asked in this chain version yet
    assert rig.content() == b"x"
    assert rig.settle(forward(route(1, 2, 2), 1, 1, b"x")) == [
        m.Send(ack(route(2, 1, 2), 1, 1, b"x"))
    ]


def test_lost_middle_makes_the_head_forward_again_to_the_tail():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"))
    effects = rig.settle(m.ChainChanged(chain(2, (1, S), (3, S), (2, OFF))))
    assert [(f.route, f.kind, f.version) for f in sends(effects)] == [
        (route(1, 3, 2), UpdateKind.REPLACE, 1)
    ]
    assert replies(rig.settle(ack(route(3, 1, 2), 1, 1, b"x"))) == [("a", Code.OK)]


def test_an_ack_of_an_older_chain_version_does_not_count():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"))
    rig.settle(m.ChainChanged(chain(2, (1, S), (3, S), (2, OFF))))
    assert rig.settle(ack(route(2, 1), 1, 1, b"x")) == []


def test_a_forward_sent_again_after_a_change_joins_the_update_under_way():
    rig = Rig(3, ABC)
    stage = rig.step(forward(route(2, 3), 1, 1, b"x"))
    rig.step(m.ChainChanged(chain(2, (1, S), (3, S), (2, OFF))))
    assert rig.step(forward(route(1, 3, 2), 4, 1, b"x", kind=UpdateKind.REPLACE)) == []
    assert rig.settle(rig.store(stage)[0]) == [m.Send(ack(route(3, 1, 2), 4, 1, b"x"))]


def test_waiting_writes_are_refused_when_the_chain_changes():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"), write("b", b"y"))
    effects = rig.settle(m.ChainChanged(chain(2, (1, S), (2, S), (3, OFF))))
    assert replies(effects) == [("b", Code.STALE_CHAIN)]


def test_a_target_out_of_the_chain_discards_its_core_and_refuses_everybody():
    rig = Rig(1, ABC)
    rig.settle(write("a", b"x"), write("b", b"y"))
    effects = rig.step(m.ChainChanged(chain(2, (2, S), (3, S), (1, OFF))))
    assert replies(effects) == [("a", Code.STALE_CHAIN), ("b", Code.STALE_CHAIN)]
    assert effects[-1] == m.Demoted()
    assert not rig.core.serves(0)
    assert replies(rig.step(write("c", b"z", version=2))) == [("c", Code.STALE_CHAIN)]
    assert rig.core.stop() == []


def test_a_replica_that_was_out_without_hearing_of_it_starts_over():
    """It serves at version 1 and hears next that it is syncing: it has missed writes."""
    rig = Rig(3, ABC)
    assert rig.step(m.ChainChanged(chain(4, (1, S), (2, S), (3, Y)))) == [m.Demoted()]


def test_a_syncing_replica_that_missed_a_chain_version_starts_over():
    rig = Rig(3, chain(1, (1, S), (3, Y)))
    rig.settle(m.SyncDone(route(1, 3)))
    assert rig.core.uptodate
    assert rig.step(m.ChainChanged(chain(3, (1, S), (3, Y)))) == [m.Demoted()]


def test_an_older_chain_is_ignored():
    rig = Rig(1, chain(2, (1, S), (2, S)))
    assert rig.step(m.ChainChanged(ABC)) == []
    assert rig.core.chain.version == 2


# --- taking up what is stored ------------------------------------------------------------------


def _with_pending(content: bytes) -> Rig:
    """A store in which ``content`` is staged at version 1."""
    rig = Rig(1, ABC)
    rig.settle(write("a", content))
    return rig


def test_the_last_replica_commits_what_it_had_staged_when_it_is_back():
    table = _with_pending(b"x").table
    rig = Rig(1, chain(3, (1, S), (2, OFF), (3, OFF)), table=table)
    rig.settle(*rig.store(rig.started))
    assert rig.content() == b"x"


def test_what_is_taken_up_is_synced_before_anybody_sees_it():
    """A crash may have come before the sync that its client wanted; a power cut may come yet."""
    table = _with_pending(b"x").table
    rig = Rig(1, chain(3, (1, S), (2, OFF), (3, OFF)), table=table)
    (flush,) = rig.started
    assert isinstance(flush, m.Flush)
    assert rig.step(m.Read("r", ChainVersion(3), K)) == []
    assert rig.step(m.Tick()) == []
    assert rig.step(m.Flushed(flush.number)) == [m.Commit(K, 1, 3)]


def test_what_is_taken_up_is_synced_by_every_replica_behind():
    table = _with_pending(b"x").table
    rig = Rig(1, chain(3, (1, S), (2, S)), table=table)
    (sent,) = sends(rig.settle(*rig.store(rig.started)))
    assert (sent.kind, sent.sync) == (UpdateKind.REPLACE, True)


def test_what_is_taken_up_reaches_a_syncing_successor_by_resync_with_its_record():
    """Forwarded it would come without its tag, and a later head would apply a retry once more."""
    table = _with_pending(b"x").table
    rig = Rig(1, chain(3, (1, S), (2, Y)), table=table)
    assert not sends(rig.settle(*rig.store(rig.started)))
    assert rig.content() == b"x"
    rig.now_ms = 20
    assert [type(message) for message in sends(rig.step(m.Tick()))] == [m.SyncRequest]


def test_a_syncing_replica_forgets_what_it_had_staged():
    table = _with_pending(b"x").table
    rig = Rig(1, chain(3, (2, S), (1, Y)), table=table)
    assert rig.started == [m.Drop(K)]


# --- leases ------------------------------------------------------------------------------------


def test_lease_of_a_chain_version_not_heard_of_is_not_used():
    rig = Rig(1, ABC, lease_ms=0)
    rig.step(m.LeaseRenewed(ChainVersion(2), FOREVER))
    assert not rig.core.serves(1)


def test_lease_of_an_earlier_chain_version_still_counts():
    rig = Rig(1, chain(2, (1, S), (2, S)), lease_ms=0)
    rig.step(m.LeaseRenewed(ChainVersion(1), 10))
    assert rig.core.serves(9)
    assert not rig.core.serves(10)


# --- towards a syncing successor ---------------------------------------------------------------


def test_an_update_reaches_a_syncing_successor_as_a_full_replace():
    rig = Rig(1, chain(1, (1, S), (2, Y)))
    (update,) = [
        f for f in sends(rig.settle(write("a", b"abc", tag=TAG))) if isinstance(f, m.Forward)
    ]
    assert (update.kind, update.length, update.checksum) == (
        UpdateKind.REPLACE,
        3,
        crc32c(b"abc"),
    )
    assert update.data is None
    assert update.tag == TAG


def test_a_syncing_replica_takes_an_older_version_than_its_own():
    rig = Rig(2, chain(5, (1, S), (2, Y)))
    rig.put(9, b"junk")
    rig.settle(forward(route(1, 2, 5), 1, 4, b"true", kind=UpdateKind.REPLACE))
    assert rig.content() == b"true"
    assert rig.table.meta(K).version == 4


def test_a_syncing_replica_removes_whatever_version_it_has():
    rig = Rig(2, chain(5, (1, S), (2, Y)))
    rig.put(9, b"junk")
    effects = rig.settle(forward(route(1, 2, 5), 1, 1, b"", kind=UpdateKind.REMOVE))
    assert [(a.code, a.version, a.link_sequence) for a in sends(effects)] == [(Code.OK, 1, 1)]
    assert rig.content() is None


def test_a_syncing_replica_that_cannot_take_an_update_leaves():
    rig = Rig(2, chain(1, (1, S), (2, Y)))
    rig.table.capacity_bytes = 0
    (fault,) = rig.settle(forward(route(1, 2), 1, 1, b"x", kind=UpdateKind.REPLACE))
    assert isinstance(fault, m.Fault)


def test_a_syncing_replica_says_nothing_about_damaged_data_and_takes_it_when_it_comes_again():
    rig = Rig(2, chain(1, (1, S), (2, Y)))
    good = forward(route(1, 2), 1, 1, b"x", kind=UpdateKind.REPLACE)
    assert rig.settle(good._replace(data=b"y")) == []
    assert [a.code for a in sends(rig.settle(good))] == [Code.OK]


def test_a_forward_that_meets_a_copy_for_the_syncing_successor_waits_for_it():
    """The copy holds the lane; the forward must neither be lost nor acknowledged unapplied."""
    rig = Rig(2, chain(1, (1, S), (2, S)))
    rig.put(4, b"old")
    ABY = chain(2, (1, S), (2, S), (3, Y))
    rig.settle(m.ChainChanged(ABY))
    page = m.SyncPage(route(3, 2, 2), 1, b"", (), True)
    (copy,) = [f for f in sends(rig.step(page)) if isinstance(f, m.Forward)]
    assert (copy.kind, copy.version) == (UpdateKind.REPLACE, 4)
    assert rig.settle(forward(route(1, 2, 2), 1, 5, b"new")) == []
    effects = rig.settle(ack(route(3, 2, 2), 1, 4, b"old"))
    updates = [f for f in sends(effects) if isinstance(f, m.Forward)]
    assert [(f.version, f.checksum) for f in updates] == [(5, crc32c(b"new"))]


# --- becoming a serving replica ----------------------------------------------------------------


def test_a_new_tail_serves_only_when_its_predecessor_knows():
    """Until then the predecessor calls itself the last to serve, and would show what is older."""
    rig = Rig(2, chain(1, (1, S), (2, Y)))
    effects = rig.step(m.ChainChanged(chain(2, (1, S), (2, S))))
    assert m.Send(m.Join(route(2, 1, 2))) in effects
    assert not rig.core.serves(0)
    rig.now_ms = 10_000
    assert m.Send(m.Join(route(2, 1, 2))) in rig.step(m.Tick())
    rig.step(m.Welcome(route(1, 2, 2)))
    assert rig.core.serves(10_000)


def test_a_predecessor_welcomes_whoever_joins_in_its_chain_version():
    rig = Rig(1, chain(2, (1, S), (2, S)))
    assert rig.step(m.Join(route(2, 1, 2))) == [m.Send(m.Welcome(route(1, 2, 2)))]
    assert sends(rig.step(m.Join(route(2, 1, 3)))) == []


def test_a_new_tail_left_alone_serves_at_once():
    rig = Rig(2, chain(1, (1, S), (2, Y)))
    rig.step(m.ChainChanged(chain(2, (1, S), (2, S))))
    rig.step(m.ChainChanged(chain(3, (2, S), (1, OFF))))
    assert rig.core.serves(0)


# --- what the manager hears --------------------------------------------------------------------


def test_a_syncing_replica_is_up_to_date_once_everything_is_on_stable_storage():
    rig = Rig(2, chain(1, (1, S), (2, Y)))
    assert rig.core.local_state is LocalState.ONLINE
    assert rig.step(m.SyncDone(route(1, 2))) == [m.Flush(1)]
    assert rig.core.local_state is LocalState.ONLINE
    assert rig.step(m.Flushed(1)) == [m.StateChanged(LocalState.UPTODATE)]
    assert rig.core.local_state is LocalState.UPTODATE
    assert rig.step(m.SyncDone(route(1, 2))) == []


def test_the_last_replica_alone_needs_no_lane_for_what_is_clean():
    rig = Rig(1, chain(2, (1, S), (2, OFF), (3, L)))
    assert rig.started == []
    assert rig.core.place.last_serving == 1


def test_commit_that_fails_takes_the_replica_out():
    rig = Rig(3, ABC)
    rig.step(rig.store(rig.step(forward(route(2, 3), 1, 1, b"x")))[0])
    (fault,) = rig.step(m.Committed(K, ChunkVersion(1), Code.DISK))
    assert isinstance(fault, m.Fault)


# --- uses of values -----------------------------------------------------------------------------


def test_the_head_notes_what_other_replicas_have_used_in_its_chain_version():
    head, tail = (Rig(t, chain(2, (1, S), (2, S))) for t in (1, 2))
    assert head.step(m.Used(route(2, 1, 2), (K,))) == [m.NoteUses((K,))]
    assert tail.step(m.Used(route(1, 2, 2), (K,))) == []
    assert head.step(m.Used(route(2, 1, 1), (K,))) == []
    assert head.step(m.Used(route(2, 1, 3), (K,))) == []  # a hint is not kept for later
    assert head.step(m.ChainChanged(chain(3, (1, S), (2, S)))) == []
