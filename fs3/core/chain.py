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

from collections.abc import Mapping, Sequence
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


# --- an operator's orders ----------------------------------------------------------------------
# A serving target leaves by becoming OFFLINE first, as any other does: through next_chain(), once
# its lease is surely over. So none of these orders takes a serving target out.


def add_replica(chain: Chain, replica: Replica) -> Chain:
    """``replica`` joins at the end, OFFLINE, and will sync. ValueError if it is there."""
    if chain.replica(replica.target) is not None:
        raise ValueError(f"target {replica.target} is in chain {chain.chain} already")
    joined = (*chain.replicas, replace(replica, state=_OFFLINE))
    preferred = (*chain.preferred, replica.target) if chain.preferred else ()
    return _next_version(chain, joined, preferred)


def remove_replica(chain: Chain, target: TargetId, heir: TargetId | None = None) -> Chain:
    """``target`` leaves. Only an OFFLINE or WAITING one may (ValueError).

    ``heir``, if given, takes its place in the preferred order.
    """
    found = chain.replica(target)
    if found is None or found.state not in (_OFFLINE, _WAITING):
        state = "not in it" if found is None else found.state.name
        raise ValueError(f"target {target} of chain {chain.chain} is {state}, must be OFFLINE")
    left = tuple(r for r in chain.replicas if r.target != target)
    if heir is None:
        preferred = tuple(t for t in chain.preferred if t != target)
    else:
        others = (t for t in chain.preferred if t != heir)
        preferred = tuple(heir if t == target else t for t in others)
    return _next_version(chain, left, preferred)


def set_preferred(chain: Chain, order: Sequence[TargetId]) -> Chain:
    """The order that :func:`out_of_place` works towards: every target of the chain once, or none.

    ValueError for anything else. The chain itself stays as it is.
    """
    mine = sorted(r.target for r in chain.replicas)
    if order and sorted(order) != mine:
        raise ValueError(
            f"order {list(order)} of chain {chain.chain}: it must name {mine}, each once"
        )
    preferred = tuple(order)
    return (
        chain if preferred == chain.preferred else _next_version(chain, chain.replicas, preferred)
    )


def out_of_place(chain: Chain) -> TargetId | None:
    """The serving target to go OFFLINE next, and come back as the tail, for the preferred order.

    None if the order stands, or if only one target serves. Targets that stand in the right order
    relative to each other, from the most preferred on, stay; the others go one after the other, in
    the preferred order, so that each is moved once.
    """
    serving = [r.target for r in chain.serving]
    if len(serving) < 2 or not chain.preferred:
        return None
    wanted = [t for t in chain.preferred if t in serving]
    wanted += [t for t in serving if t not in wanted]
    in_order = 0
    for target in serving:
        if target == wanted[in_order]:
            in_order += 1
    return wanted[in_order] if in_order < len(wanted) else None


def give_up_last(chain: Chain) -> Chain:
    """Wait for the next target instead of the last one that served: **acknowledged data is lost**.

    The LASTSRV target becomes the last, OFFLINE; the one behind it becomes LASTSRV in its place,
    with whatever it holds. ValueError if no target is LASTSRV, or there is no other.
    """
    if len(chain.replicas) < 2 or chain.replicas[0].state is not _LASTSRV:
        states = ", ".join(f"{r.target} {r.state.name}" for r in chain.replicas)
        raise ValueError(
            f"chain {chain.chain} does not wait for a LASTSRV target with others behind: {states}"
        )
    given_up, last, *others = chain.replicas
    turned = (last, *others, given_up)
    replicas = tuple(replace(r, state=_LASTSRV if r is last else _OFFLINE) for r in turned)
    return _next_version(chain, replicas, chain.preferred)


def _next_version(
    chain: Chain, replicas: tuple[Replica, ...], preferred: tuple[TargetId, ...]
) -> Chain:
    version = ChainVersion(chain.version + 1)
    return replace(chain, version=version, replicas=replicas, preferred=preferred)


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
