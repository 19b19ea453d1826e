"""What the manager knows of its members only from hearing them, and forgets when it stops.

Of a target nobody has spoken of since this manager started, the manager assumes what its public
state lets it be: so a restart of the manager changes no chain. Only silence of a whole lease, or
word from the node, does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fs3.core.lease import NodeLeases
from fs3.core.types import Chain, ChainVersion, LocalState, NodeId, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.routing import Routing

_log = get_logger(__name__)
_RETIRED_MAX = 16  # replaced incarnations remembered, a node

_ASSUMED = {
    PublicState.SERVING: LocalState.UPTODATE,
    PublicState.LASTSRV: LocalState.OFFLINE,
    PublicState.SYNCING: LocalState.ONLINE,
    PublicState.WAITING: LocalState.UPTODATE,  # keeps it waiting; ONLINE would let it sync
    PublicState.OFFLINE: LocalState.OFFLINE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a storageserver says of one of its targets."""

    target: TargetId
    local_state: LocalState
    chain_version: ChainVersion  # that this is about; 0: in no chain
    capacity_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    chunks: int = 0
    problem: str = ""  # why it is OFFLINE, if not by plan
    sync_done_chunks: int = 0
    sync_total_chunks: int = 0
    resync_bytes_per_s: int = 0


class Members:
    """Leases, local states and last reports. Guarded by the manager's lock; reports may be read."""

    def __init__(self, lease_ms: int, started_ms: int) -> None:
        self.leases = NodeLeases(lease_ms, started_ms)
        self.local: dict[TargetId, LocalState] = {}
        self.reports: dict[NodeId, tuple[Report, ...]] = {}
        self._sequence: dict[NodeId, int] = {}
        self._retired: dict[NodeId, deque[int]] = {}
        self._awake_ms = started_ms  # when awake() was called last
        self._asleep_ms = lease_ms // 2  # it comes much more often, unless this process is stopped

    def awake(self, now_ms: int) -> None:
        """Before anything is heard or concluded: a large gap shows that nobody could be heard."""
        gap_ms, self._awake_ms = now_ms - self._awake_ms, now_ms
        if gap_ms > self._asleep_ms:
            self.leases.slept(gap_ms)
            _log.warning("manager_slept", span_ms=gap_ms)

    def retire(self, node: NodeId, incarnation: int) -> None:
        """The process of that incarnation is dead: what it still says is not heard."""
        self._retired.setdefault(node, deque(maxlen=_RETIRED_MAX)).append(incarnation)
        self._sequence.pop(node, None)
        self.reports.pop(node, None)

    def is_retired(self, node: NodeId, incarnation: int) -> bool:
        """Was this incarnation replaced by a later one?"""
        return incarnation in self._retired.get(node, ())

    def hear(self, node: NodeId, sequence: int, reports: tuple[Report, ...], now_ms: int) -> None:
        """Take a heartbeat; Fs3Error STALE_UPDATE if a later one was heard before."""
        last = self._sequence.get(node, 0)
        if sequence <= last:
            raise Fs3Error(
                Code.STALE_UPDATE,
                f"heartbeat {sequence} of node {node} came after heartbeat {last}",
            )
        self._sequence[node] = sequence
        self.reports[node] = reports
        self.leases.heard(node, now_ms)

    def local_states(self, chain: Chain) -> dict[TargetId, LocalState]:
        """What :func:`fs3.core.chain.next_chain` takes."""
        return {r.target: self.local.get(r.target, _ASSUMED[r.state]) for r in chain.replicas}

    def report_of(self, node: NodeId, target: TargetId) -> Report | None:
        """The last report of ``target`` that ``node`` sent."""
        return next((r for r in self.reports.get(node, ()) if r.target == target), None)


def check_reports(reports: Iterable[Report]) -> dict[TargetId, Report]:
    """The reports by target; Fs3Error INVALID if one appears twice."""
    by_target: dict[TargetId, Report] = {}
    for report in reports:
        if report.target in by_target:
            raise Fs3Error(Code.INVALID, f"target {report.target} is reported twice")
        by_target[report.target] = report
    return by_target


def space(
    routing: Routing, table: int, reports: Mapping[NodeId, tuple[Report, ...]]
) -> tuple[int, int]:
    """Bytes that users of this chain table can store, and have free.

    A chain holds what its smallest replica does.
    """
    by_target = {report.target: report for said in list(reports.values()) for report in said}
    capacity = free = 0
    for number in routing.tables[table].chains if table in routing.tables else ():
        chain = routing.chains[number]
        known = [by_target[r.target] for r in chain.replicas if r.target in by_target]
        known = [report for report in known if report.local_state is not LocalState.OFFLINE]
        if known:
            capacity += min(report.capacity_bytes for report in known)
            free += min(report.free_bytes for report in known)
    return capacity, free
