"""One target of one chain: CRAQ writes, dirty reads, take-over. Pure: events in, effects out.

The protocol is chain replication with apportioned queries (Terrace and Freedman, USENIX ATC 2009),
with upstream's additions for chains that change. Invariants, for every chunk:

* A write at any node is the same moves: stage; forward to the successor; when the successor
  acknowledges, or there is none, commit; acknowledge to the predecessor or reply to the client.
  So what a node has committed, every node behind it has, and what a node has acknowledged, it and
  every node behind it have committed.
* One update at a time per chunk (its lane); version = committed + 1.
* A message of another chain version is not acted on: an older one is ignored, a newer one is parked
  until this replica has heard of that chain. After a change every update under way is sent again,
  to the successor of that moment, or committed if there is none.
* A forward is applied once and answered once, however often it and its answer come (link.py).
* A negative acknowledgement means that nobody downstream has the update: it is dropped.
* Towards a syncing successor every update is a full replace, and only the last serving replica has
  one. A syncing replica takes what its predecessor says, whatever it had; it cannot refuse: it
  takes it, or goes offline.
* A read of a chunk with nothing pending is answered here; one with a pending version after the
  last serving replica has said which version is committed. Neither past the lease.
* A replica that has just become serving answers reads only when its predecessor is known to be in
  the new chain version (``Join``, ``Welcome``): until then the predecessor may call itself the
  last serving replica, and answer with what is older here.

A replica is built when its target is SERVING or SYNCING and discarded when it no longer is
(``Demoted``): nothing changes roles in place, the next one starts from what is stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from fs3.core import messages as m
from fs3.core.chunks import ChunkMeta, ChunkTable, UpdateKind
from fs3.core.codes import Code
from fs3.core.feeding import Feeder
from fs3.core.lane import Lane, Operation, Phase
from fs3.core.limits import Limits
from fs3.core.link import IncomingLink, OutgoingLink
from fs3.core.messages import Effect, Event, Message
from fs3.core.parking import Parking
from fs3.core.place import Place
from fs3.core.resync import Resync
from fs3.core.types import Chain, ChunkId, ChunkVersion, LocalState, PublicState, TargetId
from fs3.core.updates import Updates

__all__ = ["Limits", "Replica"]

_NONE = ChunkMeta()
_V0 = ChunkVersion(0)
_TAKEN_UP = -1  # the number of the flush of what was taken up; those of a resync begin with 1


class Replica(Updates):
    """The core. Owns no socket, file, clock, thread or log; one shell steps it."""

    def __init__(self, target: TargetId, chain: Chain, table: ChunkTable, limits: Limits) -> None:
        super().__init__(target, chain, table, limits)
        self._parking = Parking(limits)
        self._join_asked_ms = 0

    # --- who I am --------------------------------------------------------------------------------

    @property
    def local_state(self) -> LocalState:
        """What to tell the manager."""
        complete = self.place.state is PublicState.SERVING or self._syncing.uptodate
        return LocalState.UPTODATE if complete else LocalState.ONLINE

    @property
    def uptodate(self) -> bool:
        """A syncing replica that has everything."""
        return self._syncing.uptodate

    @property
    def sync_progress(self) -> tuple[int, int]:
        """Chunks of this syncing replica compared so far, and in all."""
        return self._syncing.progress

    @property
    def resync(self) -> Resync | None:
        """The resync of the successor, if it is syncing."""
        return self._feeder.resync if self._feeder is not None else None

    # --- the step --------------------------------------------------------------------------------

    def start(self, now_ms: int) -> list[Effect]:
        """Take up what is stored: to be called once, before the first step.

        A serving replica drives pending versions to their end: it was the last to serve, and they
        may have been read. First it syncs them: a crash may have come before the sync that their
        clients wanted, and nobody may see what a power cut could still take back. A syncing replica
        forgets them: its predecessor knows better.
        """
        effects: list[Effect] = []
        after: ChunkId | None = None
        while page := self.table.scan(after, 4096):
            after = page[-1][0]
            for chunk, meta in page:
                if meta.pending_version:
                    effects += self._take_up(chunk, meta)
        if self.lanes:
            effects.append(m.Flush(_TAKEN_UP))
        return effects + self._begin_resync(now_ms)

    def _take_up(self, chunk: ChunkId, meta: ChunkMeta) -> list[Effect]:
        if self.place.state is PublicState.SYNCING:
            return [m.Drop(chunk)]
        self._lane(chunk).operation = Operation(
            chunk=chunk,
            kind=UpdateKind.REMOVE if meta.pending_removed else UpdateKind.REPLACE,
            version=meta.pending_version,
            staged_length=meta.pending_length,
            staged_checksum=meta.pending_checksum,
            sync=True,
            exposed=True,
        )
        return []

    def _on_flushed(self, number: int, now_ms: int) -> list[Effect]:
        if number != _TAKEN_UP:
            return self._syncing.on_flushed(number)
        effects: list[Effect] = []
        for lane in list(self.lanes.values()):
            op = lane.operation
            if op is None or not op.was_taken_up:
                continue
            if self.place.feeds_syncing:
                # Its tag is known to the store alone: the resync brings content and record.
                op.phase = Phase.COMMITTING
                effects.append(m.Commit(op.chunk, op.version, self.chain.version))
            else:
                effects += self._pass_on(op, now_ms)
        return effects

    def stop(self) -> list[Effect]:
        """Discard this core, for the shell's own reasons: whoever waits is refused."""
        return [] if self._discarded else self._discard()

    def set_resync_rate(self, bytes_per_s: int) -> None:
        """Bring a successor up to date no faster than this from now on; 0: as fast as it goes."""
        self.limits = replace(self.limits, resync_bytes_per_s=bytes_per_s)
        if self._feeder is not None:
            self._feeder.rate_bytes_per_s = bytes_per_s

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """What ``event`` leads to. Never raises for what a peer or a client may do."""
        if self._discarded:
            return self._refuse_discarded(event)
        match event:
            case m.Write():
                return self._on_write(event, now_ms)
            case m.Staged():
                return self._on_staged(event, now_ms)
            case m.Committed():
                return self._on_committed(event, now_ms)
            case m.Read():
                return self._on_read(event, now_ms)
            case m.Tick():
                return self._on_tick(now_ms)
            case m.ChainChanged():
                return self._on_chain(event.chain, now_ms)
            case m.LeaseRenewed():
                if event.chain_version <= self.chain.version:
                    self.lease_until_ms = max(self.lease_until_ms, event.until_ms)
                return []
            case m.PeerUp():
                return self._resend(event.target, now_ms)
            case m.Flushed():
                return self._on_flushed(event.number, now_ms)
            case _:
                return self._on_message(event, now_ms)

    def _refuse_discarded(self, event: Event) -> list[Effect]:
        if isinstance(event, m.Write | m.Read):
            return [self._stale(event.request)]
        return []

    def _on_message(self, message: Message, now_ms: int) -> list[Effect]:
        """The one place that compares chain versions of messages."""
        route, chain = message.route, self.place.chain
        if route.destination != self.target or route.chain != chain.chain:
            return []
        if route.chain_version != chain.version:
            hint = isinstance(message, m.Used)  # the next one is as good
            newer = route.chain_version > chain.version
            return self._parking.park(message) if newer and not hint else []
        if route.source == self.place.predecessor:
            self._joined = True
        match message:
            case m.Forward():
                return self._on_forward(message)
            case m.Ack():
                return self._on_ack(message, now_ms)
            case m.Query():
                return self._on_query(message, now_ms)
            case m.Answer():
                return self._reads.answer(message, self.place, now_ms)
            case m.Join():
                return [m.Send(m.Welcome(self.place.route(route.source)))]
            case m.Welcome():
                return []
            case m.Used():
                return [m.NoteUses(message.chunks)] if self.place.is_head else []
            case m.SyncRequest() | m.SyncPage() | m.SyncChannels() | m.SyncDone():
                return self._on_sync(message, now_ms)
            case _:
                assert_never(message)

    # --- reads of dirty chunks -------------------------------------------------------------------

    def _on_read(self, read: m.Read, now_ms: int) -> list[Effect]:
        if read.chain_version != self.chain.version:
            return [self._stale(read.request)]
        if not self.serves(now_ms):
            detail = f"target {self.target} does not serve"
            return [m.Reply(read.request, Code.NOT_SERVING, _V0, 0, 0, detail)]
        if self._is_being_settled(read.chunk):
            return self._reads.hold(read)
        return self._reads.read(read, self.place, now_ms)

    def _on_query(self, query: m.Query, now_ms: int) -> list[Effect]:
        if self.place.last_serving != self.target or not self.serves(now_ms):
            return []
        if self._is_being_settled(query.chunk):
            return self._reads.hold(query)
        return [self._reads.query(query, self.place)]

    def _is_being_settled(self, chunk: ChunkId) -> bool:
        """At the last serving replica: the pending version will be committed, and may be known."""
        lane = self.lanes.get(chunk)
        op = lane.operation if lane is not None else None
        if op is None or self.place.last_serving != self.target:
            return False
        return op.exposed or op.phase is Phase.COMMITTING

    # --- the chain changes -----------------------------------------------------------------------

    def _on_chain(self, chain: Chain, now_ms: int) -> list[Effect]:
        if chain.version <= self.chain.version:
            return []
        before, was = self.place, self.local_state
        self.place = Place(self.target, chain)
        self._incoming, self._outgoing = IncomingLink(), OutgoingLink()
        self._feeder = None
        if self.place.state is None or self._was_out(before):
            return self._discard()
        if before.state is PublicState.SYNCING and self.place.state is PublicState.SERVING:
            self._joined = False
        effects: list[Effect] = [self._stale(r.request) for r in self._reads.take_all()]
        passed_on = before.successor is not None and before.successor.state is PublicState.SERVING
        for chunk, lane in list(self.lanes.items()):
            effects += self._after_change(chunk, lane, passed_on, now_ms)
        effects += self._begin_resync(now_ms) + self._ask_to_join(now_ms)
        for message in self._parking.take_all():
            effects += self._on_message(message, now_ms)
        if self.local_state is not was:
            effects.append(m.StateChanged(self.local_state))
        return effects

    def _was_out(self, before: Place) -> bool:
        """It is to sync and was not just before: it was taken out without hearing of it."""
        if self.place.state is not PublicState.SYNCING:
            return False
        next_version = self.chain.version == before.chain.version + 1
        return before.state is not PublicState.SYNCING or not next_version

    def _after_change(
        self, chunk: ChunkId, lane: Lane, passed_on: bool, now_ms: int
    ) -> list[Effect]:
        effects: list[Effect] = [self._stale(w.request) for w in lane.waiting]
        lane.waiting.clear()
        lane.held = None
        op = lane.operation
        if op is not None:
            op.incoming_sequence = op.link_sequence = 0
            if op.resync:
                lane.operation = None
            elif op.phase is Phase.FORWARDED:
                op.exposed = op.exposed or passed_on
                effects += self._pass_on(op, now_ms)
        if lane.idle:
            self.lanes.pop(chunk, None)
        return effects

    def _ask_to_join(self, now_ms: int) -> list[Effect]:
        if self._joined:
            return []
        if self.place.predecessor is None:
            self._joined = True
            return []
        self._join_asked_ms = now_ms
        return [m.Send(m.Join(self.place.route(self.place.predecessor)))]

    def _discard(self) -> list[Effect]:
        """Out of the writable part of the chain: clients try elsewhere with the same tags."""
        effects: list[Effect] = []
        for lane in self.lanes.values():
            requests = lane.operation.requests if lane.operation is not None else []
            requests = [*requests, *(w.request for w in lane.waiting)]
            effects += [self._stale(request) for request in requests]
        effects += [self._stale(read.request) for read in self._reads.take_all()]
        self.lanes.clear()
        self._discarded = True
        return [*effects, m.Demoted()]

    # --- time ------------------------------------------------------------------------------------

    def _on_tick(self, now_ms: int) -> list[Effect]:
        effects = self._reads.tick(self.place, now_ms) + self._parking.tick()
        if now_ms - self._join_asked_ms >= self.limits.query_ms:
            effects += self._ask_to_join(now_ms)
        for lane in self.lanes.values():
            op = lane.operation
            if op is None or op.phase is not Phase.FORWARDED:
                continue
            if now_ms - op.sent_at_ms >= op.resend_after_ms:
                op.resend_after_ms = min(op.resend_after_ms * 2, self.limits.resend_ms_max)
                effects.append(self._forward(op, now_ms))
        return effects + self._pump_resync(now_ms)

    def _resend(self, target: TargetId, now_ms: int) -> list[Effect]:
        """The link to ``target`` is new: what was sent on the one before may be lost."""
        if self.place.successor is None or self.place.successor.target != target:
            return []
        effects: list[Effect] = [
            self._forward(lane.operation, now_ms)
            for lane in self.lanes.values()
            if lane.operation is not None and lane.operation.phase is Phase.FORWARDED
        ]
        if self._feeder is not None:
            self._feeder.resync.ask_again()
        return effects + self._pump_resync(now_ms)

    # --- resync ----------------------------------------------------------------------------------

    def _on_sync(
        self, message: m.SyncRequest | m.SyncPage | m.SyncChannels | m.SyncDone, now_ms: int
    ) -> list[Effect]:
        """A syncing replica hears its predecessor, a source its syncing successor."""
        from_source = message.route.source == self.place.predecessor
        if isinstance(message, m.SyncPage) or not from_source:
            if self._feeder is not None and isinstance(message, m.SyncPage | m.SyncChannels):
                self._feeder.heard(message)
            return self._pump_resync(now_ms)
        if self.place.state is not PublicState.SYNCING:
            return []
        if isinstance(message, m.SyncRequest):
            return self._syncing.on_request(message, self.place, self.lanes)
        if isinstance(message, m.SyncChannels):
            return self._syncing.on_channels(message, self.place)
        return self._syncing.on_done()

    def _begin_resync(self, now_ms: int) -> list[Effect]:
        if self.place.feeds_syncing:
            self._feeder = Feeder(self.place, self.table, self.lanes, self.limits)
        return self._pump_resync(now_ms)
