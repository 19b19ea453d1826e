"""The membership function, enumerated: every legal chain of up to three targets, every report."""

from __future__ import annotations

from itertools import product

import pytest

from fs3.core.chain import add_replica, new_chain, next_chain, remove_replica, violation
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    LocalState,
    NodeId,
    PublicState,
    Replica,
    TargetId,
)

S, L, Y, W, O = (  # noqa: E741
    PublicState.SERVING,
    PublicState.LASTSRV,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.OFFLINE,
)
UP, ON, OFF = LocalState.UPTODATE, LocalState.ONLINE, LocalState.OFFLINE


def make(*states: PublicState) -> Chain:
    replicas = tuple(Replica(TargetId(i + 1), NodeId(i + 1), s) for i, s in enumerate(states))
    return Chain(ChainId(1), ChainVersion(7), replicas)


def after(states: tuple[PublicState, ...], local: tuple[LocalState, ...]) -> list[tuple[int, str]]:
    chain = next_chain(make(*states), {TargetId(i + 1): s for i, s in enumerate(local)})
    return [(r.target, r.state.name) for r in chain.replicas]


ALL = [
    (states, local)
    for size in (1, 2, 3)
    for states in product(PublicState, repeat=size)
    if violation(make(*states)) is None
    for local in product(LocalState, repeat=size)
]


@pytest.mark.parametrize(("states", "local"), ALL)
def test_every_small_chain_stays_legal_and_settles(
    states: tuple[PublicState, ...], local: tuple[LocalState, ...]
) -> None:
    chain = make(*states)
    reported = {TargetId(i + 1): s for i, s in enumerate(local)}
    for _ in range(6):
        changed = next_chain(chain, reported)
        assert violation(changed) is None
        if changed is chain:
            break
        assert changed.version == chain.version + 1
        assert {r.target for r in changed.replicas} == {r.target for r in chain.replicas}
        if chain.serving and not changed.serving:
            assert any(r.state is L for r in changed.replicas), "nobody to wait for"
        # Only a serving, a last-served or a synced target may serve next.
        for r in changed.serving:
            before = chain.replica(r.target)
            assert before is not None
            assert before.state in (S, L) or (before.state is Y and reported[r.target] is UP)
        chain = changed
    else:
        pytest.fail(f"{states} with {local} never settles")


@pytest.mark.parametrize(
    ("states", "local", "expected"),
    [
        ((S, S, S), (UP, OFF, UP), [(1, "SERVING"), (3, "SERVING"), (2, "OFFLINE")]),
        ((S, S, S), (OFF, OFF, OFF), [(1, "LASTSRV"), (2, "OFFLINE"), (3, "OFFLINE")]),
        ((S, O, O), (OFF, ON, ON), [(1, "LASTSRV"), (2, "WAITING"), (3, "WAITING")]),
        ((L, W, O), (ON, ON, OFF), [(1, "SERVING"), (2, "SYNCING"), (3, "OFFLINE")]),
        ((S, O, O), (UP, ON, ON), [(1, "SERVING"), (2, "SYNCING"), (3, "WAITING")]),
        ((S, Y, W), (UP, UP, ON), [(1, "SERVING"), (2, "SERVING"), (3, "SYNCING")]),
        ((S, Y, O), (OFF, ON, OFF), [(1, "LASTSRV"), (2, "WAITING"), (3, "OFFLINE")]),
        ((S, O), (UP, UP), [(1, "SERVING"), (2, "WAITING")]),
        ((S, Y), (OFF, UP), [(2, "SERVING"), (1, "OFFLINE")]),
    ],
)
def test_transition(
    states: tuple[PublicState, ...],
    local: tuple[LocalState, ...],
    expected: list[tuple[int, str]],
) -> None:
    assert after(states, local) == expected


def test_unknown_target_counts_as_offline() -> None:
    assert [r.state for r in next_chain(make(S, S), {TargetId(1): UP}).replicas] == [S, O]


def test_new_chain_serves_at_once_and_replicas_join_offline() -> None:
    chain = new_chain(make(O, O))
    assert [r.state for r in chain.replicas] == [S, S]
    grown = add_replica(chain, Replica(TargetId(9), NodeId(9), S))
    assert grown.replicas[-1].state is O
    assert grown.version == chain.version + 1
    assert remove_replica(grown, TargetId(9)).replicas == chain.replicas
    with pytest.raises(ValueError, match="SERVING"):
        remove_replica(grown, TargetId(1))
