"""The routing snapshot: immutable, and moved only by updates that fit."""

import pytest

from fs3.errors import Code, Fs3Error
from fs3.routing import ChainTable, NodeInfo, Routing, RoutingDelta, TargetInfo, difference


def node(number, address="h:1"):
    return NodeInfo(
        node=number, host="h", data_address=address, control_address="", incarnation=1, alive=True
    )


FIRST = Routing().apply(
    RoutingDelta(
        from_version=0,
        version=3,
        nodes=(node(1), node(2, "[::1]:2")),
        targets=(TargetInfo(target=11, node=1), TargetInfo(target=21, node=2)),
        tables=(ChainTable(table=1, version=1, chains=(1, 2)),),
    )
)


def test_a_targets_address_is_its_nodes():
    assert FIRST.address_of(21) == "[::1]:2"


def test_an_unknown_target_and_an_unknown_chain_are_named():
    with pytest.raises(Fs3Error, match="target 99 is not in routing version 3") as caught:
        FIRST.address_of(99)
    assert caught.value.code is Code.NOT_SERVING
    with pytest.raises(Fs3Error, match="chain 7 is not in routing version 3") as caught:
        FIRST.chain(7)
    assert caught.value.code is Code.STALE_CHAIN


def test_an_update_leaves_the_old_snapshot_as_it_was():
    update = RoutingDelta(from_version=3, version=4, removed_targets=(11,), removed_nodes=(1,))
    second = FIRST.apply(update)
    assert (second.version, list(second.targets), list(second.nodes)) == (4, [21], [2])
    assert (FIRST.version, list(FIRST.targets)) == (3, [11, 21])
    with pytest.raises(TypeError):
        second.targets[5] = TargetInfo(target=5, node=2)


def test_an_update_that_does_not_fit_is_refused():
    with pytest.raises(Fs3Error, match="from version 5 to 6 does not fit version 3") as caught:
        FIRST.apply(RoutingDelta(from_version=5, version=6))
    assert caught.value.code is Code.STALE_CHAIN


def test_an_old_update_changes_nothing():
    assert FIRST.apply(RoutingDelta(from_version=2, version=3)) is FIRST


def test_a_full_update_may_go_back():
    # A manager that was restored from a backup knows less than its clients.
    assert FIRST.apply(RoutingDelta(from_version=0, version=1)) == Routing(version=1)


def test_the_difference_holds_only_what_changed():
    second = FIRST.apply(RoutingDelta(from_version=3, version=4, nodes=(node(2, "new:2"),)))
    delta = difference(FIRST, second)
    assert delta == RoutingDelta(from_version=3, version=4, nodes=(node(2, "new:2"),))


def test_a_table_that_is_gone_takes_a_full_update():
    without = Routing(version=5, nodes=FIRST.nodes)
    delta = difference(FIRST, without)
    assert delta.from_version == 0
    assert FIRST.apply(delta) == without
