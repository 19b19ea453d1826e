"""Creating a chunk that must not be there yet: decided once, by the head."""

from __future__ import annotations

from replica_rig import K, Rig, S, ack, chain, route, write

from fs3.checksum import crc32c
from fs3.core import messages as m
from fs3.core.chunks import Tag, UpdateKind
from fs3.errors import Code

ALONE = chain(1, (1, S))
PAIR = chain(1, (1, S), (2, S))
TAG, LATER = Tag(9, 1, 5), Tag(9, 2, 1)


def create(request: object, data: bytes, tag: Tag | None = TAG) -> m.Write:
    return write(request, data, kind=UpdateKind.CREATE, tag=tag)


def replies(effects: list[m.Effect]) -> list[tuple[object, Code, int]]:
    return [(e.request, e.code, e.length) for e in effects if isinstance(e, m.Reply)]


def test_creating_what_is_not_there_writes_it():
    rig = Rig(1, ALONE)
    assert replies(rig.settle(create("r", b"value"))) == [("r", Code.OK, 5)]
    assert rig.content() == b"value"


def test_creating_what_is_there_changes_nothing_and_says_what_is_there():
    rig = Rig(1, ALONE)
    rig.put(3, b"first")
    effects = rig.settle(create("r", b"the second"))
    assert effects == [m.Reply("r", Code.OK, 4, 5, crc32c(b"first"), "")]
    assert rig.content() == b"first"


def test_of_two_at_once_the_first_wins():
    rig = Rig(1, PAIR)
    rig.settle(create("a", b"one"), create("b", b"other", LATER))
    effects = rig.settle(ack(route(2, 1), 1, 1, b"one"))
    assert replies(effects) == [("a", Code.OK, 3)]
    rig.settle(ack(route(2, 1), 2, 2, b"one"))
    assert rig.content() == b"one"


def test_the_rest_of_the_chain_hears_of_a_plain_write():
    rig = Rig(1, PAIR)
    (send,) = rig.settle(create("r", b"value"))
    assert isinstance(send, m.Send)
    assert isinstance(send.message, m.Forward)
    assert (send.message.kind, send.message.data) == (UpdateKind.WRITE, b"value")


def test_a_late_copy_of_a_create_does_not_bring_a_removed_value_back():
    rig = Rig(1, ALONE)
    rig.put(1, b"there")
    rig.settle(create("first", b"value"))
    rig.settle(write("gone", kind=UpdateKind.REMOVE, tag=LATER))
    assert replies(rig.settle(create("copy", b"value"))) == [("copy", Code.OK, 5)]
    assert rig.content(K) is None
