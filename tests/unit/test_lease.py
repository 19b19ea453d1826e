"""Leases: what a node may believe and a manager may conclude never overlap."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.core.lease import DRIFT_PER_MILLE, NodeLeases, TargetLease, sure_end_ms
from fs3.core.types import ChainVersion, NodeId, TargetId

NODE, TARGET = NodeId(1), TargetId(11)
LEASE_MS = 3000


def lease(version: int = 5, sent_ms: int = 1000) -> TargetLease:
    return TargetLease.granted(TARGET, ChainVersion(version), sent_ms, LEASE_MS)


def test_lease_counts_from_when_the_heartbeat_was_sent():
    assert lease(sent_ms=1000).allows(ChainVersion(5), 3999)
    assert not lease(sent_ms=1000).allows(ChainVersion(5), 4000)


def test_target_behind_the_leased_chain_version_must_not_serve():
    assert not lease(version=5).allows(ChainVersion(4), 1001)


def test_target_ahead_of_the_leased_chain_version_goes_on():
    assert lease(version=5).allows(ChainVersion(6), 1001)


def test_node_expires_only_after_lease_and_drift_margin():
    leases = NodeLeases(LEASE_MS, started_ms=0)
    leases.heard(NODE, 10_000)
    assert not leases.expired(NODE, 10_000 + LEASE_MS)
    assert not leases.expired(NODE, 10_000 + sure_end_ms(LEASE_MS) - 1)
    assert leases.expired(NODE, 10_000 + sure_end_ms(LEASE_MS))


def test_heartbeats_out_of_order_never_shorten_a_lease():
    leases = NodeLeases(LEASE_MS, started_ms=0)
    leases.heard(NODE, 10_000)
    leases.heard(NODE, 9_000)
    assert leases.heard_ms(NODE) == 10_000


def test_manager_that_just_started_declares_nobody_dead_for_a_whole_lease():
    leases = NodeLeases(LEASE_MS, started_ms=50_000)
    assert not leases.has_heard(NODE)
    assert leases.bootstrapping(50_000 + LEASE_MS)
    assert not leases.expired(NODE, 50_000 + LEASE_MS)
    assert not leases.bootstrapping(50_000 + sure_end_ms(LEASE_MS))
    assert leases.expired(NODE, 50_000 + sure_end_ms(LEASE_MS))


def test_time_in_which_the_manager_was_stopped_is_no_silence():
    leases = NodeLeases(LEASE_MS, started_ms=0)
    leases.heard(NODE, 1_000)
    leases.slept(60_000)
    leases.slept(500)
    assert not leases.expired(NODE, 1_000 + 60_500 + sure_end_ms(LEASE_MS) - 1)
    assert leases.expired(NODE, 1_000 + 60_500 + sure_end_ms(LEASE_MS))
    assert leases.ended_ms(NODE) == 1_000 + sure_end_ms(LEASE_MS)  # what it was granted is over
    leases.heard(NODE, 70_000)
    assert leases.expired(NODE, 70_000 + sure_end_ms(LEASE_MS))


def test_forgotten_node_counts_as_never_heard():
    leases = NodeLeases(LEASE_MS, started_ms=0)
    leases.heard(NODE, 10_000)
    leases.forget(NODE)
    assert not leases.has_heard(NODE)
    assert leases.expired(NODE, 10_000)


def test_lease_must_be_positive():
    with pytest.raises(ValueError, match="0 ms"):
        NodeLeases(0, started_ms=0)


# True time is in microseconds; each clock shows floor((true * rate + offset) / 1000) milliseconds.
# The rates lie so that the faster is at most DRIFT_PER_MILLE faster than the slower.
rates = st.integers(10_000, 10_000 + 10 * DRIFT_PER_MILLE).map(lambda n: Fraction(n, 10_000))


@given(
    node_rate=rates,
    manager_rate=rates,
    node_offset=st.integers(0, 10**9),
    manager_offset=st.integers(0, 10**9),
    sent_us=st.integers(0, 10**10),
    delay_us=st.integers(0, 10**7),
    later_us=st.integers(0, 2 * 10**7),
    lease_ms=st.integers(1, 60_000),
)
def test_node_never_serves_after_the_manager_concluded_that_it_cannot(
    node_rate,
    manager_rate,
    node_offset,
    manager_offset,
    sent_us,
    delay_us,
    later_us,
    lease_ms,
):
    def node_ms(true_us: int) -> int:
        return int(true_us * node_rate + node_offset) // 1000

    def manager_ms(true_us: int) -> int:
        return int(true_us * manager_rate + manager_offset) // 1000

    received_us = sent_us + delay_us
    held = TargetLease.granted(TARGET, ChainVersion(1), node_ms(sent_us), lease_ms)
    leases = NodeLeases(lease_ms, started_ms=0)
    leases.heard(NODE, manager_ms(received_us))
    now_us = received_us + later_us
    if leases.expired(NODE, manager_ms(now_us)):
        assert not held.allows(ChainVersion(1), node_ms(now_us))


def test_a_wait_of_the_bare_lease_would_be_too_short_for_a_slow_node_clock():
    """What the drift margin is for: one percent slower, and the node still serves."""
    slow_node_ms = LEASE_MS * 1000 // (1000 + DRIFT_PER_MILLE)  # shown when LEASE_MS have passed
    assert lease(sent_ms=0).allows(ChainVersion(5), slow_node_ms)
    assert sure_end_ms(LEASE_MS) * 1000 // (1000 + DRIFT_PER_MILLE) >= LEASE_MS
