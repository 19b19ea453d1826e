"""Membership: the one function that decides every target's state in its chain.

The manager calls :func:`next_chain` with what is known of each target's local state; nothing else
ever changes a state, except an operator's explicit orders at the end of this file. The rules are
upstream's (of its code; its design notes differ):

* A chain is ordered SERVING, LASTSRV, SYNCING, WAITING, OFFLINE; within a group the order is
  stable, so a target that finished syncing becomes the tail.
* When the last serving target goes, it becomes LASTSRV: it alone is known to hold every
  acknowledged write, so the chain waits for it. Of several that go at once the first does (the
  head has seen every write); the others become OFFLINE and resync.
* At most one target of a chain syncs, and only from a serving predecessor.
* Every change grows the version; no change leaves the chain as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fs3.core.types import Chain, ChainVersion, LocalState, PublicState, Replica, TargetId

_SERVING, _LASTSRV = PublicState.SERVING, PublicState.LASTSRV
_SYNCING, _WAITING, _OFFLINE = PublicState.SYNCING, PublicState.WAITING, PublicState.OFFLINE


def next_chain(chain: Chain, local: Mapping[TargetId, LocalState]) -> Chain:
    """The chain after what is known now; a target not in ``local`` is taken as OFFLINE.

    Returns ``chain`` itself when nothing changes. One call may not reach the end: a target that
    goes OFFLINE -> SYNCING frees nobody else's way, but call again after each change is applied.
    """
    states = {r.target: local.get(r.target, LocalState.OFFLINE) for r in chain.replicas}
    new: dict[TargetId, PublicState] = {}

    for r in chain.replicas:
        if r.state is _SERVING:
            gone = states[r.target] is LocalState.OFFLINE
            new[r.target] = _OFFLINE if gone else _SERVING
        elif r.state is _SYNCING and states[r.target] is LocalState.UPTODATE:
            new[r.target] = _SERVING
    if _SERVING not in new.values():
        _keep_last(chain, states, new)
    serves = _SERVING in new.values()

    for r in chain.replicas:
        if r.state is _LASTSRV and r.target not in new:
            new[r.target] = _OFFLINE  # another one serves: this one must resync
        elif r.state is _SYNCING and r.target not in new:
            offline = states[r.target] is LocalState.OFFLINE
            new[r.target] = _OFFLINE if offline else _SYNCING if serves else _WAITING
    for r in chain.replicas:
        if r.state in (_WAITING, _OFFLINE):
            syncing = _SYNCING in new.values()
            new[r.target] = _next_waiting(states[r.target], serves and not syncing)
    return _with_states(chain, new)


def _keep_last(
    chain: Chain, states: Mapping[TargetId, LocalState], new: dict[TargetId, PublicState]
) -> None:
    """Nobody serves any more: who is the one to wait for, or is he back?"""
    last = next((r for r in chain.replicas if r.state in (_SERVING, _LASTSRV)), None)
    if last is not None:
        back = last.state is _LASTSRV and states[last.target] is not LocalState.OFFLINE
        new[last.target] = _SERVING if back else _LASTSRV


def _next_waiting(local: LocalState, may_sync: bool) -> PublicState:
    """WAITING and OFFLINE targets: one that claims to be up to date must restart first."""
    if local is LocalState.OFFLINE:
        return _OFFLINE
    return _SYNCING if may_sync and local is LocalState.ONLINE else _WAITING


def _with_states(chain: Chain, new: Mapping[TargetId, PublicState]) -> Chain:
    replicas = [replace(r, state=new[r.target]) for r in chain.replicas]
    replicas.sort(key=lambda r: r.state)  # stable: the order within a state stands
    if tuple(replicas) == chain.replicas:
        return chain
    return replace(chain, version=ChainVersion(chain.version + 1), replicas=tuple(replicas))


def new_chain(chain: Chain) -> Chain:
    """A chain as it is created: version 1, every replica serving (they are all empty)."""
    replicas = tuple(replace(r, state=_SERVING) for r in chain.replicas)
    return replace(chain, version=ChainVersion(1), replicas=replicas)


def add_replica(chain: Chain, replica: Replica) -> Chain:
    """An operator's order: ``replica`` joins at the end, OFFLINE, and will sync."""
    joined = (*chain.replicas, replace(replica, state=_OFFLINE))
    return replace(chain, version=ChainVersion(chain.version + 1), replicas=joined)


def remove_replica(chain: Chain, target: TargetId) -> Chain:
    """An operator's order: ``target`` leaves. Only an OFFLINE or WAITING one may (ValueError)."""
    found = chain.replica(target)
    if found is None or found.state not in (_OFFLINE, _WAITING):
        state = "not in it" if found is None else found.state.name
        raise ValueError(f"target {target} of chain {chain.chain} is {state}, must be OFFLINE")
    left = tuple(r for r in chain.replicas if r.target != target)
    return replace(chain, version=ChainVersion(chain.version + 1), replicas=left)


def violation(chain: Chain) -> str | None:
    """Which rule a chain breaks, or None. The simulator and the manager ask after every change."""
    states = [r.state for r in chain.replicas]
    if states != sorted(states):
        return f"out of order: {[s.name for s in states]}"
    if states.count(_SYNCING) > 1:
        return "more than one target syncs"
    if states.count(_LASTSRV) > 1:
        return "more than one target is the last that served"
    if _LASTSRV in states and _SERVING in states:
        return "a last-served target beside a serving one"
    if _SYNCING in states and _SERVING not in states:
        return "a target syncs and nobody serves"
    if len({r.target for r in chain.replicas}) != len(states):
        return "a target appears twice"
    return None
