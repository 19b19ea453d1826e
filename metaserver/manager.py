"""The cluster manager: heartbeats in, routing out. The shell of core/chain.py and core/lease.py.

One lock makes each decision whole: what a heartbeat says, the chains that follow from it, and the
leases that are granted for them. Within it the order is fixed:

1. take what was heard;
2. work out the new chains;
3. make them durable;
4. publish them, and grant leases that name them.

Nothing that names a chain version leaves before that version is durable, or a manager that
restarts could give the same version to another chain. If step 3 fails nothing is published, the
step is repeated at the next tick, and the rows are read again first: they may have been written.

A target is taken out at once on its own word: it says it is OFFLINE, or its node registers with a
new incarnation (a storageserver locks its directories, so the process before it is dead). Without
its word, be its node silent or an operator's order given, only after the last lease granted for it
has surely run out. A third reason of that kind are neighbours in a chain that do not reach each
other (core/reach.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from fs3.clock import Clock
from fs3.core.chain import next_chain, violation
from fs3.core.reach import Cuts
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    LocalState,
    NodeId,
    PublicState,
    TargetId,
)
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.routing import ChainTable, NodeInfo, Routing, TargetInfo

from .manager_draft import describe, put, targets_of
from .manager_feed import RoutingFeed
from .manager_jobs import View, Work, drained_nodes
from .manager_members import Members, Report, check_reports
from .manager_placement import REPLICAS_MAX, FreeTarget, place, what_is_missing
from .manager_store import ClusterState, ClusterStore
from .settings import ManagerSettings

_log = get_logger(__name__)
_LEASED = (PublicState.SERVING, PublicState.SYNCING)


class Grant(NamedTuple):
    """The answer to a heartbeat: which targets may serve, and at which chain version."""

    leases: tuple[tuple[TargetId, ChainVersion], ...]
    routing_version: int


class NodeStatus(NamedTuple):
    """A node as ``GetStatus`` shows it. Age since the manager's start if it was not heard yet."""

    node: NodeInfo
    heartbeat_age_ms: int
    reports: tuple[Report, ...]
    unreachable: tuple[NodeId, ...]  # who does not answer it


class Manager:
    """Owns membership. Any thread may call."""

    def __init__(self, store: ClusterStore, clock: Clock, settings: ManagerSettings) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below but the feed
        self._state = store.load()
        self.feed = RoutingFeed(self._state.routing, settings.history)
        started_ms = clock.monotonic_ms()
        self._members = Members(settings.lease_ms, started_ms)
        self._cuts = Cuts(started_ms)
        self._in_doubt = False  # the last save failed: what is stored is not known
        # Chains to look at, with the reason; kept until what follows is durable.
        self._touched: dict[ChainId, str] = {}
        # Targets an operator took out: from when on the lease that they may have is surely over.
        self._held_until_ms: dict[TargetId, int] = {}
        self._waits_for: Mapping[int, str] = {}
        self._view = View(free=self._free_targets, report=self._report_of, moves=settings.moves)

    # What storageservers say.

    def register(self, node: NodeInfo, reports: Sequence[Report]) -> None:
        """A storageserver has started, or found that this manager does not know it.

        Fs3Error INVALID for what can never be, NOT_READY for what may pass with time.
        """
        with self._locked():
            now_ms = self._clock.monotonic_ms()
            routing = self._state.routing
            by_target = check_reports(reports)
            self._check_registration(node, by_target, now_ms)
            old = routing.nodes.get(node.node)
            targets = [TargetInfo(target=t, node=node.node) for t in by_target]
            targets = [t for t in targets if self._is_new(t)]
            draft = put(routing, nodes=[replace(node, alive=True)], targets=targets)
            held = dict(self._state.held)
            if old is not None and old.incarnation != node.incarnation:
                self._members.retire(node.node, old.incarnation)
                self._cuts.forget(node.node, now_ms)
                reason = f"node {node.node} started anew"
                mine = targets_of(draft, node.node)
                for target in mine:
                    # Whatever it claims: a process that just started has missed what it has missed.
                    self._set_local(draft, target, LocalState.OFFLINE, reason)
                held = {target: why for target, why in held.items() if target not in mine}
            else:
                self._accept(draft, node.node, by_target)
            self._members.reports[node.node] = tuple(reports)
            self._members.leases.heard(node.node, now_ms)
            self._settle(self._state._replace(routing=draft, held=held), now_ms)
        _log.info(
            "node_registered",
            node=node.node,
            host=node.host,
            address=node.data_address,
            incarnation=f"{node.incarnation:016x}",
            targets=sorted(by_target),
        )

    def heartbeat(
        self,
        node: NodeId,
        incarnation: int,
        sequence: int,
        reports: Sequence[Report],
        unreachable: Sequence[NodeId] = (),
    ) -> Grant:
        """``unreachable``: nodes that share a chain with it and do not answer it.

        Fs3Error UNKNOWN_NODE: register first. STALE_UPDATE: a later heartbeat was heard."""
        with self._locked():
            now_ms = self._clock.monotonic_ms()
            routing = self._state.routing
            known = routing.nodes.get(node)
            if known is None or known.incarnation != incarnation:
                raise Fs3Error(
                    Code.UNKNOWN_NODE,
                    f"node {node} with incarnation {incarnation:016x} is not registered",
                )
            by_target = check_reports(reports)
            self._members.hear(node, sequence, tuple(reports), now_ms)
            self._cuts.say(node, unreachable)
            draft = routing
            if not known.alive:
                draft = put(routing, nodes=[replace(known, alive=True)])
                self._cuts.forget(node, now_ms)
                _log.info("node_returned", node=node)
            self._accept(draft, node, by_target)
            self._settle(self._state._replace(routing=draft), now_ms)
            return Grant(self._leases(node), self._state.routing.version)

    def tick(self) -> None:
        """Look whose lease ran out. To be called every few hundred milliseconds at least."""
        with self._locked():
            self._settle(self._state, self._clock.monotonic_ms())

    # What operators order.

    def create_chains(
        self, replicas: int, table: int, only: frozenset[TargetId] = frozenset()
    ) -> None:
        """Chains out of the targets that are in none, added to ``table``; none left: no change.

        ``only``: out of these alone, if any are named, and of all of them: chains that were made
        while one of them was still opening would leave it out for good. Fs3Error NOT_READY until
        each of them is free or in a chain, and if there is no table and too few are free.
        """
        if not 1 <= replicas <= REPLICAS_MAX:
            raise Fs3Error(
                Code.INVALID, f"{replicas} replicas are not allowed: 1 to {REPLICAS_MAX} are"
            )
        with self._locked():
            routing = self._state.routing
            # Its replicas serve at once, so what a target held of an older chain must be gone.
            free = [f for f in self._free_targets() if not self._chunks_of(f.target)]
            free = [f for f in free if f.target in only or not only]
            self._refuse_unready(only, free)
            first = ChainId(max(routing.chains, default=0) + 1)
            hosts = len({node.host for node in routing.nodes.values()})
            made = place(free, replicas, hosts, first, list(routing.chains.values()))
            if not made:
                if table not in routing.tables:
                    raise Fs3Error(Code.NOT_READY, what_is_missing(free, replicas, hosts))
                return
            old = routing.tables.get(table, ChainTable(table=table, version=0, chains=()))
            chains = (*old.chains, *(chain.chain for chain in made))
            draft = put(
                routing,
                chains=made,
                targets=[
                    replace(routing.targets[replica.target], chain=chain.chain)
                    for chain in made
                    for replica in chain.replicas
                ],
                tables=[ChainTable(table=table, version=old.version + 1, chains=chains)],
            )
            self._commit(self._state._replace(routing=draft))
        for chain in made:
            _log.info("chain_created", table=table, **describe(chain))

    def offline_targets(self, targets: Sequence[TargetId], reason: str, force: bool) -> None:
        """Take ``targets`` out until their nodes start anew: no lease from now on.

        They leave their chains when the leases they may have are over. Fs3Error INVALID if a chain
        would be left without a serving replica and ``force`` is not set.
        """
        with self._locked():
            now_ms = self._clock.monotonic_ms()
            routing = self._state.routing
            gone = {*self._state.held, *targets}
            for target in targets:
                if target not in routing.targets:
                    raise Fs3Error(Code.INVALID, f"target {target} is not known")
                chain = routing.chains.get(routing.targets[target].chain)
                last = chain is not None and all(r.target in gone for r in chain.serving)
                if chain is not None and last and not force:
                    raise Fs3Error(
                        Code.INVALID,
                        f"without target {target} nobody serves chain {chain.chain}; force it",
                    )
            held = {**self._state.held, **{t: reason or "an operator's order" for t in targets}}
            self._commit(self._state._replace(held=held))  # from here on no lease names them
            self._settle(self._state, now_ms)
        _log.warning("targets_ordered_offline", targets=list(targets), reason=reason, force=force)

    def order(self, change: Callable[[ClusterState, View], ClusterState]) -> None:
        """What ``change`` makes of the state, and what follows: durable when this returns.

        ``change`` is called with the lock held. An Fs3Error that it raises changes nothing.
        """
        with self._locked():
            new = change(self._state, self._view)
            for chain_id, chain in new.routing.chains.items():
                if self._state.routing.chains.get(chain_id) != chain:
                    self._touched[chain_id] = "an operator's order"
            self._settle(new, self._clock.monotonic_ms())

    # What anybody may ask. Nothing waits for the lock.

    @property
    def state(self) -> ClusterState:
        """What was made durable last."""
        return self._state

    @property
    def view(self) -> View:
        """What jobs are decided on, beside that."""
        return self._view

    @property
    def waits_for(self) -> Mapping[int, str]:
        """Why jobs do not go on, of those that do not."""
        return self._waits_for

    def status(self) -> list[NodeStatus]:
        """Every node with what it said last."""
        now_ms = self._clock.monotonic_ms()
        members = self._members
        return [
            NodeStatus(
                info,
                max(0, now_ms - members.leases.heard_ms(info.node)),
                members.reports.get(info.node, ()),
                self._cuts.said_by(info.node, now_ms),
            )
            for info in self.feed.current.nodes.values()
        ]

    @property
    def reports(self) -> Mapping[NodeId, tuple[Report, ...]]:
        """The last reports of every node, to be read only."""
        return self._members.reports

    # The steps of a decision. The lock is held.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            self._members.awake(self._clock.monotonic_ms())
            if self._in_doubt:
                self._state = self._store.load()
                self._in_doubt = False
                if self._state.routing.version != self.feed.current.version:
                    self.feed.publish(self._state.routing)
            yield

    def _accept(self, routing: Routing, node: NodeId, said: Mapping[TargetId, Report]) -> None:
        """Take over what ``node`` says of its targets; of one it does not mention: OFFLINE."""
        for target in targets_of(routing, node):
            report = said.get(target)
            chain = routing.chains.get(routing.targets[target].chain)
            if report is None or report.local_state is LocalState.OFFLINE:
                why = "is not there" if report is None else report.problem or "is offline"
                state, reason = LocalState.OFFLINE, f"node {node} says that target {target} {why}"
            elif target in self._state.held:
                continue
            elif chain is not None and report.chain_version != chain.version:
                continue  # it speaks of a chain that is no more
            else:
                state = report.local_state
                reason = f"target {target} is {state.name}"
            self._set_local(routing, target, state, reason)

    def _set_local(
        self, routing: Routing, target: TargetId, state: LocalState, reason: str
    ) -> None:
        if self._members.local.get(target) is not state:
            self._members.local[target] = state
            chain = routing.targets[target].chain
            if chain:
                self._touched[chain] = reason

    def _settle(self, draft: ClusterState, now_ms: int) -> None:
        """Steps 2 to 4: everything that follows at ``now_ms`` from what is known."""
        routing = self._expire(draft.routing, now_ms)
        for node in sorted(self._cuts.settle(now_ms)):
            self._touch(routing, node, "nodes that do not reach each other")
        for target, why in draft.held.items():
            ended_ms = self._members.leases.ended_ms(routing.targets[target].node)
            if now_ms >= self._held_until_ms.setdefault(target, ended_ms):
                reason = f"target {target} was ordered offline: {why}"
                self._set_local(routing, target, LocalState.OFFLINE, reason)
        changed = self._next_chains(routing, now_ms)
        work = Work(put(routing, chains=changed), draft.held, draft.jobs, self._view)
        work.run(frozenset(chain.chain for chain in changed))
        self._take_in(work)
        new, old = ClusterState(work.routing, work.held, work.jobs), self._state
        if new.routing is not old.routing or new[1:] != old[1:]:
            self._commit(new)
        self._held_until_ms = {t: ms for t, ms in self._held_until_ms.items() if t in work.held}
        self._waits_for = work.waits_for
        # A chain that moved may move again: it is looked at once more, at the next tick.
        reasons = {chain.chain: self._touched[chain.chain] for chain in changed}
        reasons |= {chain: f"job {number}" for chain, number in work.changed.items()}
        for chain, reason in reasons.items():
            _log.info("chain_changed", reason=reason, **describe(work.routing.chains[chain]))
        self._touched = reasons

    def _take_in(self, work: Work) -> None:
        """What joined a chain may be emptied first: it syncs when it has said that it is ready."""
        for chain in work.changed:
            for replica in work.routing.chains[chain].replicas:
                if not self._state.routing.targets[replica.target].chain:
                    self._members.local[replica.target] = LocalState.OFFLINE

    def _expire(self, draft: Routing, now_ms: int) -> Routing:
        dead = [
            info
            for info in draft.nodes.values()
            if info.alive and self._members.leases.expired(info.node, now_ms)
        ]
        for info in dead:
            silent_ms = now_ms - self._members.leases.heard_ms(info.node)
            reason = f"node {info.node} was not heard for {silent_ms} ms"
            _log.warning("node_lost", node=info.node, host=info.host, silent_ms=silent_ms)
            for target in targets_of(draft, info.node):
                self._set_local(draft, target, LocalState.OFFLINE, reason)
            self._cuts.forget(info.node, now_ms)
        return put(draft, nodes=[replace(info, alive=False) for info in dead]) if dead else draft

    def _touch(self, routing: Routing, node: NodeId, reason: str) -> None:
        """The chains that have a target of ``node`` must be looked at."""
        for target in targets_of(routing, node):
            chain = routing.targets[target].chain
            if chain:
                self._touched.setdefault(chain, reason)

    def _next_chains(self, routing: Routing, now_ms: int) -> list[Chain]:
        changed = []
        for chain_id in self._touched:
            chain = routing.chains[chain_id]
            local = self._cuts.local_states(
                chain, self._members.local_states(chain), now_ms, self._members.leases.ended_ms
            )
            new = next_chain(chain, local)
            problem = violation(new)
            if problem is not None:
                raise AssertionError(f"chain {chain_id} would be {problem}: {chain} -> {new}")
            if new is not chain:
                changed.append(new)
        return changed

    def _commit(self, draft: ClusterState) -> None:
        """Steps 3 and 4. However many steps made the draft, it is one version more."""
        old = self._state
        changed = draft.routing is not old.routing
        version = old.routing.version + 1
        new = draft._replace(routing=replace(draft.routing, version=version)) if changed else draft
        self._in_doubt = True
        self._store.save(old, new)
        self._in_doubt = False
        self._state = new
        if changed:
            self.feed.publish(new.routing)

    def _leases(self, node: NodeId) -> tuple[tuple[TargetId, ChainVersion], ...]:
        routing = self._state.routing
        leases = []
        for target in targets_of(routing, node):
            chain = routing.chains.get(routing.targets[target].chain)
            replica = chain.replica(target) if chain is not None else None
            if chain is None or replica is None or target in self._state.held:
                continue
            if replica.state in _LEASED and not self._cuts.is_leaving(target):
                leases.append((target, chain.version))
        return tuple(leases)

    def _check_registration(
        self, node: NodeInfo, said: Mapping[TargetId, Report], now_ms: int
    ) -> None:
        if not node.incarnation:
            raise Fs3Error(Code.INVALID, f"node {node.node} registers without an incarnation")
        if self._members.is_retired(node.node, node.incarnation):
            raise Fs3Error(
                Code.UNKNOWN_NODE,
                f"node {node.node} with incarnation {node.incarnation:016x} was replaced by a"
                " process that started later; two processes must not have one node id",
            )
        routing = self._state.routing
        old = routing.nodes.get(node.node)
        other = old is not None and old.alive and old.incarnation != node.incarnation
        if old is not None and other and old.host != node.host:
            raise Fs3Error(
                Code.NOT_READY,
                f"node {node.node} is alive on host {old.host!r}; from {node.host!r} it may"
                f" register once its lease is over, in {self._ended_in_ms(old.node, now_ms)} ms",
            )
        for target in said:
            known = routing.targets.get(target)
            if known is not None and known.node != node.node and known.chain:
                raise Fs3Error(
                    Code.INVALID,
                    f"target {target} belongs to node {known.node} and chain {known.chain};"
                    f" node {node.node} cannot have it",
                )

    def _ended_in_ms(self, node: NodeId, now_ms: int) -> int:
        return max(0, self._members.leases.ended_ms(node) - now_ms)

    def _is_new(self, info: TargetInfo) -> bool:
        known = self._state.routing.targets.get(info.target)
        return known is None or known.node != info.node

    def _free_targets(self) -> list[FreeTarget]:
        """Those in no chain that are open, and on a living node that is not drained."""
        routing = self._state.routing
        drained = drained_nodes(self._state.jobs)
        free = []
        for info in routing.targets.values():
            node = routing.nodes[info.node]
            report = self._members.report_of(info.node, info.target)
            is_open = self._members.local.get(info.target) in (
                LocalState.ONLINE,
                LocalState.UPTODATE,
            )
            if info.chain or not node.alive or not is_open or report is None:
                continue
            if info.node in drained or info.target in self._state.held:
                continue
            free.append(FreeTarget(info.target, info.node, node.host))
        return free

    def _refuse_unready(self, wanted: frozenset[TargetId], free: Sequence[FreeTarget]) -> None:
        known = self._state.routing.targets
        in_chains = {target for target in wanted if target in known and known[target].chain}
        if unready := sorted(wanted - in_chains - {item.target for item in free}):
            names = ", ".join(map(str, unready))
            raise Fs3Error(
                Code.NOT_READY,
                f"targets {names} are not open and empty on a living node that is not drained",
            )

    def _report_of(self, target: TargetId) -> Report | None:
        info = self._state.routing.targets.get(target)
        return self._members.report_of(info.node, target) if info is not None else None

    def _chunks_of(self, target: TargetId) -> int:
        report = self._report_of(target)
        return report.chunks if report is not None else 0
