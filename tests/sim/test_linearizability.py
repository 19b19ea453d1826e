"""The judge itself: histories known to be good, and histories known to be bad."""

from __future__ import annotations

from itertools import permutations
from random import Random

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind

from .linearizability import NEVER, Operation, Update, linearizable


def put(called: int, returned: int, data: bytes, *, client: int = 1) -> Operation:
    """A write of the whole register."""
    operation = Operation(client, called, Update(UpdateKind.WRITE, 0, data), returned)
    operation.result = len(data), crc32c(data)
    return operation


def gone(called: int, returned: int) -> Operation:
    """A removal."""
    return Operation(1, called, Update(UpdateKind.REMOVE), returned, result=(0, 0))


def got(called: int, returned: int, value: bytes | None) -> Operation:
    """A read."""
    return Operation(2, called, None, returned, value=value)


def test_nothing_is_read_before_anything_is_written():
    assert linearizable([got(1, 2, None), put(3, 4, b"a"), got(5, 6, b"a")])


def test_a_read_after_a_write_must_see_it():
    assert linearizable([put(1, 2, b"a"), got(3, 4, None)]) is False


def test_a_read_beside_a_write_may_see_it_or_not():
    assert linearizable([put(1, 5, b"a"), got(2, 3, b"a")])
    assert linearizable([put(1, 5, b"a"), got(2, 3, None)])


def test_reads_never_go_back():
    assert linearizable([put(1, 9, b"a"), got(2, 3, b"a"), got(4, 5, None)]) is False


def test_a_write_without_an_answer_may_have_happened_or_not():
    lost = put(1, NEVER, b"a")
    assert linearizable([lost, got(2, 3, None), got(4, 5, None)])
    assert linearizable([lost, got(2, 3, b"a"), got(4, 5, b"a")])
    assert linearizable([lost, got(2, 3, None), got(4, 5, b"a")])


def test_a_write_happens_only_once():
    history = [put(1, 2, b"a"), put(3, 4, b"b"), got(5, 6, b"b"), got(7, 8, b"a")]
    assert linearizable(history) is False
    lost = [put(1, NEVER, b"a"), got(2, 3, b"a"), put(4, 5, b"b"), got(6, 7, b"b"), got(8, 9, b"a")]
    assert linearizable(lost) is False


def test_a_read_without_an_answer_says_nothing():
    assert linearizable([put(1, 2, b"a"), Operation(2, 3, None)])


def test_two_reads_beside_two_writes_must_agree_on_an_order():
    writes = [put(1, 20, b"a"), put(2, 20, b"b")]
    agree = [got(3, 4, b"a"), got(5, 6, b"b"), got(7, 8, b"b")]
    differ = [got(3, 4, b"a"), got(5, 6, b"b"), got(7, 8, b"a")]
    assert linearizable(writes + agree)
    assert linearizable(writes + differ) is False


def test_a_removal_leaves_nothing():
    assert linearizable([put(1, 2, b"a"), gone(3, 4), got(5, 6, None)])
    assert linearizable([put(1, 2, b"a"), gone(3, 4), got(5, 6, b"a")]) is False


def test_updates_of_a_part_build_on_each_other():
    part = Operation(1, 3, Update(UpdateKind.WRITE, 2, b"xy"), 4, result=(4, crc32c(b"abxy")))
    cut = Operation(1, 5, Update(UpdateKind.TRUNCATE, length=3), 6, result=(3, crc32c(b"abx")))
    grown = Operation(1, 7, Update(UpdateKind.EXTEND, length=5), 8, result=(5, crc32c(b"abx\0\0")))
    assert linearizable([put(1, 2, b"ab"), part, cut, grown, got(9, 10, b"abx\0\0")])
    assert linearizable([put(1, 2, b"ab"), part, got(9, 10, b"xy")]) is False


def test_a_result_that_does_not_fit_the_content_is_found():
    wrong = put(3, 4, b"b")
    wrong.result = 1, crc32c(b"c")
    assert linearizable([put(1, 2, b"a"), wrong]) is False


def test_it_agrees_with_trying_every_order():
    random = Random(3)
    verdicts = {True: 0, False: 0}
    for _ in range(400):
        history = []
        for _ in range(5):
            called = random.randint(0, 20)
            returned = random.choice([NEVER, called + random.randint(0, 12)])
            if random.random() < 0.5:
                history.append(put(called, returned, random.choice([b"a", b"b"])))
            else:
                history.append(got(called, called + 3, random.choice([None, b"a", b"b"])))
        verdict = linearizable(history)
        assert verdict is _by_force(history)
        verdicts[bool(verdict)] += 1
    assert min(verdicts.values()) > 50


def _by_force(history: list[Operation]) -> bool:
    sure = [o for o in history if o.returned_at != NEVER]
    open_ends = [o for o in history if o.returned_at == NEVER]
    for mask in range(1 << len(open_ends)):
        chosen = sure + [o for i, o in enumerate(open_ends) if mask >> i & 1]
        if any(_is_legal(order) for order in permutations(chosen)):
            return True
    return False


def _is_legal(order: tuple[Operation, ...]) -> bool:
    latest_call, state = -1, None
    for operation in order:
        if operation.returned_at < latest_call:
            return False
        latest_call = max(latest_call, operation.called_at)
        fits, state = operation.step(state)
        if not fits:
            return False
    return True
