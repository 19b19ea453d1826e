"""The way of an update through a replica: stage, forward, commit, answer. Base of ``Replica``.

The rules are in replica.py; here is what happens to one update after another, while the chain
stands as it is.
"""

from __future__ import annotations

from typing import Any

from fs3.core import messages as m
from fs3.core.admission import known_result, settle_create
from fs3.core.chunks import ChunkMeta, ChunkTable, UpdateKind
from fs3.core.codes import Code
from fs3.core.dirty_reads import DirtyReads
from fs3.core.feeding import Feeder
from fs3.core.lane import Lane, Operation, Phase
from fs3.core.limits import Limits
from fs3.core.link import IncomingLink, OutgoingLink
from fs3.core.messages import Effect
from fs3.core.place import Place
from fs3.core.syncing import Syncing
from fs3.core.types import Chain, ChunkId, ChunkVersion, PublicState, TargetId

_NONE = ChunkMeta()
_V0 = ChunkVersion(0)


class Updates:
    """Lanes, links, and the steps of an update."""

    def __init__(self, target: TargetId, chain: Chain, table: ChunkTable, limits: Limits) -> None:
        self.target = target
        self.place = Place(target, chain)
        self.table = table
        self.limits = limits
        self.lanes: dict[ChunkId, Lane] = {}
        self.lease_until_ms = -1
        self._incoming = IncomingLink()
        self._outgoing = OutgoingLink()
        self._reads = DirtyReads(table, limits, self.serves)
        self._syncing = Syncing(table, limits)
        self._feeder: Feeder | None = None
        self._joined = True  # the predecessor is in this chain version, or has no say
        self._discarded = False

    @property
    def chain(self) -> Chain:
        """The newest version of the chain that this replica has heard of."""
        return self.place.chain

    @property
    def serving(self) -> bool:
        """May answer reads, as long as it has a lease."""
        return self.place.state is PublicState.SERVING and self._joined and not self._discarded

    def serves(self, now_ms: int) -> bool:
        """May answer reads now."""
        return now_ms < self.lease_until_ms and self.serving

    # --- writes ----------------------------------------------------------------------------------

    def _on_write(self, write: m.Write, now_ms: int) -> list[Effect]:
        refusal = self._refuse_write(write, now_ms)
        if refusal is not None:
            return [refusal]
        lane = self._lane(write.chunk)
        current = lane.operation
        again = current is not None and write.tag is not None and write.tag == current.tag
        crowd = current.requests if current is not None and again else lane.waiting
        if len(crowd) >= self.limits.waiting_per_chunk:
            detail = f"{self.limits.waiting_per_chunk} requests wait for this chunk already"
            return [m.Reply(write.request, Code.BUSY, _V0, 0, 0, detail)]
        if current is not None and again:
            current.requests.append(write.request)
            return []
        lane.waiting.append(write)
        return self._next(write.chunk, lane, now_ms)

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
        refusal = self._refuse_write(write, now_ms) or known_result(write, self.table)
        if refusal is not None:
            return [refusal]
        meta = self.table.meta(write.chunk) or _NONE
        if write.kind is UpdateKind.CREATE:
            write = settle_create(write, meta)
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
        return [operation.stage(self.chain.version)]

    def _on_staged(self, done: m.Staged, now_ms: int) -> list[Effect]:
        lane = self.lanes.get(done.chunk)
        op = lane.operation if lane is not None else None
        if op is None or op.phase is not Phase.STAGING or op.version != done.version:
            return []
        if done.code is not Code.OK:
            return self._on_not_staged(op, done, now_ms)
        op.staged_length, op.staged_checksum = done.length, done.checksum
        return self._pass_on(op, now_ms)

    def _on_not_staged(self, op: Operation, done: m.Staged, now_ms: int) -> list[Effect]:
        """Nobody has it, nor will: refuse it, or leave if there is no refusing."""
        if self.place.state is not PublicState.SYNCING:
            return self._fail(op, done.code, done.detail, now_ms)
        if done.code is not Code.CORRUPT:
            what = f"chunk {op.chunk.hex()} cannot be synced: {done.code.name} {done.detail}"
            return [m.Fault(what)]
        self._incoming.forget(op.incoming_sequence)  # damaged on its way: it will come again
        return self._release(op, now_ms)

    def _pass_on(self, op: Operation, now_ms: int) -> list[Effect]:
        """It is stored here: to the successor, or at the end of the chain commit it."""
        if self.place.successor is not None:
            op.phase = Phase.FORWARDED
            op.resend_after_ms = self.limits.resend_ms
            return [self._forward(op, now_ms)]
        op.phase = Phase.COMMITTING
        return [m.Commit(op.chunk, op.version, self.chain.version)]

    def _forward(self, op: Operation, now_ms: int) -> m.Send:
        successor = self.place.successor
        assert successor is not None
        op.link_sequence = op.link_sequence or self._outgoing.open()
        op.sent_at_ms = now_ms
        if self._feeder is not None and not op.resync:
            self._feeder.pacing.update_sent(op.chunk)
        route, settled = self.place.route(successor.target), self._outgoing.settled
        whole = successor.state is PublicState.SYNCING
        return m.Send(op.forward(route, settled, whole=whole))

    def _on_forward(self, message: m.Forward) -> list[Effect]:
        if message.route.source != self.place.predecessor:
            return []
        self._incoming.settle(message.settled)
        if self._incoming.known(message.link_sequence):
            ack = self._incoming.answer(message.link_sequence)
            return [m.Send(ack)] if ack is not None else []
        lane = self._lane(message.chunk)
        op = lane.operation
        if op is None:
            effects = self._accept(lane, message)
            if lane.idle:
                del self.lanes[message.chunk]
            return effects
        if op.is_update_of(message):  # its acknowledgement will come when it is done
            self._incoming.take(message.link_sequence)
            op.incoming_sequence = message.link_sequence
        else:
            lane.held = message
        return []

    def _accept(self, lane: Lane, message: m.Forward) -> list[Effect]:
        """A forward that is new on this link, and the chunk's lane is free."""
        meta = self.table.meta(message.chunk) or _NONE
        if self._has(message, meta):
            return [self._ack(message.link_sequence, message, Code.OK, meta.length, meta.checksum)]
        version = message.version
        if self.place.state is PublicState.SERVING and version != meta.version + 1:
            what = f"chunk {message.chunk.hex()}: version {version} after {meta.version}"
            return [m.Fault(what)]
        if message.kind is UpdateKind.REMOVE:
            version = ChunkVersion(max(version, meta.version + 1))
        self._incoming.take(message.link_sequence)
        lane.operation = operation = Operation(
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
        return [operation.stage(self.chain.version)]

    def _has(self, message: m.Forward, meta: ChunkMeta) -> bool:
        """Whether what a Forward brings is committed here, since an earlier chain version."""
        if message.kind is UpdateKind.REMOVE:
            return not meta.version and self._has_removed(message)
        if self.place.state is PublicState.SERVING:
            return meta.version == message.version
        stored = (meta.version, meta.length, meta.checksum)
        return stored == (message.version, message.length, message.checksum)

    def _has_removed(self, message: m.Forward) -> bool:
        """The chunk is not here; is its removal's record? Version 1 removes what never was."""
        if message.tag is None or message.version > 1:
            return True
        known = self.table.channel(message.tag.client, message.tag.channel)
        return known is not None and known.sequence >= message.tag.sequence

    def _ack(
        self,
        sequence: int,
        update: m.Forward | Operation,
        code: Code,
        length: int,
        checksum: int,
        detail: str = "",
    ) -> m.Send:
        """The answer to a forward, kept for as long as it may be asked for."""
        assert self.place.predecessor is not None
        incoming = update.incoming_version if isinstance(update, Operation) else update.version
        version = ChunkVersion(incoming)
        route = self.place.route(self.place.predecessor)
        ack = m.Ack(route, sequence, update.chunk, version, code, length, checksum, detail)
        self._incoming.answered(sequence, ack)
        return m.Send(ack)

    def _on_ack(self, ack: m.Ack, now_ms: int) -> list[Effect]:
        lane = self.lanes.get(ack.chunk)
        op = lane.operation if lane is not None else None
        successor = self.place.successor
        if op is None or op.phase is not Phase.FORWARDED or successor is None:
            return []
        if ack.route.source != successor.target or ack.link_sequence != op.link_sequence:
            return []
        if ack.code is not Code.OK:
            return self._on_negative_ack(op, ack, now_ms)
        theirs, mine = (ack.length, ack.checksum), (op.staged_length, op.staged_checksum)
        if op.kind is not UpdateKind.REMOVE and theirs != mine:
            return [m.Mismatch(op.chunk, op.version, successor.target, mine[1], theirs[1])]
        self._outgoing.close(op.link_sequence)
        if self._feeder is not None:
            self._feeder.resync.reached(op.chunk)
            if not op.resync:
                self._feeder.pacing.update_ended(op.chunk, now_ms)
        if op.resync:
            return self._finish_copy(op, now_ms)
        op.phase = Phase.COMMITTING
        return [m.Commit(op.chunk, op.version, self.chain.version)]

    def _on_negative_ack(self, op: Operation, ack: m.Ack, now_ms: int) -> list[Effect]:
        if ack.code is Code.BUSY or self.place.feeds_syncing:
            return []  # sent again when its time comes
        self._outgoing.close(op.link_sequence)
        effects = [m.Drop(op.chunk), *self._fail(op, ack.code, ack.detail, now_ms)]
        return effects + self._reads.settled(op.chunk, self.place, now_ms)

    def _on_committed(self, done: m.Committed, now_ms: int) -> list[Effect]:
        lane = self.lanes.get(done.chunk)
        op = lane.operation if lane is not None else None
        if op is None or op.phase is not Phase.COMMITTING or op.version != done.version:
            return []
        if done.code is not Code.OK:
            return [m.Fault(f"commit of chunk {done.chunk.hex()} failed: {done.code.name}")]
        effects = self._answer_all(op, Code.OK, "")
        effects += self._reads.settled(op.chunk, self.place, now_ms)
        if self.place.state is PublicState.SYNCING:
            effects += self._syncing.brought(op.staged_length)
        return effects + self._release(op, now_ms)

    def _fail(self, op: Operation, code: Code, detail: str, now_ms: int) -> list[Effect]:
        """Nobody downstream has it and neither has this replica: say so upstream."""
        return self._answer_all(op, code, detail) + self._release(op, now_ms)

    def _answer_all(self, op: Operation, code: Code, detail: str) -> list[Effect]:
        result = (op.staged_length, op.staged_checksum)
        effects: list[Effect] = [
            m.Reply(request, code, op.version, *result, detail) for request in op.requests
        ]
        if op.incoming_sequence:
            effects.append(self._ack(op.incoming_sequence, op, code, *result, detail))
        return effects

    def _release(self, op: Operation, now_ms: int) -> list[Effect]:
        """The operation has come to its end; the lane is free for the next."""
        lane = self.lanes[op.chunk]
        lane.operation = None
        return self._next(op.chunk, lane, now_ms)

    def _next(self, chunk: ChunkId, lane: Lane, now_ms: int) -> list[Effect]:
        """Whose turn is it, if the lane is free?"""
        effects: list[Effect] = []
        while lane.operation is None:
            if lane.held is not None:
                held, lane.held = lane.held, None
                effects += self._on_forward(held)
            elif lane.waiting:
                effects += self._begin(lane, lane.waiting.popleft(), now_ms)
            else:
                self.lanes.pop(chunk, None)
                break
        return effects

    def _lane(self, chunk: ChunkId) -> Lane:
        lane = self.lanes.get(chunk)
        if lane is None:
            lane = self.lanes[chunk] = Lane()
        return lane

    def _stale(self, request: Any) -> m.Reply:  # noqa: ANN401 - the shell's own handle
        detail = f"chain {self.chain.chain} is at version {self.chain.version}"
        return m.Reply(request, Code.STALE_CHAIN, _V0, 0, 0, detail)

    # --- copies for a syncing successor ----------------------------------------------------------

    def _pump_resync(self, now_ms: int) -> list[Effect]:
        if self._feeder is None:
            return []
        messages, copies = self._feeder.pump(now_ms)
        effects: list[Effect] = [m.Send(message) for message in messages]
        return effects + [self._forward(copy, now_ms) for copy in copies]

    def _finish_copy(self, op: Operation, now_ms: int) -> list[Effect]:
        if self._feeder is not None:
            self._feeder.finished(op)
        return self._release(op, now_ms) + self._pump_resync(now_ms)
