"""Operators' orders: checked against what stands, then handed to the manager as one change.

An order that can never be carried out is refused here. One that cannot be carried out now becomes a
job that waits, and says for what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fs3.clock import Clock
from fs3.core.chain import give_up_last, set_preferred
from fs3.core.types import Chain, ChainId, NodeId, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.jobs import Job, JobKind, JobProgress, Move
from fs3.routing import Routing

from .manager import Manager
from .manager_draft import put
from .manager_jobs import View, cancel, no_replacement, pending, replacement
from .manager_placement import REPLICAS_MAX
from .manager_store import ClusterState


class Orders:
    """What an operator may order, and how it stands. Any thread may call."""

    def __init__(self, manager: Manager, clock: Clock) -> None:
        self._manager = manager
        self._clock = clock

    # --- jobs ------------------------------------------------------------------------------------

    def add(self, chain: ChainId, new: TargetId) -> JobProgress:
        """``new`` (0: one that the manager chooses) becomes a replica of ``chain``."""
        return self._start(JobKind.ADD, chain, lambda s, v: _move_in(s, v, chain, TargetId(0), new))

    def remove(self, old: TargetId) -> JobProgress:
        """``old`` leaves its chain, and is free."""

        def moves(state: ClusterState, _: View) -> Move:
            chain = _chain_of(state, old)
            if not any(r.target != old for r in chain.serving):
                detail = f"nobody but target {old} serves chain {chain.chain}"
                raise Fs3Error(Code.INVALID, f"{detail}; add a target to it first")
            return Move(chain=chain.chain, old=old)

        return self._start(JobKind.REMOVE, None, moves)

    def replace(self, old: TargetId, new: TargetId) -> JobProgress:
        """``new`` (0: one that the manager chooses) takes the place of ``old`` in its chain."""

        def moves(state: ClusterState, view: View) -> Move:
            return _move_in(state, view, _chain_of(state, old).chain, old, new)

        return self._start(JobKind.REPLACE, None, moves)

    def drain(self, node: NodeId) -> JobProgress:
        """Every target of ``node`` is replaced by one elsewhere, and nothing is placed there."""

        def check(state: ClusterState, _: View) -> None:
            if node not in state.routing.nodes:
                known = ", ".join(str(n) for n in sorted(state.routing.nodes))
                raise Fs3Error(Code.INVALID, f"node {node} is not known; {known} are")
            for job in state.jobs.values():
                if job.is_open and job.kind is JobKind.DRAIN and job.subject == node:
                    detail = f"node {node} is being drained by job {job.number}"
                    raise Fs3Error(Code.BUSY, detail)

        return self._start(JobKind.DRAIN, node, check)

    def rotate(self, chain: ChainId) -> JobProgress:
        """``chain`` (0: every chain) comes into its preferred order, one target at a time."""

        def check(state: ClusterState, _: View) -> None:
            if chain and not _chain(state, chain).preferred:
                raise Fs3Error(Code.INVALID, f"chain {chain} has no preferred order; set one first")

        return self._start(JobKind.ROTATE, chain, check)

    def _start(
        self,
        kind: JobKind,
        subject: int | None,
        first: Callable[[ClusterState, View], Move | None],
    ) -> JobProgress:
        """``first`` checks, and returns the one move of a job that is one; ``subject`` None: its
        chain."""
        number = 0

        def change(state: ClusterState, view: View) -> ClusterState:
            nonlocal number
            move = first(state, view)
            if move is not None:
                _check_idle(state, move.chain)
            number = max(state.jobs, default=0) + 1
            job = Job(
                number=number,
                kind=kind,
                subject=move.chain if subject is None and move is not None else subject or 0,
                started_ns=self._clock.wall_ns(),
                moves=(move,) if move is not None else (),
            )
            return state._replace(jobs={**state.jobs, number: job})

        self._manager.order(change)
        return self.progress(number)

    def cancel(self, number: int) -> JobProgress:
        """What the job has begun is undone, or finished if it was about to be."""

        def change(state: ClusterState, _: View) -> ClusterState:
            if number not in state.jobs:
                raise Fs3Error(Code.NOT_FOUND, f"there is no job {number}")
            return cancel(state, number)

        self._manager.order(change)
        return self.progress(number)

    # --- orders that are done at once ------------------------------------------------------------

    def set_preferred(self, chain: ChainId, order: Sequence[TargetId]) -> Chain:
        """What :meth:`rotate` works towards. Nothing moves yet."""

        def change(found: Chain, _: ClusterState) -> Chain:
            return set_preferred(found, order)

        return self._change_chain(chain, change)

    def give_up_last(self, chain: ChainId, force: bool) -> Chain:
        """The chain no longer waits for the target that served last: what only it holds is lost."""

        def change(found: Chain, state: ClusterState) -> Chain:
            _check_idle(state, chain)
            new = give_up_last(found)
            if not force:
                raise Fs3Error(
                    Code.INVALID,
                    f"target {found.replicas[0].target} alone is known to hold every write of chain"
                    f" {chain}; what the others have missed would be lost: force it",
                )
            return new

        return self._change_chain(chain, change)

    def _change_chain(
        self, chain: ChainId, change: Callable[[Chain, ClusterState], Chain]
    ) -> Chain:
        def changed(state: ClusterState, _: View) -> ClusterState:
            found = _chain(state, chain)
            try:
                new = change(found, state)
            except ValueError as error:
                raise Fs3Error(Code.INVALID, str(error)) from None
            if new is found:
                return state
            return state._replace(routing=put(state.routing, chains=[new]))

        self._manager.order(changed)
        return self._manager.state.routing.chain(chain)

    # --- how they stand --------------------------------------------------------------------------

    def all(self) -> list[JobProgress]:
        """Every job that is kept, the oldest first."""
        return [self.progress(number) for number in sorted(self._manager.state.jobs)]

    def progress(self, number: int) -> JobProgress:
        """One job."""
        state, view = self._manager.state, self._manager.view
        job = state.jobs[number]
        ahead = pending(job, state.routing)
        done = total = job.bytes_done
        for move in job.moves if job.kind is not JobKind.ROTATE else ():
            moved, weight = _weigh(move, state.routing, view)
            done, total = done + moved, total + weight
        if job.kind is JobKind.DRAIN:
            total += sum(view.used_bytes(chain) for chain in ahead)
        moves = job.moves_done + len(job.moves) + len(ahead)
        share = done / total if total else job.moves_done / moves if moves else 0.0
        elapsed_ms = (self._clock.wall_ns() - job.started_ns) / 1e6
        estimate = max(0, round(elapsed_ms * (1 - share) / share)) if share else None
        waits = self._manager.waits_for.get(number, "") if job.is_open else ""
        return JobProgress(
            job=job,
            moves_total=moves,
            bytes_done=done,
            bytes_total=total,
            remaining_ms=estimate if job.is_open else 0,
            waits_for=waits,
        )


def _weigh(move: Move, routing: Routing, view: View) -> tuple[int, int]:
    """Bytes that are there, and bytes that a move brings."""
    chain = routing.chain(move.chain)
    new = chain.replica(move.new) if move.new else None
    weight = view.used_bytes(chain) if move.new else 0
    report = view.report(move.new) if new is not None else None
    if new is None or report is None:
        return 0, weight
    if new.state is PublicState.SERVING:
        return weight, weight
    # Before it syncs it may hold what is left of another chain.
    return min(report.used_bytes, weight) if new.state is PublicState.SYNCING else 0, weight


def _chain(state: ClusterState, chain: ChainId) -> Chain:
    if chain not in state.routing.chains:
        known = ", ".join(str(c) for c in sorted(state.routing.chains))
        raise Fs3Error(Code.INVALID, f"chain {chain} is not known; {known or 'none'} are")
    return state.routing.chains[chain]


def _chain_of(state: ClusterState, target: TargetId) -> Chain:
    info = state.routing.targets.get(target)
    if info is None:
        raise Fs3Error(Code.INVALID, f"target {target} is not known")
    if not info.chain:
        raise Fs3Error(Code.INVALID, f"target {target} is in no chain")
    return state.routing.chains[info.chain]


def _check_idle(state: ClusterState, chain: ChainId) -> None:
    for job in state.jobs.values():
        if job.is_open and any(move.chain == chain for move in job.moves):
            raise Fs3Error(
                Code.BUSY, f"chain {chain} is being changed by job {job.number}; wait or cancel it"
            )


def _move_in(
    state: ClusterState, view: View, chain_id: ChainId, old: TargetId, new: TargetId
) -> Move:
    """``new`` or the best free target comes in, for ``old`` if that is one."""
    chain = _chain(state, chain_id)
    if len(chain.replicas) >= REPLICAS_MAX:
        detail = f"chain {chain_id} has {len(chain.replicas)} replicas; more are not allowed"
        raise Fs3Error(Code.INVALID, detail)
    if not chain.serving:
        raise Fs3Error(Code.NOT_READY, f"nobody serves chain {chain_id}: no target can sync there")
    if new:
        _check_joins(view, chain, old, new)
    else:
        found = replacement(state.routing, state.jobs, view, chain, old)
        if found is None:
            raise Fs3Error(Code.NOT_READY, no_replacement(chain))
        new = found.target
    return Move(chain=chain_id, old=old, new=new)


def _check_joins(view: View, chain: Chain, old: TargetId, new: TargetId) -> None:
    free = {item.target: item for item in view.free()}
    if new not in free:
        allowed = ", ".join(str(t) for t in sorted(free)) or "none"
        raise Fs3Error(
            Code.INVALID,
            f"target {new} cannot join: it must be open, in no chain, and not on a drained node"
            f" ({allowed})",
        )
    beside = [r for r in chain.replicas if r.node == free[new].node and r.target != old]
    if beside:
        raise Fs3Error(
            Code.INVALID,
            f"target {new} is on node {free[new].node}, as target {beside[0].target} of chain"
            f" {chain.chain} is: replicas must be on different nodes",
        )
