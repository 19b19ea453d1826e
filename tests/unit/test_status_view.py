"""What ``fs3 status`` makes of what it is told."""

from __future__ import annotations

from dataclasses import replace

from fs3.client.administration import ClusterStatus, TargetStatus
from fs3.client.cli.status_view import as_dict
from fs3.core.types import LocalState, NodeId, PublicState, TargetId

GIB = 1 << 30
TARGET = TargetStatus(
    target=TargetId(101),
    node=NodeId(1),
    chain=1,
    public_state=PublicState.SERVING,
    local_state=LocalState.UPTODATE,
    capacity_bytes=10 * GIB,
    used_bytes=2 * GIB,
    free_bytes=8 * GIB,
    chunks=1,
    sync_done_chunks=0,
    sync_total_chunks=0,
    resync_bytes_per_s=0,
    problem="",
)


def capacity(*targets: TargetStatus) -> tuple[int, int]:
    """What of them can be stored, and is, in GiB."""
    status = ClusterStatus(
        cluster_id="c", routing_version=1, clients=0, nodes=(), targets=targets, chains=()
    )
    found = as_dict(status)["capacity"]
    return found["capacity_bytes"] // GIB, found["used_bytes"] // GIB


def test_replicas_count_once_also_where_chains_have_different_numbers_of_them():
    three = [replace(TARGET, target=TargetId(n)) for n in (101, 201, 301)]
    single = replace(TARGET, target=TargetId(103), chain=2, capacity_bytes=5 * GIB)
    assert capacity(*three, single) == (15, 4)


def test_a_chain_holds_what_its_smallest_target_does():
    small = replace(TARGET, target=TargetId(201), capacity_bytes=7 * GIB, used_bytes=GIB)
    assert capacity(TARGET, small) == (7, 2)


def test_targets_that_are_offline_or_in_no_chain_do_not_count():
    offline = replace(TARGET, target=TargetId(201), local_state=LocalState.OFFLINE)
    assert capacity(TARGET, replace(offline, capacity_bytes=0)) == (10, 2)
    assert capacity(replace(TARGET, chain=0, public_state=None)) == (0, 0)
