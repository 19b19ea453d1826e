"""The client's life of one batch: which replica to ask, when to ask again, when to give up.

A :class:`Batch` owns no socket and no clock. Its shell asks :meth:`Batch.sends` what to send,
tells it what came of each request (:meth:`Batch.replied`, :meth:`Batch.lost`), and calls again on
every event and at :meth:`Batch.wake_ms`, until :attr:`Batch.finished`. Then ``codes`` says per item
how it ended. Rules:

* Reads go to the serving replica whose node has the fewest bytes outstanding, and a chain's items
  are spread over its replicas when they are many bytes. Writes go to the head, always.
* One request per node carries items of all chains and targets that the node serves.
* An answer that says "ask elsewhere" makes the shell refresh its routing; the first retry comes at
  once, the next after a pause that doubles. A replica with bad bytes or a bad disk is not
  asked for that item again; when no replica is left, that is the item's result.
* A read that finds no chunk found a hole: NO_CHUNK is a result. The same holds for a short read.
* A write is the same update in every try: its tag does not change, so it is applied once.
* Nothing is tried beyond the deadline: what is left fails with the last reason it was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.core.codes import TABLE, Code, Retry, code_of
from fs3.core.types import Chain, ChainId, NodeId

_WAITING, _SENT, _DONE = 0, 1, 2

Indices = NDArray[np.int64]
_FIRST: Indices = np.zeros(1, np.int64)
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
    spread_bytes: int = 256 << 10  # fewer bytes of one chain are read from one replica
    deadline_ms: int = 30_000  # from the start of the batch
    request_ms: int = 8_000  # without an answer for so long, a request is lost
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
    ) -> None:
        """``chains`` and ``lengths`` (bytes of payload) say of each item where and how much.

        ``turn``: which of equally loaded replicas is asked first; a shell counts it up.
        """
        count = len(chains)
        self.codes: Codes = np.zeros(count, np.uint32)
        self.refresh = False  # the routing is known to be old; the shell sets it back
        self._reads = operation is Operation.READ
        self._chains = chains
        self._lengths = lengths.astype(np.int64)
        self._limits = limits
        self._turn = turn
        self._deadline_ms = now_ms + limits.deadline_ms
        self._state = np.zeros(count, np.uint8)
        self._due_ms = np.full(count, now_ms, np.int64)
        self._versions = np.zeros(count, np.uint32)  # of their chains, when they were sent
        self._known: Mapping[ChainId, Chain] = {}  # the routing as last seen
        self._attempts: dict[int, int] = {}  # failures so far, of the items that had any
        self._reasons: dict[int, Code] = {}  # the last one, of the same items
        self._bad: dict[int, set[NodeId]] = {}  # who cannot serve an item, whatever routing says
        self._avoid_until_ms: dict[NodeId, int] = {}
        self._flights: dict[int, _Flight] = {}
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
            wake = min(wake, flight.expires_ms)
        if self._open > self._sent:
            waiting = self._due_ms[(self._state == _WAITING) & (self._due_ms > now_ms)]
            if len(waiting):
                wake = min(wake, int(waiting.min()))
        return wake

    def overdue(self, now_ms: int) -> list[int]:
        """Requests to give up: break their connections, then say :meth:`lost`."""
        late = now_ms >= self._deadline_ms
        return [n for n, f in self._flights.items() if late or now_ms >= f.expires_ms]

    # -- what to send ----------------------------------------------------------------------------

    def sends(
        self, chains: Mapping[ChainId, Chain], load: Mapping[NodeId, int], now_ms: int
    ) -> list[Send]:
        """The requests to send now. ``load``: bytes outstanding per node, of all batches."""
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
        self._known = chains
        for number, where in _groups(self._chains[due]):
            chain = chains.get(ChainId(number))
            if chain is not None:
                versions[where] = chain.version
                self._assign(chain, due, where, nodes, planned, now_ms)
            else:
                self._no_target(due[where], now_ms)
        sends: list[Send] = []
        for number, where in _groups(nodes):
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
        first = (self._turn + chain.chain) % len(usable)
        usable = usable[first:] + usable[:first]
        lengths = self._lengths[due[where]]
        total = int(lengths.sum())
        if len(usable) == 1 or len(where) == 1 or total < self._limits.spread_bytes:
            node = min(usable, key=lambda n: planned.get(n, 0))
            nodes[where] = node
            planned[node] = planned.get(node, 0) + total
        else:
            nodes[where] = _spread(usable, np.cumsum(lengths), planned)

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
        free = self._limits.requests_per_node
        for flight in self._flights.values():
            free -= flight.send.node == node
        ends = np.cumsum(self._lengths[items])
        start, before = 0, 0
        while start < len(items) and free > 0:
            fit = int(np.searchsorted(ends, before + self._limits.bytes_per_request, "right"))
            stop = min(max(fit, start + 1), start + self._limits.items_per_request)
            end = int(ends[stop - 1])
            yield self._depart(node, items[start:stop], versions[start:stop], end - before, now_ms)
            start, before, free = stop, end, free - 1

    def _depart(
        self, node: NodeId, items: Indices, versions: Codes, size: int, now_ms: int
    ) -> Send:
        send = Send(self._next_number, node, items, versions, size)
        self._flights[send.number] = _Flight(send, now_ms + self._limits.request_ms)
        self._state[items] = _SENT
        self._versions[items] = versions
        self._sent += len(items)
        self._next_number += 1
        return send

    # -- what came of it -------------------------------------------------------------------------

    def replied(self, number: int, codes: Codes, now_ms: int) -> None:
        """The results of request ``number``, in the order of its items."""
        send = self._land(number)
        if not codes.any():  # all are OK
            self._state[send.items] = _DONE
            self._open -= len(send.items)
            return
        good = codes == Code.OK
        if self._reads:
            good |= codes == Code.NO_CHUNK
        done = send.items[good]
        self.codes[done] = codes[good]
        self._state[done] = _DONE
        self._open -= len(done)
        for position in np.flatnonzero(~good).tolist():
            code = code_of(int(codes[position]))
            self._failed(int(send.items[position]), code, send.node, now_ms)

    def lost(self, number: int, now_ms: int) -> None:
        """The connection broke, or the answer did not come: a write may have been applied."""
        send = self._land(number)
        self._avoid_until_ms[send.node] = now_ms + self._limits.avoid_ms
        code = Code.UNREACHABLE if self._reads else Code.MAYBE_APPLIED
        for item in send.items.tolist():
            self._failed(item, code, send.node, now_ms)

    def refused(self, number: int, code: Code, now_ms: int) -> None:
        """The request failed as a whole, with an answer."""
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


def _groups(keys: NDArray[Any]) -> list[tuple[int, Indices]]:
    """Positions of each distinct key, in order, keys ascending."""
    first = int(keys[0])
    if len(keys) == 1:
        return [(first, _FIRST)]
    if bool((keys == first).all()):
        return [(first, np.arange(len(keys)))]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered)) + 1
    parts = np.split(order, starts)
    return [(int(keys[part[0]]), part) for part in parts]


def _spread(usable: list[NodeId], ends: Indices, planned: dict[NodeId, int]) -> Indices:
    """Who reads which item of a run, such that the nodes' loads come out as even as possible.

    ``ends``: where each item ends in the bytes of the run. Each node gets neighbouring items.
    """
    total = int(ends[-1])
    loads = sorted((planned.get(n, 0), place) for place, n in enumerate(usable))
    level, filled = 0, 0
    for filled in range(
        len(loads), 0, -1
    ):  # the highest load that all of the first nodes can reach
        level = (total + sum(load for load, _ in loads[:filled])) // filled
        if level >= loads[filled - 1][0]:
            break
    chosen = np.empty(len(ends), np.int64)
    start, given = 0, 0
    for rank, (load, place) in enumerate(loads[:filled]):
        node = usable[place]
        given += max(level - load, 0)
        last = rank == filled - 1
        stop = len(ends) if last else int(np.searchsorted(ends, given, "right"))
        stop = max(stop, start)
        chosen[start:stop] = node
        taken = int(ends[stop - 1]) - (int(ends[start - 1]) if start else 0) if stop > start else 0
        planned[node] = planned.get(node, 0) + taken
        start = stop
    return chosen
