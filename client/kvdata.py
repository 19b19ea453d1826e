"""Batches of KV values, executed by the thread that asks; what fails is said per item, in time.

The same life of a batch as for files (:class:`fs3.core.request.Batch`) with a cache's manners: a
few attempts and a deadline instead of patience, a node that let a call wait is not waited for again
for a while, and routing is refreshed behind the callers' back. Nothing here raises for what a
server or the network does.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fs3 import dataplane
from fs3.core.request import Batch, Codes, Limits, Operation, Send
from fs3.core.types import ChainId, NodeId
from fs3.errors import Code
from fs3.routing import Routing
from fs3.transport.interface import Transport

from .kv_jobs import Gets, Job
from .links import TRANSPORTS, Links, Request
from .node_loads import NearNodes
from .routing import RoutingCache, versions_in

_REFRESH_WAIT_S = 0.25  # a call waits so long for newer routing, at most
_REFRESH_PAUSE_S = 0.25  # between refreshes that bring nothing
_SHUN_S = 1.0  # a node that did not answer in time is not asked for so long ...
_SHUN_S_MAX = 8.0  # ... and twice as long the next time, up to this
_ONE = np.zeros(1, np.int64)


class KvData:
    """Any thread may call; each works on connections of its own. Survives a fork."""

    def __init__(self, routing: RoutingCache, cluster_id: str) -> None:
        self._routing = routing
        self._cluster_id = cluster_id
        self._turns = itertools.count()
        self._near = NearNodes()
        self._transports: Sequence[Transport] = TRANSPORTS
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._local = threading.local()
        self._lock = threading.Lock()  # guards what follows
        self._load: dict[NodeId, int] = {}  # bytes outstanding, of all threads
        self._shunned: dict[NodeId, tuple[float, float]] = {}  # until when, and for how long
        self._refreshing: threading.Event | None = None
        self._refreshed_s = 0.0

    def routing(self) -> Routing:
        """As last heard; asks a metaserver the first time only."""
        return self._routing.get()

    def use(self, names: Sequence[str]) -> None:
        """Go by these transports alone, from now on; the last one must reach every node."""
        known = {transport.name: transport for transport in TRANSPORTS}
        self._transports = [known[name] for name in names]
        self.close()

    def close(self) -> None:
        """Let go of every thread's connections."""
        self._local = threading.local()

    def _links(self) -> Links:
        if self._pid != os.getpid():
            self._start_over()
        links: Links | None = getattr(self._local, "links", None)
        if links is None:
            links = self._local.links = Links(self._cluster_id, self._transports)
        return links

    def run(self, job: Job, limits: Limits) -> Codes:
        """Execute one batch; the result of each item, OK or NO_CHUNK if it was answered."""
        if isinstance(job, Gets) and self._read_here(job):
            return np.full(len(job.items), Code.OK, np.uint32)
        now_ms = _now_ms()
        deadline_ms = now_ms + limits.deadline_ms
        if len(job.items) == 1:
            if (codes := self._try_one(job, limits)) is not None:
                return codes
            now_ms = _now_ms()
            limits = replace(limits, deadline_ms=max(deadline_ms - now_ms, 0))
        batch = Batch(
            job.operation, job.items["chain"], job.payload, now_ms, limits, next(self._turns)
        )
        links = self._links()
        routing = self._routing.get()
        flights: dict[int, Request] = {}
        try:
            while not batch.finished:
                for number in batch.overdue(_now_ms()):
                    self._shun(flights[number].send.node)
                    links.cut(flights[number])
                for send in batch.sends(routing.chains, self._load, _now_ms()):
                    self._send(links, routing, batch, job, send, flights)
                if batch.refresh:
                    batch.refresh = False
                    wait = not batch.finished and not flights
                    routing = self._newer(routing, deadline_ms if wait else 0)
                elif not batch.finished:
                    self._wait(batch, links, job, flights)
        finally:
            for request in flights.values():  # only when something was raised above
                links.forget(request)
                self._account(request.send, -1)
        return batch.codes

    def _read_here(self, job: Gets) -> bool:
        """All values by itself, from one storageserver on this machine, without asking it."""
        routing = self._routing.get()
        near = self._near.nodes(routing)
        if not near:
            return False
        versions = versions_in(routing)
        return self._links().read_here(near, routing.nodes, lambda c: job.read_here(c, versions))

    def _try_one(self, job: Job, limits: Limits) -> Codes | None:
        """A single item is asked for without the machinery that many need.

        None if that was not enough, for whatever reason: then it is done anew, with patience.
        """
        routing = self._routing.get()
        chain = routing.chains.get(ChainId(int(job.items["chain"][0])))
        serving = chain.serving if chain is not None else ()
        if chain is None or not serving:
            return None
        reads = job.operation is Operation.READ
        turn = next(self._turns) % len(serving) if reads else 0
        node = routing.nodes.get(serving[turn].node)
        if node is None or node.node in self._shunned:
            return None
        versions = np.array([chain.version], np.uint32)
        send = Send(0, node.node, _ONE, versions, int(job.payload[0]))
        links = self._links()
        head, body = job.request(send)
        request = links.send(node, job.method, head, body, send, lambda head: job.place(send, head))
        if request is None:
            return None
        until_ms = _now_ms() + min(limits.request_ms, limits.deadline_ms)
        try:
            while (left_ms := until_ms - _now_ms()) > 0:
                if request in links.wait(left_ms / 1000):
                    if request.reply is None:
                        return None
                    codes = job.results(send, request.reply, verified=request.verified)
                    return codes if codes[0] in (Code.OK, Code.NO_CHUNK) else None
        except BaseException:
            links.forget(request)
            raise
        self._shun(node.node)
        links.cut(request)
        links.forget(request)
        return None

    def _send(
        self,
        links: Links,
        routing: Routing,
        batch: Batch,
        job: Job,
        send: Send,
        flights: dict[int, Request],
    ) -> None:
        node = routing.nodes.get(send.node)
        if node is None:
            batch.refused(send.number, Code.STALE_CHAIN, _now_ms())
            return
        if send.node in self._shunned and self._is_shunned(send.node):
            batch.lost(send.number, _now_ms())
            return
        head, body = job.request(send)
        request = links.send(node, job.method, head, body, send, lambda head: job.place(send, head))
        if request is None:
            batch.lost(send.number, _now_ms())
        else:
            flights[send.number] = request
            self._account(send, 1)

    def _wait(self, batch: Batch, links: Links, job: Job, flights: dict[int, Request]) -> None:
        """Until something happened or it is time to try again."""
        now_ms = _now_ms()
        for request in links.wait((batch.wake_ms(now_ms) - now_ms) / 1000):
            send = request.send
            del flights[send.number]
            self._account(send, -1)
            if request.reply is not None:
                self._shunned.pop(send.node, None)
                batch.replied(
                    send.number,
                    job.results(send, request.reply, verified=request.verified),
                    _now_ms(),
                )
                if suspects := getattr(job, "suspects", b""):
                    links.tell(request, dataplane.SUSPECT, suspects)
            elif request.error is not None:
                batch.refused(send.number, request.error.code, _now_ms())
            else:
                batch.lost(send.number, _now_ms())

    def _account(self, send: Send, sign: int) -> None:
        with self._lock:
            self._load[send.node] = self._load.get(send.node, 0) + sign * (send.bytes + 1)

    # -- nodes that let calls wait -----------------------------------------------------------------

    def _shun(self, node: NodeId) -> None:
        with self._lock:
            _, span_s = self._shunned.get(node, (0.0, _SHUN_S / 2))
            span_s = min(span_s * 2, _SHUN_S_MAX)
            self._shunned[node] = time.monotonic() + span_s, span_s

    def _is_shunned(self, node: NodeId) -> bool:
        """Past its time one call tries the node, at once: the others go on without it."""
        with self._lock:
            until_s, span_s = self._shunned.get(node, (0.0, 0.0))
            now_s = time.monotonic()
            if now_s < until_s:
                return True
            if span_s:
                self._shunned[node] = now_s + span_s, span_s
            return False

    # -- routing -----------------------------------------------------------------------------------

    def _newer(self, stale: Routing, deadline_ms: int) -> Routing:
        """A newer routing if it comes soon; the caller waits only until ``deadline_ms``."""
        with self._lock:
            done = self._refreshing
            if done is None:
                if time.monotonic() < self._refreshed_s + _REFRESH_PAUSE_S:
                    return self._routing.get()
                done = self._refreshing = threading.Event()
                threading.Thread(target=self._refresh, args=(stale, done), daemon=True).start()
        left_s = (deadline_ms - _now_ms()) / 1000
        if left_s > 0:
            done.wait(min(left_s, _REFRESH_WAIT_S))
        return self._routing.get()

    def _refresh(self, stale: Routing, done: threading.Event) -> None:
        try:
            found = self._routing.refresh(stale)
            self._refreshed_s = time.monotonic() if found is stale else 0.0
        finally:
            with self._lock:
                self._refreshing = None
            done.set()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
