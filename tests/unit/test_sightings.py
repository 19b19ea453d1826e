"""When a replica tells the head, which evicts, what it has seen being used."""

from __future__ import annotations

from replica_rig import chain, route

from fs3.core import messages as m
from fs3.core.kv import NAMESPACE_FIRST
from fs3.core.place import Place
from fs3.core.sightings import TELL_MAX, TELL_MS, Sightings
from fs3.core.types import PublicState, TargetId, chunk_id

SERVING, SYNCING = PublicState.SERVING, PublicState.SYNCING
V = [chunk_id(NAMESPACE_FIRST, number) for number in range(2 * TELL_MAX)]
CHAIN = chain(1, (1, SERVING), (2, SERVING), (3, SERVING))
TAIL, HEAD = Place(TargetId(3), CHAIN), Place(TargetId(1), CHAIN)


def test_the_head_is_told_when_the_first_use_is_some_time_ago():
    sightings = Sightings()
    sightings.see(V[:2], 1000)
    assert sightings.tell(TAIL, 1000) is None
    sightings.see(V[2:3], 1000 + TELL_MS - 1)
    assert sightings.tell(TAIL, 1000 + TELL_MS - 1) is None
    told = sightings.tell(TAIL, 1000 + TELL_MS)
    assert told == m.Used(route(3, 1), (V[2], V[0], V[1]))  # a batch's first counts as used last
    assert sightings.tell(TAIL, 9000) is None
    sightings.see(V[:1], 9000)
    assert sightings.tell(TAIL, 9000) is None


def test_a_value_is_told_once_in_the_place_of_its_last_use():
    sightings = Sightings()
    for chunk in (V[0], V[1], V[2], V[0]):
        sightings.see([chunk], 0)
    assert len(sightings) == 3
    assert sightings.tell(TAIL, TELL_MS).chunks == (V[0], V[2], V[1])


def test_many_are_told_at_once_and_what_is_too_much_is_what_was_unused_longest():
    sightings = Sightings()
    sightings.see(V[: TELL_MAX - 1], 0)
    assert sightings.tell(TAIL, 0) is None
    sightings.see(V[TELL_MAX - 1 : TELL_MAX + 9], 0)
    told = sightings.tell(TAIL, 0).chunks
    assert told[:10] == tuple(V[TELL_MAX - 1 : TELL_MAX + 9])
    assert len(told) == TELL_MAX
    assert set(V[: TELL_MAX - 1]) - {*told} == set(V[TELL_MAX - 10 : TELL_MAX - 1])
    assert not len(sightings)


def test_a_head_and_a_replica_without_a_chain_tell_nobody_and_keep_nothing():
    for place in (HEAD, None):
        sightings = Sightings()
        sightings.see(V[:5], 0)
        assert sightings.tell(place, TELL_MS) is None
        assert not len(sightings)


def test_after_a_change_the_new_head_is_told():
    sightings = Sightings()
    sightings.see(V[:1], 0)
    later = chain(2, (2, SERVING), (3, SERVING), (1, SYNCING))
    told = sightings.tell(Place(TargetId(3), later), TELL_MS)
    assert told == m.Used(route(3, 2, 2), (V[0],))
