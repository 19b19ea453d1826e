"""Working off jobs: what an operator ordered (fs3/jobs.py), one small step after the other.

Pure: what stands now in, what is to be made durable out. Every step is worked out anew from the
routing table, so it does not matter who did the one before, or when. The rules:

* A target joins a chain OFFLINE and syncs as any other; only when it serves does the old one go.
* A target that serves goes as one that an operator declares failed does: it gets no lease any more,
  and when the one it has is surely over the membership function takes it out. Then it leaves.
* The only target that serves a chain stays, whatever was ordered.
* One move at a time in a chain, and at most ``moves`` of them in the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fs3.core.chain import add_replica, out_of_place, remove_replica
from fs3.core.types import Chain, ChainId, LocalState, PublicState, Replica, TargetId
from fs3.jobs import Job, JobKind, JobState, Move
from fs3.routing import Routing

from .manager_draft import put
from .manager_members import Report
from .manager_placement import FreeTarget, choose
from .manager_store import ClusterState

_AWAY = (PublicState.OFFLINE, PublicState.WAITING)
CLOSED_MAX = 50  # jobs that are over and still listed


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What jobs are decided on, beside what is durable."""

    free: Callable[[], list[FreeTarget]]  # in no chain, open, on a living node that is not drained
    report: Callable[[TargetId], Report | None]
    moves: int  # at once, in the whole cluster

    def used_bytes(self, chain: Chain) -> int:
        """What a new replica of ``chain`` will hold."""
        said = (self.report(replica.target) for replica in chain.serving)
        return max((report.used_bytes for report in said if report is not None), default=0)


def mark(number: int) -> str:
    """Why a target is held that a job takes out."""
    return f"job {number}"


def drained_nodes(jobs: Mapping[int, Job]) -> set[int]:
    """Nodes on which nothing new is placed: whose drain runs, or is done and not cancelled."""
    return {
        job.subject
        for job in jobs.values()
        if job.kind is JobKind.DRAIN and job.state in (JobState.RUNNING, JobState.DONE)
    }


def pending(job: Job, routing: Routing) -> list[Chain]:
    """The chains that a drain or a rotation has not begun with."""
    begun = {move.chain for move in job.moves}
    if job.state is not JobState.RUNNING:
        return []
    if job.kind is JobKind.DRAIN:
        wanted = [c for c in routing.chains.values() if replica_on(c, job.subject) is not None]
    elif job.kind is JobKind.ROTATE:
        mine = [c for c in routing.chains.values() if job.subject in (0, c.chain)]
        wanted = [c for c in mine if out_of_place(c) is not None]
    else:
        wanted = []
    return [chain for chain in wanted if chain.chain not in begun]


def replica_on(chain: Chain, node: int) -> Replica | None:
    """The place of ``node`` in ``chain``."""
    return next((r for r in chain.replicas if r.node == node), None)


def replacement(
    routing: Routing, jobs: Mapping[int, Job], view: View, chain: Chain, old: TargetId
) -> FreeTarget | None:
    """The free target to take the place of ``old`` (0: to join) in ``chain``."""
    wanted_bytes = view.used_bytes(chain)
    promised = {move.new for job in jobs.values() if job.is_open for move in job.moves}
    large = []
    for item in view.free():
        report = view.report(item.target)
        if item.target in promised or report is None or routing.targets[item.target].chain:
            continue
        if report.capacity_bytes >= wanted_bytes:
            large.append(item)
    host_of = {info.node: info.host for info in routing.nodes.values()}
    staying = [r for r in chain.replicas if r.target != old]
    return choose(large, staying, host_of, routing.chains.values())


class Work:
    """One round over all jobs. Read the attributes after :meth:`run`."""

    def __init__(
        self, routing: Routing, held: Mapping[TargetId, str], jobs: Mapping[int, Job], view: View
    ) -> None:
        self.routing = routing
        self.held = dict(held)
        self.jobs = dict(jobs)
        self.changed: dict[ChainId, int] = {}  # by which job
        self.waits_for: dict[int, str] = {}
        self._view = view
        self._settling: frozenset[ChainId] = frozenset()

    def run(self, settling: frozenset[ChainId]) -> None:
        """Each open job one step. Chains that are ``settling`` change otherwise just now."""
        self._settling = settling
        for number in sorted(self.jobs):
            if self.jobs[number].is_open:
                self._work_on(number)
        self._forget_closed()

    def _work_on(self, number: int) -> None:
        for move in self.jobs[number].moves:
            if move.chain in self._settling or move.chain in self.changed:
                continue
            chain = self.routing.chains[move.chain]
            weight = self._view.used_bytes(chain) if move.new else 0
            if self._step(self.jobs[number], move, chain):
                job = self.jobs[number]
                self.jobs[number] = replace(
                    job,
                    moves=tuple(m for m in job.moves if m != move),
                    moves_done=job.moves_done + 1,
                    bytes_done=job.bytes_done + weight,
                )
        self._begin_moves(number)
        job = self.jobs[number]
        if not job.moves and not pending(job, self.routing):
            running = job.state is JobState.RUNNING
            state = JobState.DONE if running else JobState.CANCELLED
            self.jobs[number] = replace(job, state=state)

    # --- moves -----------------------------------------------------------------------------------

    def _begin_moves(self, number: int) -> None:
        busy = {m.chain for job in self.jobs.values() if job.is_open for m in job.moves}
        for chain in pending(self.jobs[number], self.routing):
            if len(busy) >= self._view.moves:
                return
            if chain.chain in self._settling or chain.chain in self.changed:
                continue
            if chain.chain in busy:
                self._wait(number, f"chain {chain.chain} is being changed by another job")
                continue
            move = self._new_move(self.jobs[number], chain)
            if move is not None:
                busy.add(chain.chain)
                job = self.jobs[number]
                self.jobs[number] = replace(job, moves=(*job.moves, move))
                self._step(self.jobs[number], move, chain)

    def _new_move(self, job: Job, chain: Chain) -> Move | None:
        if job.kind is JobKind.ROTATE:
            return Move(chain=chain.chain)
        old = replica_on(chain, job.subject)
        assert old is not None, f"chain {chain.chain} is pending, but not on node {job.subject}"
        new = replacement(self.routing, self.jobs, self._view, chain, old.target)
        if new is None:
            self._wait(job.number, no_replacement(chain))
            return None
        return Move(chain=chain.chain, old=old.target, new=new.target)

    def _step(self, job: Job, move: Move, chain: Chain) -> bool:
        """True when the move is over."""
        if not move.old and not move.new:
            return self._rotate(job, chain)
        if move.new:
            new = chain.replica(move.new)
            if new is None:
                self._bring_in(job, move, chain)
                return False
            if new.state is not PublicState.SERVING:
                self._release(job, move.old)
                self._wait_for(job, chain, new)
                return False
        old = chain.replica(move.old)
        return old is None or self._take_out(job, move, chain, old)

    def _bring_in(self, job: Job, move: Move, chain: Chain) -> None:
        found = next((f for f in self._view.free() if f.target == move.new), None)
        if found is None or self.routing.targets[move.new].chain:
            self._wait(job.number, f"target {move.new} is not free, or not open")
            return
        new = Replica(found.target, found.node, PublicState.OFFLINE)
        self._put(job, add_replica(chain, new), found.target, chain.chain)

    def _take_out(self, job: Job, move: Move, chain: Chain, old: Replica) -> bool:
        others = [r for r in chain.serving if r.target not in (old.target, *self.held)]
        if not others:
            self._release(job, old.target)
            self._wait(job.number, f"nobody but target {old.target} serves chain {chain.chain}")
            return False
        if old.state in _AWAY:
            self._release(job, old.target)
            left = remove_replica(chain, old.target, move.new or None)
            self._put(job, left, old.target, ChainId(0))
            return True
        self.held.setdefault(old.target, mark(job.number))
        return False

    def _rotate(self, job: Job, chain: Chain) -> bool:
        """Hold one; let it come back when it is out; once all serve, the next."""
        held = [r for r in chain.replicas if self.held.get(r.target) == mark(job.number)]
        for replica in held:
            if replica.state is not PublicState.SERVING or len(chain.serving) < 2:
                self._release(job, replica.target)
        if held:
            return False
        away = next((r for r in chain.replicas if r.state is not PublicState.SERVING), None)
        if away is not None:
            self._wait_for(job, chain, away)
            return False
        target = out_of_place(chain) if job.state is JobState.RUNNING else None
        if target is None:
            return True
        self.held.setdefault(target, mark(job.number))
        return False

    # --- the draft -------------------------------------------------------------------------------

    def _put(self, job: Job, chain: Chain, target: TargetId, of_chain: ChainId) -> None:
        info = replace(self.routing.targets[target], chain=of_chain)
        self.routing = put(self.routing, targets=[info], chains=[chain])
        self.changed[chain.chain] = job.number

    def _release(self, job: Job, target: TargetId) -> None:
        """Leave it in peace, unless somebody else wants it out, too."""
        if self.held.get(target) == mark(job.number):
            del self.held[target]

    def _wait_for(self, job: Job, chain: Chain, replica: Replica) -> None:
        """Say so if ``replica`` is not on its way back by itself."""
        report = self._view.report(replica.target)
        alive = self.routing.nodes[replica.node].alive
        if not alive or report is None or report.local_state is LocalState.OFFLINE:
            state = replica.state.name
            what = f"target {replica.target} of chain {chain.chain} is {state}"
            self._wait(job.number, what)

    def _wait(self, number: int, why: str) -> None:
        self.waits_for.setdefault(number, why)

    def _forget_closed(self) -> None:
        marks: dict[
            int, int
        ] = {}  # the newest drain of a node says whether anything may be placed there
        for job in self.jobs.values():
            if job.kind is JobKind.DRAIN:
                marks[job.subject] = max(job.number, marks.get(job.subject, 0))
        closed = sorted(n for n, job in self.jobs.items() if not job.is_open)
        for number in closed[: max(0, len(closed) - CLOSED_MAX)]:
            if number not in marks.values():
                del self.jobs[number]


def cancel(state: ClusterState, number: int) -> ClusterState:
    """Turn back what job ``number`` has begun; what is about to be over goes on to its end."""
    job = state.jobs[number]
    if not job.is_open:
        if job.kind is not JobKind.DRAIN:
            return state
        over = replace(job, state=JobState.CANCELLED)  # its node may be used again
        return state._replace(jobs={**state.jobs, number: over})
    moves = []
    held = dict(state.held)
    for move in job.moves:
        leaving = held.get(move.old) == mark(number)
        rotates = not move.old and not move.new
        if rotates or (leaving and move.new):
            moves.append(move)
        elif move.new and state.routing.chains[move.chain].replica(move.new) is not None:
            moves.append(Move(chain=move.chain, old=move.new))
        elif leaving:
            del held[move.old]
    job = replace(job, state=JobState.CANCELLING, moves=tuple(moves))
    return state._replace(held=held, jobs={**state.jobs, number: job})


def no_replacement(chain: Chain) -> str:
    """Why a replica cannot be placed."""
    return (
        f"no target may take a place in chain {chain.chain}: one that is open, in no chain, large"
        " enough, and on another host than the replicas that stay, is needed"
    )
