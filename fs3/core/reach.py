"""Nodes that cannot reach each other while both reach the manager.

An update waits for its whole chain, so two neighbours of a chain that lose each other, in one
direction or both, would stop it for as long as the manager hears both. So nodes that share a chain
probe each other, and say in every heartbeat whom they do not reach (:class:`Prober`, on a node);
the manager takes one of the two out of the chains in which they are neighbours, and lets nobody
sync from a neighbour that cannot reach him (:class:`Cuts`, at the manager).

* What a node says stands until its next heartbeat: nothing is an event that could be missed, and a
  manager that restarts hears it again.
* It counts when the accused has been heard since. One that is dead or stopped is not heard: its
  lease decides, as ever. Of one that has just come back nothing counts for a while, nor what it
  says: the others have yet to find it. A manager that has just started cannot know who has.
* Of two neighbours that serve, the one leaves that fewer of the chain's members reach; else the
  successor, as a syncing successor always does. So another one always serves. It gets no lease
  from then on, and leaves when the last one is surely over; until then nobody else of its chain is
  chosen.
* It is let in again behind the tail when the two of that new place reach each other. If the same
  two are cut again soon, they must have been in touch for longer and longer before that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from fs3.core.types import Chain, LocalState, NodeId, PublicState, Replica, TargetId

_OFFLINE = LocalState.OFFLINE
_PROBES_PER_BOUND = 5
RETURN_MS = 10_000  # for so long after a node has come back nothing said of it or by it counts
AGAIN_MS = 10 * 60_000  # two that were cut and are cut again within this time are not trusted
TRUST_MS_MIN = 5_000  # how long they must be in touch then; doubles every time
TRUST_MS_MAX = 5 * 60_000


class Prober:
    """Whom a node reaches: asked and answered within ``bound_ms``. All times are its own clock.

    A probe carries when it was sent, and so does its answer: what matters is how old the newest
    probe is that was answered. A node that was itself stopped starts over: its silence says nothing
    of others.
    """

    def __init__(self, bound_ms: int) -> None:
        if bound_ms < _PROBES_PER_BOUND:
            raise ValueError(f"a bound of {bound_ms} ms; at least {_PROBES_PER_BOUND} is allowed")
        self.bound_ms = bound_ms
        self.unreachable: frozenset[NodeId] = frozenset()
        self._every_ms = bound_ms // _PROBES_PER_BOUND
        self._answered_ms: dict[NodeId, int] = {}  # when the newest answered probe was sent
        self._asked_ms = -1
        self._awake_ms = -1

    def tick(self, wanted: Collection[NodeId], now_ms: int) -> list[NodeId]:
        """Time has passed. ``wanted``: who matters. Returns whom to probe, with ``now_ms``."""
        if now_ms - self._awake_ms > self.bound_ms // 2:
            self._answered_ms.clear()
            self.unreachable = frozenset()
        self._awake_ms = now_ms
        self._answered_ms = {node: self._answered_ms.get(node, now_ms) for node in sorted(wanted)}
        self.unreachable = frozenset(
            node for node, at_ms in self._answered_ms.items() if now_ms - at_ms > self.bound_ms
        )
        if now_ms - self._asked_ms < self._every_ms:
            return []
        self._asked_ms = now_ms
        return list(self._answered_ms)

    def answered(self, node: NodeId, sent_ms: int, now_ms: int) -> None:
        """``node`` has answered the probe that was sent at ``sent_ms``."""
        if node in self._answered_ms and sent_ms <= now_ms:
            self._answered_ms[node] = max(sent_ms, self._answered_ms[node])


Pair = tuple[NodeId, NodeId]


@dataclass(slots=True)
class _Parting:
    """Of a pair of nodes because of which somebody had to leave."""

    trust_ms: int = 0  # how long they must be in touch before they count as whole
    whole_from_ms: int = 0
    mended: bool = False  # they have been whole since


class _Leaving(NamedTuple):
    """A target that gets no lease any more."""

    node: NodeId
    ended_ms: int  # from when on its last lease is surely over


class Cuts:
    """What the manager knows of links, and whom it takes out. Times are the manager's clock."""

    def __init__(self, started_ms: int) -> None:
        """``started_ms``: when this manager began to listen."""
        self._first_ms = started_ms + RETURN_MS  # before, nothing that is said counts
        self._said: dict[NodeId, dict[NodeId, bool]] = {}  # by whom, of whom: was he heard since?
        self._counts_from_ms: dict[NodeId, int] = {}  # of those that came back lately
        self._cut: frozenset[Pair] = frozenset()
        self._partings: dict[Pair, _Parting] = {}
        self._leaving: dict[TargetId, _Leaving] = {}

    def say(self, node: NodeId, unreachable: Collection[NodeId]) -> None:
        """A heartbeat of ``node``: whom it does not reach now."""
        before = self._said.pop(node, {})
        now = {other: before.get(other, False) for other in unreachable if other != node}
        if now:
            self._said[node] = now
        for of in self._said.values():
            if node in of:
                of[node] = True

    def forget(self, node: NodeId, now_ms: int) -> None:
        """``node`` is silent, or is back: nothing that was said by or of it counts."""
        self._counts_from_ms[node] = now_ms + RETURN_MS
        self._said.pop(node, None)
        for of in self._said.values():
            of.pop(node, None)

    def settle(self, now_ms: int) -> frozenset[NodeId]:
        """Take in what was said. Returns the nodes whose chains must be looked at."""
        if not (self._said or self._cut or self._partings or self._leaving):
            return frozenset()
        cut = {
            _pair(node, other)
            for node, of in self._said.items()
            for other, was_heard in of.items()
            if was_heard and self._counts(node, other, now_ms)
        }
        for pair, parting in list(self._partings.items()):
            if pair in cut:
                parting.whole_from_ms = now_ms + parting.trust_ms
            elif now_ms < parting.whole_from_ms:
                cut.add(pair)
            elif now_ms - parting.whole_from_ms > AGAIN_MS:
                del self._partings[pair]
            else:
                parting.mended = True
        stirred = frozenset(node for pair in (*self._cut, *cut) for node in pair)
        self._cut = frozenset(cut)
        return stirred | {leaving.node for leaving in self._leaving.values()}

    def _counts(self, node: NodeId, other: NodeId, now_ms: int) -> bool:
        """Neither of them, nor this manager, has just come back."""
        counts_from = [self._counts_from_ms.get(n, self._first_ms) for n in (node, other)]
        return now_ms >= max(counts_from)

    def said_by(self, node: NodeId, now_ms: int) -> tuple[NodeId, ...]:
        """Whom ``node`` does not reach, as it said last, as far as it counts."""
        said = self._said.get(node, ())
        return tuple(other for other in said if self._counts(node, other, now_ms))

    def are_cut(self, one: Replica, other: Replica) -> bool:
        """Do the nodes of two replicas fail to reach each other?"""
        return _pair(one.node, other.node) in self._cut

    def is_leaving(self, target: TargetId) -> bool:
        """It must not get a lease."""
        return target in self._leaving

    def local_states(
        self,
        chain: Chain,
        local: Mapping[TargetId, LocalState],
        now_ms: int,
        ended_ms: Callable[[NodeId], int],
    ) -> Mapping[TargetId, LocalState]:
        """``local`` as :func:`fs3.core.chain.next_chain` shall see it.

        ``ended_ms``: when the last lease that a node was granted so far is surely over.
        """
        if not (self._cut or self._leaving):
            return local
        states = dict(local)
        present = [r for r in chain.serving if states.get(r.target, _OFFLINE) is not _OFFLINE]
        for replica in chain.replicas:  # who is out, or became the last that serves, leaves no more
            if replica not in chain.writable or present == [replica]:
                self._leaving.pop(replica.target, None)
        if not any(self.is_leaving(r.target) for r in chain.replicas):
            self._choose(chain, states, ended_ms)
        for replica in chain.replicas:
            leaving = self._leaving.get(replica.target)
            if leaving is not None and now_ms >= leaving.ended_ms:
                states[replica.target] = _OFFLINE
        self._hold_back(chain, states)
        return states

    def _choose(
        self,
        chain: Chain,
        states: Mapping[TargetId, LocalState],
        ended_ms: Callable[[NodeId], int],
    ) -> None:
        """If neighbours are cut, one of them begins to leave."""
        members = [r for r in chain.replicas if states.get(r.target, _OFFLINE) is not _OFFLINE]
        for before, behind in pairwise(r for r in members if r in chain.writable):
            if self.are_cut(before, behind):
                missed = [sum(self.are_cut(r, o) for o in members) for r in (before, behind)]
                both_serve = behind.state is PublicState.SERVING
                chosen = before if both_serve and missed[0] > missed[1] else behind
                self._leaving[chosen.target] = _Leaving(chosen.node, ended_ms(chosen.node))
                self._part(_pair(before.node, behind.node))
                return

    def _part(self, pair: Pair) -> None:
        """Once for every time they are cut, in however many chains they are neighbours."""
        parting = self._partings.setdefault(pair, _Parting())
        if parting.mended:
            parting.mended = False
            parting.trust_ms = min(max(TRUST_MS_MIN, parting.trust_ms * 2), TRUST_MS_MAX)

    def _hold_back(self, chain: Chain, states: dict[TargetId, LocalState]) -> None:
        """Nobody begins to sync from a tail that it cannot hear: as if it had to start anew.

        Nor from one that leaves: who stands before that one may be out of reach.
        """
        tail: Replica | None = None
        for replica in chain.replicas:
            local = states.get(replica.target, _OFFLINE)
            serves = replica.state in (PublicState.SERVING, PublicState.LASTSRV)
            synced = replica.state is PublicState.SYNCING and local is LocalState.UPTODATE
            if synced or (serves and local is not _OFFLINE):
                tail = replica
            elif tail is None or replica.state is PublicState.SYNCING:
                continue
            elif local is LocalState.ONLINE and (
                self.are_cut(tail, replica) or self.is_leaving(tail.target)
            ):
                states[replica.target] = LocalState.UPTODATE


def _pair(one: NodeId, other: NodeId) -> Pair:
    return (one, other) if one < other else (other, one)
