"""An operator's orders on chains, over all small chains: legal before, legal after."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import pytest

from fs3.core.chain import (
    add_replica,
    give_up_last,
    next_chain,
    out_of_place,
    remove_replica,
    set_preferred,
    violation,
)
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

STATES = [
    states
    for size in (1, 2, 3)
    for states in product(PublicState, repeat=size)
    if not violation(
        Chain(
            ChainId(1),
            ChainVersion(1),
            tuple(Replica(TargetId(i), NodeId(i), s) for i, s in enumerate(states)),
        )
    )
]


def make(*states: PublicState, preferred: tuple[int, ...] = ()) -> Chain:
    replicas = tuple(Replica(TargetId(i + 1), NodeId(i + 1), s) for i, s in enumerate(states))
    return Chain(ChainId(1), ChainVersion(7), replicas, tuple(map(TargetId, preferred)))


def targets(chain: Chain) -> list[int]:
    return [int(r.target) for r in chain.replicas]


@pytest.mark.parametrize("states", STATES)
def test_a_target_joins_last_and_takes_no_state_from_anybody(
    states: tuple[PublicState, ...],
) -> None:
    chain = make(*states)
    grown = add_replica(chain, Replica(TargetId(9), NodeId(9), PublicState.SERVING))
    assert violation(grown) is None
    assert grown.version == chain.version + 1
    assert grown.replicas[:-1] == chain.replicas
    assert grown.replicas[-1].state is PublicState.OFFLINE
    with pytest.raises(ValueError, match="already"):
        add_replica(grown, grown.replicas[-1])


@pytest.mark.parametrize("states", STATES)
def test_only_a_target_without_a_part_in_the_chain_is_removed(
    states: tuple[PublicState, ...],
) -> None:
    chain = make(*states)
    for replica in chain.replicas:
        if replica.state in (PublicState.OFFLINE, PublicState.WAITING):
            left = remove_replica(chain, replica.target)
            assert violation(left) is None
            assert left.version == chain.version + 1
            assert left.serving == chain.serving
            assert [r for r in chain.replicas if r != replica] == list(left.replicas)
        else:
            with pytest.raises(ValueError, match=replica.state.name):
                remove_replica(chain, replica.target)
    with pytest.raises(ValueError, match="not in it"):
        remove_replica(chain, TargetId(9))


@pytest.mark.parametrize("states", STATES)
def test_giving_up_the_last_that_served_makes_the_next_the_one_to_wait_for(
    states: tuple[PublicState, ...],
) -> None:
    chain = make(*states)
    if states[0] is not PublicState.LASTSRV or len(states) == 1:
        with pytest.raises(ValueError, match="LASTSRV"):
            give_up_last(chain)
        return
    turned = give_up_last(chain)
    assert violation(turned) is None
    assert turned.version == chain.version + 1
    assert targets(turned) == [*range(2, len(states) + 1), 1]
    assert [r.state for r in turned.replicas] == [
        PublicState.LASTSRV,
        *[PublicState.OFFLINE] * (len(states) - 1),
    ]
    back = next_chain(turned, {TargetId(2): LocalState.ONLINE})
    assert back.serving[0].target == 2


@pytest.mark.parametrize("states", STATES)
def test_nothing_is_moved_below_two_serving_or_without_a_preference(
    states: tuple[PublicState, ...],
) -> None:
    chain = make(*states)
    assert out_of_place(chain) is None
    for order in permutations(targets(chain)):
        wanted = set_preferred(chain, tuple(map(TargetId, order)))
        assert violation(wanted) is None
        assert wanted.replicas == chain.replicas
        moved = out_of_place(wanted)
        if moved is not None:
            assert len(chain.serving) >= 2
            assert moved in [r.target for r in chain.serving]
            others = {t: LocalState.UPTODATE for t in targets(chain) if t != moved}
            assert next_chain(wanted, {TargetId(t): s for t, s in others.items()}).serving


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rotation_reaches_every_preferred_order_and_moves_no_target_twice(size: int) -> None:
    for order in permutations(range(1, size + 1)):
        chain = make(*[PublicState.SERVING] * size, preferred=order)
        moved = []
        while (target := out_of_place(chain)) is not None:
            moved.append(target)
            chain = rotated(chain, target)
            assert len(moved) < size
        assert targets(chain) == list(order)
        assert len(set(moved)) == len(moved)


def rotated(chain: Chain, target: TargetId) -> Chain:
    """Out, synced, and back."""
    up = {r.target: LocalState.UPTODATE for r in chain.replicas}
    for state in (LocalState.OFFLINE, LocalState.ONLINE, LocalState.UPTODATE):
        chain = next_chain(chain, {**up, target: state})
        assert violation(chain) is None
        assert len(chain.serving) >= len(chain.replicas) - 1
    assert len(chain.serving) == len(chain.replicas)
    return chain


def test_targets_outside_the_preferred_order_go_behind_it() -> None:
    chain = replace(make(*[PublicState.SERVING] * 3), preferred=(TargetId(2), TargetId(3)))
    assert out_of_place(chain) == 1
    assert targets(rotated(chain, TargetId(1))) == [2, 3, 1]


def test_preferred_order_follows_what_joins_and_leaves() -> None:
    chain = make(PublicState.SERVING, PublicState.SERVING, PublicState.OFFLINE, preferred=(3, 1, 2))
    grown = add_replica(chain, Replica(TargetId(4), NodeId(4), PublicState.OFFLINE))
    assert grown.preferred == (3, 1, 2, 4)
    assert remove_replica(grown, TargetId(3)).preferred == (1, 2, 4)
    assert remove_replica(grown, TargetId(3), heir=TargetId(4)).preferred == (4, 1, 2)


@pytest.mark.parametrize("order", [(1, 2), (1, 1, 2), (1, 2, 9), (1, 2, 3, 3)])
def test_a_preferred_order_names_every_target_once(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="each once"):
        set_preferred(make(*[PublicState.SERVING] * 3), tuple(map(TargetId, order)))


def test_the_order_that_is_set_already_changes_nothing() -> None:
    chain = make(*[PublicState.SERVING] * 3, preferred=(1, 2, 3))
    assert set_preferred(chain, chain.preferred) is chain
    assert set_preferred(chain, ()).preferred == ()
