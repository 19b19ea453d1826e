"""What is recorded of registers is judged rightly: good histories pass, bad ones do not."""

from __future__ import annotations

import pytest
from sim.linearizability import NEVER, Operation, Update

from fs3.core.chunks import UpdateKind

from .registers import REGISTER_BYTES, Registers

ZEROS = bytes(REGISTER_BYTES)
ONE, TWO = b"1" * REGISTER_BYTES, b"2" * REGISTER_BYTES


def history(*operations: tuple[int, int, bytes, bool]) -> Registers:
    """Of one register: called, returned, written or read what, was it a write?"""
    made = Registers("r", 1, 65536)
    for client, (called_at, returned_at, data, writes) in enumerate(operations, 1):
        update = Update(UpdateKind.WRITE, 0, data) if writes else None
        operation = Operation(client, called_at, update, returned_at)
        operation.value = None if writes else data
        made.record(0, operation)
    return made


def test_reads_see_what_was_written_or_zeros_before() -> None:
    made = history((0, 5, ZEROS, False), (1, 2, ONE, True), (6, 7, ONE, False))
    made.check()
    assert made.counts == (3, 0)


def test_a_write_of_which_nothing_was_heard_may_show_or_not() -> None:
    unknown = (1, NEVER, ONE, True)
    history(unknown, (5, 6, ZEROS, False), (7, 8, ONE, False)).check()
    history(unknown, (5, 6, ZEROS, False)).check()
    assert history(unknown).counts == (0, 1)


@pytest.mark.parametrize(
    "bad",
    [
        [(1, 2, ONE, True), (3, 4, ZEROS, False)],  # older than what was acknowledged
        [(1, 2, ONE, True), (3, 9, TWO, True), (4, 5, TWO, False), (6, 7, ONE, False)],  # goes back
        [(1, 2, ONE, True), (3, 4, TWO, False)],  # nobody wrote it
        [(1, 2, ONE, True), (3, 4, ONE[:32] + ZEROS[32:], False)],  # a mix
    ],
)
def test_what_cannot_have_been_is_found(bad: list[tuple[int, int, bytes, bool]]) -> None:
    with pytest.raises(AssertionError, match="register 0"):
        history(*bad).check()
