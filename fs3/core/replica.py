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
* A negative acknowledgement means that nobody downstream has the update: it may be dropped.
* Towards a syncing successor every update is a full replace, and only the last serving replica has
  one. A syncing replica takes what its predecessor says, whatever it had.
* A read of a chunk with nothing pending is answered here; one with a pending version after the
  last serving replica has said which version is committed. Neither past the lease.

A replica is built when its target is SERVING or SYNCING and discarded when it no longer is
(``Demoted``): nothing changes roles in place, the next one starts from what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

from fs3.core import messages as m
from fs3.core.chunks import ChunkMeta, ChunkTable, UpdateKind
from fs3.core.codes import Code
from fs3.core.dirty_reads import DirtyReads
from fs3.core.lane import Lane, Operation, Phase
from fs3.core.link import IncomingLink
from fs3.core.messages import Effect, Event, Message
from fs3.core.place import Place
from fs3.core.resync import Resync
from fs3.core.types import Chain, ChunkId, ChunkVersion, LocalState, PublicState, TargetId

_NONE = ChunkMeta()
_V0 = ChunkVersion(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a replica. The simulator draws hostile ones."""

    waiting_per_chunk: int = 256  # writes behind the one under way; more get BUSY
    parked: int = 1024  # messages of a chain version not heard of yet
    resend_ms: int = 500  # first wait for an acknowledgement; doubles
    resend_ms_max: int = 8000
    query_ms: int = 200  # wait for an Answer before the Query is sent again
    resync_window: int = 8  # full chunks under way to a syncing successor
    resync_page: int = 2000  # chunk records in one page
    resync_bytes_per_s: int = 0  # 0: as fast as it goes


class Replica:
    """The core. Owns no socket, file, clock, thread or log; one shell steps it."""

    def __init__(self, target: TargetId, chain: Chain, table: ChunkTable, limits: Limits) -> None:
        self.target = target
        self.place = Place(target, chain)
        self.table = table
        self.limits = limits
        self.lanes: dict[ChunkId, Lane] = {}
        self.lease_until_ms = -1
        self.uptodate = False  # a syncing replica that has everything
        self.sync_progress = (0, 0)  # chunks compared so far, chunks in all; as the source says
        self.resync: Resync | None = None
        self._link = IncomingLink()
        self._sent = 0  # link sequence of the last m.Forward
        self._parked: list[Message] = []
        self._reads = DirtyReads(table, limits.query_ms)
        self._discarded = False

    # --- who I am --------------------------------------------------------------------------------

    @property
    def chain(self) -> Chain:
        """The newest version of the chain that this replica has heard of."""
        return self.place.chain

    @property
    def local_state(self) -> LocalState:
        """What to tell the manager."""
        complete = self.place.state is PublicState.SERVING or self.uptodate
        return LocalState.UPTODATE if complete else LocalState.ONLINE

    def serves(self, now_ms: int) -> bool:
        """May answer reads now."""
        return self.place.state is PublicState.SERVING and now_ms < self.lease_until_ms

    # --- the step --------------------------------------------------------------------------------

    def start(self, now_ms: int) -> list[Effect]:
        """Take up what is stored: to be called once, before the first step.

        A serving replica drives durable pending versions to their end: it was the last to serve,
        and they may have been read. A syncing one forgets them: its predecessor knows better.
        """
        effects: list[Effect] = []
        after: ChunkId | None = None
        while page := self.table.scan(after, 4096):
            after = page[-1][0]
            for chunk, meta in page:
                if meta.pending_version:
                    effects += self._take_up(chunk, meta, now_ms)
        return effects + self._begin_resync(now_ms)

    def _take_up(self, chunk: ChunkId, meta: ChunkMeta, now_ms: int) -> list[Effect]:
        if self.place.state is PublicState.SYNCING:
            return [m.Drop(chunk)]
        operation = Operation(
            chunk=chunk,
            kind=UpdateKind.REMOVE if meta.pending_removed else UpdateKind.REPLACE,
            version=meta.pending_version,
            staged_length=meta.pending_length,
            staged_checksum=meta.pending_checksum,
        )
        self._lane(chunk).operation = operation
        return self._pass_on(operation, now_ms)

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
            case _:
                return self._on_message(event, now_ms)

    def _refuse_discarded(self, event: Event) -> list[Effect]:
        if isinstance(event, m.Write | m.Read):
            return [self._stale(event.request)]
        return []

    def _on_message(self, message: Message, now_ms: int) -> list[Effect]:
        """The one place that compares chain versions of messages."""
        route = message.route
        if route.destination != self.target or route.chain_version < self.chain.version:
            return []
        if route.chain_version > self.chain.version:
            if len(self._parked) < self.limits.parked:
                self._parked.append(message)
            return [m.RefreshRouting(route.chain_version)]
        match message:
            case m.Forward():
                return self._on_forward(message)
            case m.Ack():
                return self._on_ack(message, now_ms)
            case m.Query():
                return self._on_query(message, now_ms)
            case m.Answer():
                return self._reads.answer(message, self.place, now_ms)
            case m.SyncRequest() | m.SyncDone():
                return self._on_sync_source(message)
            case m.SyncChannels() if route.source == self.place.predecessor:
                return self._on_sync_channels(message)
            case m.SyncPage() | m.SyncChannels():
                return self._on_sync_target(message, now_ms)
            case _:
                assert_never(message)

    # --- writes ----------------------------------------------------------------------------------

    def _on_write(self, write: m.Write, now_ms: int) -> list[Effect]:
        refusal = self._refuse_write(write, now_ms)
        if refusal is not None:
            return [refusal]
        lane = self._lane(write.chunk)
        current = lane.operation
        if current is not None:
            if write.tag is not None and write.tag == current.tag:
                current.requests.append(write.request)
            elif len(lane.waiting) >= self.limits.waiting_per_chunk:
                detail = f"{len(lane.waiting)} writes wait for this chunk already"
                return [m.Reply(write.request, Code.BUSY, _V0, 0, 0, detail)]
            else:
                lane.waiting.append(write)
            return []
        return self._begin(lane, write, now_ms)

    def _refuse_write(self, write: m.Write, now_ms: int) -> m.Reply | None:
        if write.chain_version != self.chain.version:
            return self._stale(write.request)
        if not self.place.is_head or now_ms >= self.lease_until_ms:
            why = "is not the head of its chain" if not self.place.is_head else "has no lease"
            detail = f"target {self.target} {why}"
            return m.Reply(write.request, Code.NOT_SERVING, _V0, 0, 0, detail)
        return None

    def _begin(self, lane: Lane, write: m.Write, now_ms: int) -> list[Effect]:
        """The lane is free, it is this write's turn: check everything again, then stage it."""
        refusal = self._refuse_write(write, now_ms) or self._answer_known(write)
        if refusal is not None:
            return [refusal, *self._next(write.chunk, lane, now_ms)]
        meta = self.table.meta(write.chunk) or _NONE
        lane.operation = operation = Operation(
            chunk=write.chunk,
            kind=write.kind,
            version=ChunkVersion(meta.version + 1),
            offset=write.offset,
            length=write.length,
            checksum=write.checksum,
            tag=write.tag,
            sync=write.sync,
            data=write.data,
            requests=[write.request],
        )
        return [self._stage(operation)]

    def _answer_known(self, write: m.Write) -> m.Reply | None:
        """The reply to an update that was applied before, or has nothing to do."""
        tag = write.tag
        known = None if tag is None else self.table.channel(tag.client, tag.channel)
        if tag is not None and known is not None and known.sequence >= tag.sequence:
            if known.sequence == tag.sequence:
                result = (known.version, known.length, known.checksum, "")
                return m.Reply(write.request, Code.OK, *result)
            detail = f"channel {tag.channel} is at sequence {known.sequence}, not {tag.sequence}"
            return m.Reply(write.request, Code.STALE_UPDATE, _V0, 0, 0, detail)
        absent = self.table.meta(write.chunk) is None
        nothing = write.kind is UpdateKind.REMOVE or (
            write.kind is UpdateKind.EXTEND and write.length == 0
        )
        return m.Reply(write.request, Code.OK, _V0, 0, 0, "") if absent and nothing else None

    def _stage(self, op: Operation) -> m.Stage:
        return m.Stage(
            op.chunk,
            op.kind,
            op.version,
            op.offset,
            op.length,
            op.checksum,
            self.chain.version,
            op.tag,
            op.sync,
            op.data,
        )

    def _on_staged(self, done: m.Staged, now_ms: int) -> list[Effect]:
        lane = self.lanes.get(done.chunk)
        op = lane.operation if lane is not None else None
        if op is None or op.phase is not Phase.STAGING or op.version != done.version:
            return []
        if done.code is not Code.OK:
            return self._fail(op, done.code, done.detail, now_ms)
        op.staged_length, op.staged_checksum = done.length, done.checksum
        return self._pass_on(op, now_ms)

    def _pass_on(self, op: Operation, now_ms: int) -> list[Effect]:
        """It is stored here: to the successor, or at the end of the chain commit it."""
        if self.place.successor is not None:
            op.phase = Phase.FORWARDED
            op.resend_after_ms = self.limits.resend_ms
            return [self._forward(op, now_ms)]
        op.phase = Phase.COMMITTING
        return [m.Commit(op.chunk, op.version, self.chain.version)]

    def _forward(self, op: Operation, now_ms: int, *, again: bool = False) -> m.Send:
        assert self.place.successor is not None
        if not again:
            self._sent += 1
            op.link_sequence = self._sent
        op.sent_at_ms = now_ms
        kind, offset, length, checksum, data = op.kind, op.offset, op.length, op.checksum, op.data
        whole = self.place.successor.state is PublicState.SYNCING or kind is UpdateKind.REPLACE
        if whole and kind is not UpdateKind.REMOVE:
            kind, offset, data = UpdateKind.REPLACE, 0, None
            length, checksum = op.staged_length, op.staged_checksum
        route = self.place.route(self.place.successor.target)
        return m.Send(
            m.Forward(
                route,
                op.link_sequence,
                op.chunk,
                kind,
                op.version,
                offset,
                length,
                checksum,
                op.tag,
                op.sync,
                data,
            )
        )

    def _on_forward(self, message: m.Forward) -> list[Effect]:
        if message.route.source != self.place.predecessor:
            return []
        lane = self.lanes.get(message.chunk)
        current = lane.operation if lane is not None else None
        if current is not None:  # sent again: the acknowledgement will come when it is done
            current.incoming_sequence = message.link_sequence
            self._link.note(message.link_sequence)
            return []
        meta = self.table.meta(message.chunk)
        if self._link.seen(message.link_sequence) or self._has(message, meta):
            self._link.note(message.link_sequence)
            return [self._acknowledge_stored(message, meta)]
        version = message.version
        committed = meta.version if meta is not None else 0
        if self.place.state is PublicState.SERVING and version != committed + 1:
            return [m.Fault(f"chunk {message.chunk.hex()}: version {version} after {committed}")]
        if message.kind is UpdateKind.REMOVE:
            version = ChunkVersion(max(version, committed + 1))
        self._link.note(message.link_sequence)
        self._lane(message.chunk).operation = operation = Operation(
            chunk=message.chunk,
            kind=message.kind,
            version=version,
            offset=message.offset,
            length=message.length,
            checksum=message.checksum,
            tag=message.tag,
            sync=message.sync,
            data=message.data,
            incoming_version=message.version,
            incoming_sequence=message.link_sequence,
        )
        return [self._stage(operation)]

    def _has(self, message: m.Forward, meta: ChunkMeta | None) -> bool:
        """Whether what a m.Forward brings is committed here."""
        if message.kind is UpdateKind.REMOVE:
            return meta is None
        if meta is None:
            return False
        if self.place.state is PublicState.SERVING:
            return meta.version >= message.version
        stored = (meta.version, meta.length, meta.checksum)
        return stored == (message.version, message.length, message.checksum)

    def _acknowledge_stored(self, message: m.Forward, meta: ChunkMeta | None) -> m.Send:
        length, checksum = (meta.length, meta.checksum) if meta is not None else (0, 0)
        route = self.place.route(message.route.source)
        return m.Send(m.Ack(route, message.chunk, message.version, Code.OK, length, checksum, ""))

    def _on_ack(self, ack: m.Ack, now_ms: int) -> list[Effect]:
        lane = self.lanes.get(ack.chunk)
        op = lane.operation if lane is not None else None
        successor = self.place.successor
        if op is None or op.phase is not Phase.FORWARDED or successor is None:
            return []
        if ack.route.source != successor.target or ack.version != op.version:
            return []
        if ack.code is not Code.OK:
            return self._on_negative_ack(op, ack, now_ms)
        theirs, mine = (ack.length, ack.checksum), (op.staged_length, op.staged_checksum)
        if op.kind is not UpdateKind.REMOVE and theirs != mine:
            return [m.Mismatch(op.chunk, op.version, successor.target, mine[1], theirs[1])]
        if op.resync:
            return self._finish_resync(op, now_ms)
        op.phase = Phase.COMMITTING
        return [m.Commit(op.chunk, op.version, self.chain.version)]

    def _on_negative_ack(self, op: Operation, ack: m.Ack, now_ms: int) -> list[Effect]:
        if ack.code is Code.BUSY:
            return []  # sent again when its time comes
        if op.resync:
            return self._finish_resync(op, now_ms)  # the next round will find it different
        return [m.Drop(op.chunk), *self._fail(op, ack.code, ack.detail, now_ms)]

    def _on_committed(self, done: m.Committed, now_ms: int) -> list[Effect]:
        lane = self.lanes.get(done.chunk)
        op = lane.operation if lane is not None else None
        if lane is None or op is None or op.phase is not Phase.COMMITTING:
            return []
        if done.code is not Code.OK:
            return [m.Fault(f"commit of chunk {done.chunk.hex()} failed: {done.code.name}")]
        effects = self._answer_all(op, Code.OK, "")
        lane.operation = None
        effects += self._reads.committed(op.chunk, self.place, now_ms)
        return effects + self._next(op.chunk, lane, now_ms)

    def _fail(self, op: Operation, code: Code, detail: str, now_ms: int) -> list[Effect]:
        """Nobody downstream has it and neither has this replica: say so upstream."""
        effects = self._answer_all(op, code, detail)
        self._link.forget(op.incoming_sequence)
        lane = self.lanes[op.chunk]
        lane.operation = None
        return effects + self._next(op.chunk, lane, now_ms)

    def _answer_all(self, op: Operation, code: Code, detail: str) -> list[Effect]:
        result = (op.staged_length, op.staged_checksum)
        effects: list[Effect] = [
            m.Reply(request, code, op.version, *result, detail) for request in op.requests
        ]
        if self.place.predecessor is not None:
            route = self.place.route(self.place.predecessor)
            version = ChunkVersion(op.incoming_version or op.version)
            effects.append(m.Send(m.Ack(route, op.chunk, version, code, *result, detail)))
        return effects

    def _next(self, chunk: ChunkId, lane: Lane, now_ms: int) -> list[Effect]:
        """The lane is free: whose turn is it?"""
        if lane.operation is None and lane.waiting:
            return self._begin(lane, lane.waiting.popleft(), now_ms)
        if lane.idle:
            self.lanes.pop(chunk, None)
        return []

    # --- reads of dirty chunks -------------------------------------------------------------------

    def _on_read(self, read: m.Read, now_ms: int) -> list[Effect]:
        if read.chain_version != self.place.chain.version:
            return [self._stale(read.request)]
        if not self.serves(now_ms):
            detail = f"target {self.target} does not serve"
            return [m.Reply(read.request, Code.NOT_SERVING, _V0, 0, 0, detail)]
        return self._reads.read(read, self.place, now_ms)

    def _on_query(self, query: m.Query, now_ms: int) -> list[Effect]:
        if self.place.last_serving != self.target or not self.serves(now_ms):
            return []
        version = (self.table.meta(query.chunk) or _NONE).version
        route = self.place.route(query.route.source)
        return [m.Send(m.Answer(route, query.chunk, query.number, version))]

    # --- the chain changes -----------------------------------------------------------------------

    def _on_chain(self, chain: Chain, now_ms: int) -> list[Effect]:
        if chain.version <= self.chain.version:
            return []
        was = self.local_state
        self.place = Place(self.target, chain)
        self._link = IncomingLink()
        self._sent = 0
        self.resync = None
        if self.place.state is None:
            return self._discard()
        effects: list[Effect] = [self._stale(r.request) for r in self._reads.take_all()]
        for chunk, lane in list(self.lanes.items()):
            effects += self._after_change(chunk, lane, now_ms)
        effects += self._begin_resync(now_ms)
        parked, self._parked = self._parked, []
        for message in parked:
            effects += self._on_message(message, now_ms)
        if self.local_state is not was:
            effects.append(m.StateChanged(self.local_state))
        return effects

    def _after_change(self, chunk: ChunkId, lane: Lane, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [self._stale(w.request) for w in lane.waiting]
        lane.waiting.clear()
        op = lane.operation
        if op is not None and op.phase is Phase.FORWARDED:
            if op.resync:
                lane.operation = None
            else:
                effects += self._pass_on(op, now_ms)
        if lane.idle:
            self.lanes.pop(chunk, None)
        return effects

    def stop(self) -> list[Effect]:
        """Discard this core, for the shell's own reasons: whoever waits is refused."""
        return [] if self._discarded else self._discard()

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

    def _stale(self, request: Any) -> m.Reply:  # noqa: ANN401 - the shell's own handle
        detail = f"chain {self.chain.chain} is at version {self.chain.version}"
        return m.Reply(request, Code.STALE_CHAIN, _V0, 0, 0, detail)

    # --- time ------------------------------------------------------------------------------------

    def _on_tick(self, now_ms: int) -> list[Effect]:
        effects = self._reads.tick(self.place, now_ms)
        for lane in self.lanes.values():
            op = lane.operation
            if op is None or op.phase is not Phase.FORWARDED:
                continue
            if now_ms - op.sent_at_ms >= op.resend_after_ms:
                op.resend_after_ms = min(op.resend_after_ms * 2, self.limits.resend_ms_max)
                effects.append(self._forward(op, now_ms, again=True))
        return effects + self._pump_resync(now_ms)

    def _resend(self, target: TargetId, now_ms: int) -> list[Effect]:
        if self.place.successor is None or self.place.successor.target != target:
            return []
        return [
            self._forward(lane.operation, now_ms, again=True)
            for lane in self.lanes.values()
            if lane.operation is not None and lane.operation.phase is Phase.FORWARDED
        ]

    def _lane(self, chunk: ChunkId) -> Lane:
        lane = self.lanes.get(chunk)
        if lane is None:
            lane = self.lanes[chunk] = Lane()
        return lane

    # --- resync: the source's side, then the syncing side ---------------------------------------

    def _begin_resync(self, now_ms: int) -> list[Effect]:
        if not self.place.feeds_syncing:
            return []
        self.resync = Resync(self.limits.resync_page, self.limits.resync_window)
        return self._pump_resync(now_ms)

    def _pump_resync(self, now_ms: int) -> list[Effect]:
        if self.resync is None or self.place.successor is None:
            return []
        route = self.place.route(self.place.successor.target)
        effects: list[Effect] = [
            m.Send(message) for message in self.resync.messages(route, self.table, now_ms)
        ]
        rate = self.limits.resync_bytes_per_s
        while (chunk := self.resync.next_chunk(now_ms, rate)) is not None:
            effects += self._copy_chunk(chunk, now_ms)
        return effects

    def _copy_chunk(self, chunk: ChunkId, now_ms: int) -> list[Effect]:
        """Bring one chunk to the syncing successor, its lane locked meanwhile."""
        assert self.resync is not None
        lane = self._lane(chunk)
        if lane.operation is not None:
            self.resync.finished(chunk)  # that update is on its way as a full replace
            return []
        meta = self.table.meta(chunk) or _NONE
        gone = meta.version == 0
        lane.operation = op = Operation(
            chunk=chunk,
            kind=UpdateKind.REMOVE if gone else UpdateKind.REPLACE,
            version=ChunkVersion(max(meta.version, 1)),
            staged_length=meta.length,
            staged_checksum=meta.checksum,
            phase=Phase.FORWARDED,
            resync=True,
            resend_after_ms=self.limits.resend_ms,
        )
        self.resync.charge(meta.length)
        return [self._forward(op, now_ms)]

    def _finish_resync(self, op: Operation, now_ms: int) -> list[Effect]:
        lane = self.lanes[op.chunk]
        lane.operation = None
        if self.resync is not None:
            self.resync.finished(op.chunk)
        return self._next(op.chunk, lane, now_ms) + self._pump_resync(now_ms)

    def _on_sync_target(self, message: m.SyncPage | m.SyncChannels, now_ms: int) -> list[Effect]:
        """An answer of the syncing successor."""
        successor = self.place.successor
        if self.resync is None or successor is None or message.route.source != successor.target:
            return []
        if isinstance(message, m.SyncPage):
            self.resync.on_page(message, self.table)
        else:
            self.resync.on_channels(message)
        return self._pump_resync(now_ms)

    def _on_sync_source(self, message: m.SyncRequest | m.SyncDone) -> list[Effect]:
        """The predecessor asks what this syncing replica has, or says that it has everything."""
        if (
            self.place.state is not PublicState.SYNCING
            or message.route.source != self.place.predecessor
        ):
            return []
        if isinstance(message, m.SyncDone):
            changed = not self.uptodate
            self.uptodate = True
            return [m.StateChanged(LocalState.UPTODATE)] if changed else []
        self.sync_progress = (message.done, message.total)
        limit = min(message.limit, self.limits.resync_page)
        after = ChunkId(message.after) if message.after else None
        records = tuple(self.table.scan(after, limit))
        route = self.place.route(message.route.source)
        last = len(records) < limit
        return [m.Send(m.SyncPage(route, message.round, message.after, records, last))]

    def _on_sync_channels(self, message: m.SyncChannels) -> list[Effect]:
        if self.place.state is not PublicState.SYNCING:
            return []
        route = self.place.route(message.route.source)
        return [m.PutChannels(message.channels), m.Send(m.SyncChannels(route, message.after, ()))]
