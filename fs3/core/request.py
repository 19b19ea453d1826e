"""The client's life of one batch: which replica to ask, when to ask again, when to give up.

A :class:`Batch` owns no socket and no clock. Its shell asks :meth:`Batch.sends` what to send,
tells it what came of each request (:meth:`Batch.replied`, :meth:`Batch.lost`), and calls again on
every event and at :meth:`Batch.wake_ms`, until :attr:`Batch.finished`. Then ``codes`` says per item
how it ended. Rules:

* Reads go to the serving replica whose node has the fewest bytes outstanding, and a chain's items
  are spread over its replicas when they are many bytes; but first to one on this machine, as long
  as it is not slow and has not too much to do. Writes go to the head, always.
* One request per node carries items of all chains and targets that the node serves.
* An answer that says "ask elsewhere" makes the shell refresh its routing; the first retry comes at
  once, the next after a pause that doubles. A replica with bad bytes or a bad disk is not
  asked for that item again; when no replica is left, that is the item's result.
* A read that finds no chunk found a hole: NO_CHUNK is a result. The same holds for a short read.
* A read whose answer is late is asked of another replica too, if :class:`fs3.core.pace.Pace` allows
  it; the first good answer counts, and the other request is cancelled (:attr:`Batch.cancelled`).
* A write is the same update in every try: its tag does not change, so it is applied once.
* A request that stays without an answer makes the shell look for newer routing, again and again:
  if its node serves the chain no more, it is lost. A machine without power does not say so.
* Nothing is tried beyond the deadline: what is left fails with the last reason it was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.core.codes import TABLE, Code, Retry, code_of
from fs3.core.dealing import FIRST, Indices, groups, spread
from fs3.core.pace import Pace
from fs3.core.types import Chain, ChainId, NodeId

_WAITING, _SENT, _DONE = 0, 1, 2
_NOBODY: frozenset[NodeId] = frozenset()
NEAR_BYTES_MAX = 64 << 20  # outstanding at a node on this machine that is still asked first

Codes = NDArray[np.uint32]


class Operation(Enum):
    """What a batch does; all its items do the same."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is asked at once, and for how long."""

    items_per_request: int = 4096
    bytes_per_request: int = 4 << 20  # a single larger item goes alone
    requests_per_node: int = 4  # in flight at once
    node_bytes: int = 32 << 20  # in flight at once; a single larger request goes alone
    late_ms_min: int = 5  # an answer is not called late before
    spread_bytes: int = 256 << 10  # fewer bytes of one chain are read from one replica
    deadline_ms: int = 30_000  # from the start of the batch
    request_ms: int = 8_000  # without an answer for so long, a request is lost
    look_ms: int = 1_000  # so often is looked whether who does not answer still serves
    avoid_ms: int = 1_000  # a node that lost a request is read from last, for so long
    pause_min_ms: int = 10
    pause_max_ms: int = 500
    attempts_max: int = 0  # failures of one item after which it is given up; 0: the deadline alone


class Send(NamedTuple):
    """Ask ``node`` for these items (indices into the batch), each with its chain's version."""

    number: int  # names the request in replied() and lost()
    node: NodeId
    items: Indices
    chain_versions: Codes
    bytes: int


class _Flight(NamedTuple):
    send: Send
    expires_ms: int
    late_ms: float  # when a second node may be asked; infinite: never (again)
    look_ms: int  # when to look for newer routing
    twin: int = -1  # the other request for the same items
    seen: Mapping[ChainId, Chain] | None = None  # the routing when it was looked; None: not yet


class Batch:
    """One batch from its start to its last result. ``codes`` is meaningful where it is finished."""

    def __init__(
        self,
        operation: Operation,
        chains: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        now_ms: int,
        limits: Limits,
        turn: int = 0,
        pace: Pace | None = None,
    ) -> None:
        """``chains`` and ``lengths`` (bytes of payload) say of each item where and how much.

        ``turn``: which of equally loaded replicas is asked first; a shell counts it up. ``pace``
        says which answers are late; None: no read is asked twice.
        """
        count = len(chains)
        self.codes: Codes = np.zeros(count, np.uint32)
        self.refresh = False  # the routing is known to be old; the shell sets it back
        self._reads = operation is Operation.READ
        self._chains = chains
        self._lengths = lengths.astype(np.int64)
        self._limits = limits
        self._turn = turn
        self._pace = pace
        self._deadline_ms = now_ms + limits.deadline_ms
        self._state = np.zeros(count, np.uint8)
        self._due_ms = np.full(count, now_ms, np.int64)
        # What came due up to then was sent, or waits for answers: of how much is in flight already.
        self._looked_ms = now_ms - 1
        self._versions = np.zeros(count, np.uint32)  # of their chains, when they were sent
        self._known: Mapping[ChainId, Chain] = {}  # the routing as last seen
        self._attempts: dict[int, int] = {}  # failures so far, of the items that had any
        self._reasons: dict[int, Code] = {}  # the last one, of the same items
        self._near = _NOBODY
        self._bad: dict[int, set[NodeId]] = {}  # who cannot serve an item, whatever routing says
        self._avoid_until_ms: dict[NodeId, int] = {}
        self._flights: dict[int, _Flight] = {}
        self.cancelled: list[int] = []  # requests that nobody waits for; the shell forgets them
        self._open = count  # items without a result
        self._sent = 0  # of these, the ones in flight
        self._next_number = 0

    @property
    def finished(self) -> bool:
        """True once every item has its result."""
        return not self._open

    @property
    def done(self) -> NDArray[np.bool_]:
        """Per item: has it its result?"""
        done: NDArray[np.bool_] = self._state == _DONE
        return done

    def wake_ms(self, now_ms: int) -> int:
        """When to call :meth:`sends` (and :meth:`overdue`) again, if nothing happens before."""
        wake = self._deadline_ms
        for flight in self._flights.values():
            if flight.seen is not None and flight.seen is not self._known:
                return now_ms
            wake = min(wake, flight.expires_ms, flight.look_ms)
            if flight.late_ms < wake:
                wake = max(math.ceil(flight.late_ms), now_ms)
        if self._open > self._sent:
            waiting = self._due_ms[(self._state == _WAITING) & (self._due_ms > self._looked_ms)]
            if len(waiting):
                wake = min(wake, max(int(waiting.min()), now_ms))
        return wake

    def overdue(self, now_ms: int) -> list[int]:
        """Requests to give up: break their connections, then say :meth:`lost`."""
        late = now_ms >= self._deadline_ms
        given_up = []
        for number, flight in self._flights.items():
            news = flight.seen is not None and flight.seen is not self._known
            if late or now_ms >= flight.expires_ms or (news and self._in_vain(flight.send)):
                given_up.append(number)
            elif news or now_ms >= flight.look_ms:
                look_ms = flight.look_ms
                if now_ms >= look_ms:
                    self.refresh, look_ms = True, now_ms + self._limits.look_ms
                self._flights[number] = flight._replace(look_ms=look_ms, seen=self._known)
        return given_up

    def _in_vain(self, send: Send) -> bool:
        """Is there an item for which the node that was asked is not the one to ask any more?"""
        for number in np.unique(self._chains[send.items]).tolist():
            chain = self._known.get(ChainId(number))
            serving = [replica.node for replica in chain.serving] if chain is not None else []
            if send.node not in (serving if self._reads else serving[:1]):
                return True
        return False

    # -- what to send ----------------------------------------------------------------------------

    def sends(
        self,
        chains: Mapping[ChainId, Chain],
        load: Mapping[NodeId, int],
        now_ms: int,
        near: frozenset[NodeId] = _NOBODY,
    ) -> list[Send]:
        """The requests to send now. ``load``: bytes outstanding per node, of all batches.

        ``near``: nodes on this machine, which are read from first.
        """
        self._near = near
        self._known = chains
        self._looked_ms = now_ms
        if self._open == self._sent:
            return []
        if now_ms >= self._deadline_ms:
            self._give_up()
            return []
        due: Indices = np.flatnonzero((self._state == _WAITING) & (self._due_ms <= now_ms))
        if not len(due):
            return []
        nodes = np.zeros(len(due), np.int64)  # 0: nobody to ask yet
        versions = np.zeros(len(due), np.uint32)
        planned = dict(load)
        for number, where in groups(self._chains[due]):
            chain = chains.get(ChainId(number))
            if chain is not None:
                versions[where] = chain.version
                self._assign(chain, due, where, nodes, planned, now_ms)
            else:
                self._no_target(due[where], now_ms)
        sends: list[Send] = []
        for number, where in groups(nodes):
            if number:
                sends += self._cut(NodeId(number), due[where], versions[where], now_ms)
        return sends

    def _assign(
        self,
        chain: Chain,
        due: Indices,
        where: Indices,
        nodes: Indices,
        planned: dict[NodeId, int],
        now_ms: int,
    ) -> None:
        """Fill ``nodes[where]`` with who is asked for these items, which are all of one chain."""
        serving = [replica.node for replica in chain.serving]
        if not serving:
            self._no_target(due[where], now_ms)
            return
        if not self._reads:
            nodes[where] = serving[0]
            return
        if self._bad:
            where = self._assign_singly(serving, due, where, nodes, planned)
            if not len(where):
                return
        usable = [n for n in serving if self._avoid_until_ms.get(n, 0) <= now_ms] or serving
        if self._near:
            near = sorted(
                n for n in self._near.intersection(usable) if planned.get(n, 0) <= NEAR_BYTES_MAX
            )
            if near:  # one request for all chains that it serves, and another one's turn next time
                nodes[where] = near[self._turn % len(near)]
                return
        first = (self._turn + chain.chain) % len(usable)
        usable = usable[first:] + usable[:first]
        lengths = self._lengths[due[where]]
        total = int(lengths.sum())
        if len(usable) == 1 or len(where) == 1 or total < self._limits.spread_bytes:
            node = min(usable, key=lambda n: planned.get(n, 0))
            nodes[where] = node
            planned[node] = planned.get(node, 0) + total
        else:
            nodes[where] = spread(usable, np.cumsum(lengths), planned)

    def _assign_singly(
        self,
        serving: list[NodeId],
        due: Indices,
        where: Indices,
        nodes: Indices,
        planned: dict[NodeId, int],
    ) -> Indices:
        """Items that some replica could not serve go to another; returns where the rest is."""
        rest = []
        for position in where.tolist():
            item = int(due[position])
            bad = self._bad.get(item)
            if bad is None:
                rest.append(position)
                continue
            left = [n for n in serving if n not in bad]
            if left:
                nodes[position] = min(left, key=lambda n: planned.get(n, 0))
            else:
                self._end(item, self._reasons[item])
        return np.array(rest, np.int64)

    def _cut(self, node: NodeId, items: Indices, versions: Codes, now_ms: int) -> Iterator[Send]:
        """Requests of allowed size for one node, as many as may be in flight."""
        free, free_bytes = self._limits.requests_per_node, self._limits.node_bytes
        for flight in self._flights.values():
            if flight.send.node == node:
                free -= 1
                free_bytes -= flight.send.bytes
        idle = free == self._limits.requests_per_node
        ends = np.cumsum(self._lengths[items])
        start, before = 0, 0
        while start < len(items) and free > 0:
            fit = int(np.searchsorted(ends, before + self._limits.bytes_per_request, "right"))
            stop = min(max(fit, start + 1), start + self._limits.items_per_request)
            end = int(ends[stop - 1])
            free_bytes -= end - before
            if free_bytes < 0 and not idle:
                return
            idle = False
            yield self._depart(node, items[start:stop], versions[start:stop], end - before, now_ms)
            start, before, free = stop, end, free - 1

    def _depart(
        self, node: NodeId, items: Indices, versions: Codes, size: int, now_ms: int
    ) -> Send:
        send = self._fly(node, items, versions, size, now_ms)
        self._state[items] = _SENT
        self._versions[items] = versions
        self._sent += len(items)
        return send

    def _fly(self, node: NodeId, items: Indices, versions: Codes, size: int, now_ms: int) -> Send:
        send = Send(self._next_number, node, items, versions, size)
        self._next_number += 1
        late_ms = math.inf
        if self._reads and self._pace is not None:
            late_ms = now_ms + max(self._pace.late_ms(size), self._limits.late_ms_min)
        self._flights[send.number] = _Flight(
            send, now_ms + self._limits.request_ms, late_ms, now_ms + self._limits.look_ms
        )
        return send

    def adopt(
        self, node: NodeId, chain: Chain, sent_ms: int, chains: Mapping[ChainId, Chain]
    ) -> Send:
        """The only item was asked of ``node`` already, at ``sent_ms``, by this routing."""
        self._known = chains
        versions = np.array([chain.version], np.uint32)
        return self._depart(node, FIRST, versions, int(self._lengths[0]), sent_ms)

    def hedges(self, load: Mapping[NodeId, int], now_ms: int) -> list[Send]:
        """Second requests for reads whose answers are late; their payload needs places of its own.

        Each is for the same items as one that is under way, of a node that serves them all.
        """
        late = [f for f in self._flights.values() if f.late_ms <= now_ms]
        sends = []
        for flight in late:
            first = flight.send
            node = self._other_node(first, load, now_ms)
            number = -1
            if node is not None and self._pace is not None and self._pace.take_hedge():
                send = self._fly(node, first.items, first.chain_versions, first.bytes, now_ms)
                number = send.number
                twin = self._flights[number]
                self._flights[number] = twin._replace(late_ms=math.inf, twin=first.number)
                sends.append(send)
            self._flights[first.number] = flight._replace(late_ms=math.inf, twin=number)
        return sends

    def _other_node(self, send: Send, load: Mapping[NodeId, int], now_ms: int) -> NodeId | None:
        """The least loaded node but that of ``send`` that serves all of its items."""
        usable: set[NodeId] | None = None
        for number in np.unique(self._chains[send.items]).tolist():
            chain = self._known.get(ChainId(number))
            serving = {r.node for r in chain.serving} if chain is not None else set()
            usable = serving if usable is None else usable & serving
        good = [
            node
            for node in sorted(usable or ())
            if node != send.node and self._avoid_until_ms.get(node, 0) <= now_ms
        ]
        return min(good, key=lambda n: load.get(n, 0)) if good else None

    # -- what came of it -------------------------------------------------------------------------

    def replied(self, number: int, codes: Codes, now_ms: int) -> bool:
        """The results of request ``number``, in the order of its items.

        False: they do not count, a second request for the same items is still under way.
        """
        twin = self._flights[number].twin
        good = codes == Code.OK
        if self._reads:
            good |= codes == Code.NO_CHUNK
        if twin >= 0:
            if not good.all():
                self._leave_to_twin(number)
                return False
            del self._flights[twin]
            self.cancelled.append(twin)
        send = self._land(number)
        if not codes.any():  # all are OK
            self._state[send.items] = _DONE
            self._open -= len(send.items)
            return True
        done = send.items[good]
        self.codes[done] = codes[good]
        self._state[done] = _DONE
        self._open -= len(done)
        for position in np.flatnonzero(~good).tolist():
            code = code_of(int(codes[position]))
            self._failed(int(send.items[position]), code, send.node, now_ms)
        return True

    def _leave_to_twin(self, number: int) -> bool:
        """A request that came to nothing; True if the same items are under way another time."""
        twin = self._flights[number].twin
        if twin < 0:
            return False
        del self._flights[number]
        self._flights[twin] = self._flights[twin]._replace(twin=-1)
        return True

    def lost(self, number: int, now_ms: int) -> None:
        """The connection broke, or the answer did not come: a write may have been applied."""
        node = self._flights[number].send.node
        self._avoid_until_ms[node] = now_ms + self._limits.avoid_ms
        if self._leave_to_twin(number):
            return
        send = self._land(number)
        code = Code.UNREACHABLE if self._reads else Code.MAYBE_APPLIED
        for item in send.items.tolist():
            self._failed(item, code, send.node, now_ms)

    def refused(self, number: int, code: Code, now_ms: int) -> None:
        """The request failed as a whole, with an answer."""
        if self._leave_to_twin(number):
            return
        send = self._land(number)
        for item in send.items.tolist():
            self._failed(item, code, send.node, now_ms)

    def _land(self, number: int) -> Send:
        send = self._flights.pop(number).send
        self._sent -= len(send.items)
        return send

    def _failed(self, item: int, code: Code, node: NodeId, now_ms: int) -> None:
        self._reasons[item] = code
        retry = TABLE[code].retry
        if retry is Retry.NEVER:
            self._end(item, code)
            return
        self._state[item] = _WAITING
        self._looked_ms = min(self._looked_ms, now_ms - 1)
        if retry is Retry.OTHER_REPLICA and self._reads:
            self._bad.setdefault(item, set()).add(node)
            self._due_ms[item] = now_ms
            return
        if code is Code.STALE_CHAIN and self._has_newer(item):
            self._due_ms[item] = now_ms
            return
        if code is Code.NOT_SERVING:
            self._avoid_until_ms[node] = now_ms + self._limits.avoid_ms
        self._pause(item, retry, now_ms)

    def _has_newer(self, item: int) -> bool:
        """Has the routing moved on since the item was sent?"""
        chain = self._known.get(ChainId(int(self._chains[item])))
        return chain is not None and chain.version > int(self._versions[item])

    def _no_target(self, items: Indices, now_ms: int) -> None:
        """Routing knows nobody who serves the chain of these items.

        Never due at once: nothing was sent, so nothing but the time would bring them up again.
        """
        for item in items.tolist():
            self._reasons[item] = Code.NOT_SERVING
            self._pause(item, Retry.REFRESH, now_ms)
            self._due_ms[item] = max(self._due_ms[item], now_ms + self._limits.pause_min_ms)

    def _pause(self, item: int, retry: Retry, now_ms: int) -> None:
        failures = self._attempts.get(item, 0)
        self._attempts[item] = failures + 1
        if retry is not Retry.PAUSE and failures + 1 == self._limits.attempts_max:
            self.refresh = True
            self._end(item, self._reasons[item])
            return
        if retry is Retry.PAUSE:
            failures += 1
        else:
            self.refresh = True
        pause_ms = self._limits.pause_min_ms << min(failures - 1, 16) if failures else 0
        self._due_ms[item] = now_ms + min(pause_ms, self._limits.pause_max_ms)

    def _give_up(self) -> None:
        for item in np.flatnonzero(self._state == _WAITING).tolist():
            self._end(item, self._reasons.get(item, Code.UNREACHABLE))

    def _end(self, item: int, code: Code) -> None:
        self.codes[item] = code
        self._state[item] = _DONE
        self._open -= 1
