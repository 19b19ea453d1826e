"""The shell of one target: events into the replica core, its effects onto store and wire.

Everything here runs on the reactor's thread; what waits for the disk or for others runs on threads
of the target's own (syncs.py, repair.py) and reports back. A target is

    closed     just started, and the manager still shows it as serving: it says OFFLINE until the
               manager has taken it out, so that it never serves what it may have missed
    waiting    open, and no writable member of its chain: it says ONLINE
    in a core  SERVING or SYNCING: the core decides
    failed     its disk or its content cannot be trusted: it says OFFLINE, with the reason
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from fs3.buffers import BufferPool
from fs3.checksum import crc32c
from fs3.clock import Clock
from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.replica import Limits, Replica
from fs3.core.stamps import Stamps
from fs3.core.types import (
    Chain,
    ChainVersion,
    ChunkVersion,
    LocalState,
    PublicState,
    TargetId,
)
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import Reactor

from .chunkstore.interface import (
    Channel,
    ChunkStore,
    Commit,
    LocatingStore,
    Piece,
    StageRequest,
    Usage,
)
from .creations import Creations
from .identity import Identity
from .jobs import BufferOwner, Payload
from .reads import Reads
from .repair import Held, Repairs
from .settings import EvictionSettings, RepairSettings
from .surroundings import Report, Surroundings
from .syncs import Syncs
from .tenancy import Tenancy
from .values import Values

_log = get_logger(__name__)
_EARLY_MAX = 256  # messages kept for a core that is about to be built
_WRITABLE = (PublicState.SERVING, PublicState.SYNCING)


class Target:
    """One target."""

    def __init__(
        self,
        target: TargetId,
        store: ChunkStore,
        limits: Limits,
        *,
        reactor: Reactor,
        pool: BufferPool,
        clock: Clock,
        surroundings: Surroundings,
        cluster_id: str,
        repair: RepairSettings,
        eviction: EvictionSettings,
        identity: Identity | None,
    ) -> None:
        self.target = target
        self.store = store
        self.core: Replica | None = None
        self.chain: Chain | None = None
        self.problem = store.failed or ""
        self._limits = limits
        self._reactor = reactor
        self._pool = pool
        self._clock = clock
        self._around = surroundings
        self._stamps = store.stamps if isinstance(store, LocatingStore) else Stamps()
        self._closed = True
        self._early: list[m.Message] = []
        self._queue: deque[m.Event] = deque()
        self._stepping = False
        self._syncs: Syncs[tuple[Replica, m.Staged | m.Flushed]] = Syncs(
            target, store, reactor, self._synced, self.fail
        )
        self._tenancy = Tenancy(target, identity, store, reactor, self._emptied, self.fail)
        self.values = Values(self, eviction, reactor=reactor, clock=clock)
        self.reads = Reads(self, reactor, clock)
        self.creations = Creations(self, reactor, clock)
        self.repairs = Repairs(self, repair, reactor=reactor, clock=clock, cluster_id=cluster_id)

    # --- membership ------------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """What to tell the manager now."""
        if self.problem or self._closed or not self._tenancy.ready:
            state = LocalState.OFFLINE
        else:
            state = LocalState.ONLINE if self.core is None else self.core.local_state
        chain = self.core.chain if self.core is not None else self.chain
        done, total = self.core.sync_progress if self.core is not None else (0, 0)
        return Report(
            target=self.target,
            state=state,
            chain_version=chain.version if chain is not None else ChainVersion(0),
            problem=self.problem or self._tenancy.complaint or self.repairs.complaint,
            sync_done=done,
            sync_total=total,
            resync_bytes_per_s=self._limits.resync_bytes_per_s,
        )

    def set_resync_rate(self, bytes_per_s: int) -> None:
        """How fast others are brought up to date from here, also under way; 0: unlimited."""
        self._limits = replace(self._limits, resync_bytes_per_s=bytes_per_s)
        if self.core is not None:
            self.core.set_resync_rate(bytes_per_s)

    def on_chain(self, chain: Chain | None) -> None:
        """The chain as routing shows it; None: the target is in none."""
        before = self.report.state
        self.chain = chain
        if self.core is not None:
            if chain is None or chain.chain != self.core.chain.chain:
                self._stop_core()
            else:
                self.feed([m.ChainChanged(chain)])
        if self.core is None:
            self._consider()
        self.repairs.kick()
        if self.report.state is not before:
            self._around.state_changed()

    def _consider(self) -> None:
        """No core: is it time for one?"""
        place = self.chain.replica(self.target) if self.chain is not None else None
        state = place.state if place is not None else None
        self._closed = self._closed and state in (*_WRITABLE, PublicState.WAITING)
        if self.problem or self._closed:
            return
        may_take_part = self._tenancy.enter(self.chain)
        if may_take_part and self.chain is not None and state is not None and state in _WRITABLE:
            self._build_core(self.chain, state)

    def _emptied(self) -> None:
        self._consider()
        self._around.state_changed()

    def _build_core(self, chain: Chain, state: PublicState) -> None:
        what = {"chain": chain.chain, "chain_version": chain.version}
        _log.info("replica_started", target=self.target, **what, state=state.name)
        self.core = Replica(self.target, chain, self.store, self._limits)
        early, self._early = self._early, []
        try:
            self._run(self.core.start(self._clock.monotonic_ms()))
            self.feed(early)
        except Fs3Error as error:
            self._fail_soon(error)

    def _stop_core(self) -> None:
        if self.core is not None:
            core, self.core = self.core, None
            self._perform(core.stop())
            self._refuse_queued()
            _log.info("replica_stopped", target=self.target, chain_version=core.chain.version)

    def fail(self, reason: str) -> None:
        """Out of service for good: nothing this target says can be trusted."""
        if not self.problem:
            self.problem = reason
            _log.error("target_failed", target=self.target, reason=reason)
            self._early.clear()  # there will be no core, and they hold buffers that others need
            self._stop_core()
            self.repairs.stop()
            self._around.state_changed()

    def grant(self, chain_version: ChainVersion, until_ms: int) -> None:
        """A lease from the manager."""
        if self.core is not None:
            self.feed([m.LeaseRenewed(chain_version, until_ms)])

    # --- the core --------------------------------------------------------------------------------

    def deliver(self, messages: Sequence[m.Message]) -> None:
        """Messages of neighbours."""
        if self.core is not None:
            self.feed(messages)
        elif not self.problem and len(self._early) + len(messages) <= _EARLY_MAX:
            self._early += messages
            self._around.refresh_routing()

    def feed(self, events: Sequence[m.Event]) -> None:
        """Step the core with each event and perform what comes of it, to the end."""
        self._queue.extend(events)
        if not self._stepping:
            self._run([])

    def _run(self, effects: list[m.Effect]) -> None:
        self._stepping = True
        try:
            self._perform(effects)
            while self._queue and self.core is not None:
                now_ms = self._clock.monotonic_ms()
                effects = []
                try:
                    while self._queue:
                        effects += self.core.step(self._queue.popleft(), now_ms)
                except Fs3Error as error:  # its look into the table met a disk that fails
                    self._fail_soon(error)
                self._perform(effects)
            self._refuse_queued()
        finally:
            self._stepping = False
            self._around.flush()

    def _fail_soon(self, error: Fs3Error) -> None:
        if error.code is not Code.DISK:
            raise error
        self._reactor.call_soon(self.fail, error.detail)

    def _refuse_queued(self) -> None:
        """Events that found no core: only clients are owed an answer."""
        while self._queue:
            event = self._queue.popleft()
            if isinstance(event, m.Write | m.Read):
                job, index = event.request
                detail = self.problem or f"target {self.target} does not serve"
                job.finish(index, Code.NOT_SERVING, ChunkVersion(0), 0, 0, detail)

    def _perform(self, effects: Sequence[m.Effect]) -> None:
        """In order; stages that stand together are one batch of the store, so are commits."""
        self._say_what_is_served()
        at = 0
        while at < len(effects):
            effect = effects[at]
            if isinstance(effect, m.Stage | m.Commit):
                end = at + 1
                while end < len(effects) and type(effects[end]) is type(effect):
                    end += 1
                if isinstance(effect, m.Stage):
                    self._stage(effects[at:end])  # type: ignore[arg-type]
                else:
                    self._commit(effects[at:end])  # type: ignore[arg-type]
                at = end
            else:
                self._perform_one(effect)
                at += 1

    def _say_what_is_served(self) -> None:
        """To whoever reads by himself what lies here; before anything follows from a step."""
        core = self.core
        if core is not None and core.serving:
            self._stamps.serve(core.chain.chain, core.chain.version, core.lease_until_ms)
        else:
            self._stamps.withdraw()

    def _perform_one(self, effect: m.Effect) -> None:
        match effect:
            case m.Reply():
                job, index = effect.request
                job.finish(index, *effect[1:])
            case m.ServeRead():
                self.reads.serve(effect)
            case m.NoteUses():
                self.values.heard(effect.chunks)
            case m.Send():
                self._send(effect.message)
            case m.Drop() | m.PutChannels() | m.Flush():
                self._store_one(effect)
            case m.StateChanged():
                self._around.state_changed()
            case m.RefreshRouting():
                self._around.refresh_routing()
            case m.Fault():
                self._reactor.call_soon(self.fail, effect.detail)
            case m.Mismatch():
                self._judge(effect)
            case m.Demoted():
                self.core = None
            case _:
                raise AssertionError(f"an effect that nobody performs: {effect}")

    # --- store -----------------------------------------------------------------------------------

    def _store_one(self, effect: m.Drop | m.PutChannels | m.Flush) -> None:
        match effect:
            case m.Drop():
                self.store.drop([effect.chunk])
                self._note_failure()
            case m.PutChannels():
                self.store.put_channels([Channel(*row) for row in effect.channels])
                self._note_failure()
            case m.Flush():
                if self.core is not None:
                    self._syncs.put((self.core, m.Flushed(effect.number)))
                    self._syncs.start()

    def _stage(self, effects: Sequence[m.Stage]) -> None:
        core = self.core
        assert core is not None
        if self.repairs.running is not None:
            effects = [e for e in effects if not self.repairs.hold(core, e)]
        requests = [
            StageRequest(
                e.chunk,
                e.kind,
                e.version,
                e.offset,
                e.length,
                e.data.view if e.data is not None else None,
                e.checksum,
                e.chain_version,
                e.tag,
            )
            for e in effects
        ]
        results = self.store.stage(requests)
        for e, result in zip(effects, results, strict=True):
            event = m.Staged(e.chunk, e.version, *result)
            if e.sync and result.code is Code.OK:
                self._syncs.put((core, event))
            elif (
                result.code is not Code.CORRUPT
                or _data_is_bad(e)
                or not self.repairs.hold_failed(core, e, result.detail)
            ):
                self._queue.append(event)
        self._note_failure()
        self._syncs.start()

    def _commit(self, effects: Sequence[m.Commit]) -> None:
        commits = [Commit(e.chunk, e.version, e.chain_version) for e in effects]
        for commit, code in zip(commits, self.store.commit(commits), strict=True):
            self._queue.append(m.Committed(commit.chunk, commit.version, code))
        self.values.committed([commit.chunk for commit in commits])
        self._note_failure()

    def _note_failure(self) -> None:
        if self.store.failed is not None:
            self._reactor.call_soon(self.fail, self.store.failed)

    def _synced(self, group: list[tuple[Replica, m.Staged | m.Flushed]]) -> None:
        # A core that was stopped meanwhile has refused these already.
        self.feed([event for core, event in group if core is self.core])

    def resume(self, held: Sequence[Held]) -> None:
        """See :class:`repair.Ward`."""
        self._run([stage for core, stage in held if core is self.core])

    def address_of(self, target: TargetId) -> str | None:
        """See :class:`repair.Ward`."""
        return self._around.address_of(target)

    # --- neighbours ------------------------------------------------------------------------------

    def tell(self, message: m.Message) -> None:
        """See :class:`eviction.Ward`."""
        self._around.send(message, None)
        self._around.flush()

    def _send(self, message: m.Message) -> None:
        payload: Payload | None = None
        if isinstance(message, m.Forward):
            payload = message.data
            if payload is None and message.kind is UpdateKind.REPLACE and message.length:
                payload = self._content(message)
                if payload is None:
                    return
        self._around.send(message, payload)

    def _content(self, message: m.Forward) -> Payload | None:
        """The whole chunk at the version that is being forwarded; None: not now, it comes again."""
        meta = self.store.meta(message.chunk)
        pending = meta is not None and meta.pending_version == message.version
        try:
            owner = BufferOwner(self._pool.take(message.length))
        except Fs3Error as error:
            if error.code is not Code.BUSY:
                raise
            return None
        view = owner.buffer.view[: message.length]
        piece = Piece(message.chunk, 0, message.length)
        (found,) = self.store.read([piece], [view], pending=pending, verify=True)
        if found.code is Code.OK and found.length == message.length:
            return Payload(view, owner)
        if found.code is Code.CORRUPT:
            self.repairs.suspect(message.chunk, found.detail)
            return None
        detail = f"chunk {message.chunk.hex()} for resync: {found.code.name} {found.detail}"
        self._reactor.call_soon(self.fail, detail)
        return None

    def _judge(self, mismatch: m.Mismatch) -> None:
        """Successor and we disagree about a chunk: read ours back. Who is wrong goes offline."""
        meta = self.store.meta(mismatch.chunk)
        length = max(meta.pending_length, meta.length) if meta is not None else 0
        piece = Piece(mismatch.chunk, 0, length)
        buffer = memoryview(bytearray(length))
        (found,) = self.store.read([piece], [buffer], pending=True, verify=True)
        reason = (
            f"chunk {mismatch.chunk.hex()} version {mismatch.version} has checksum"
            f" {mismatch.successor_checksum:#010x} on target {mismatch.successor} and"
            f" {mismatch.checksum:#010x} on target {self.target}"
        )
        if found.code is Code.OK and found.crc == mismatch.checksum:
            self._around.accuse(mismatch.successor, reason)
        else:
            self._reactor.call_soon(self.fail, reason)

    # --- time and end ----------------------------------------------------------------------------

    def tick(self) -> None:
        """Every few tens of milliseconds."""
        self.reads.tick()
        self.values.tick()
        if self.core is not None:
            self.feed([m.Tick()])

    def background(self) -> None:
        """Every second: the store's own work, off the reactor's thread; and old values go."""
        self._note_failure()
        self.values.background()
        self._syncs.background()

    def usage(self) -> Usage:
        """Space taken and left, as far as the disk tells."""
        try:
            return self.store.usage()
        except OSError as error:
            self._reactor.call_soon(self.fail, str(error))
            return Usage(0, 0, 0, 0)

    def leave(self) -> None:
        """The process is going: from now on the target says OFFLINE and refuses everything."""
        self._stop_core()
        self.problem = self.problem or "the storageserver is stopping"

    def close(self) -> None:
        """Stop serving and close the store cleanly."""
        self.leave()
        self.values.write_down()
        self.repairs.close()
        self._syncs.close()
        try:
            self.store.close()
        except OSError as error:  # the next start finds a store that was not closed
            _log.error("store_not_closed", target=self.target, reason=str(error))


def _data_is_bad(stage: m.Stage) -> bool:
    """Whether a stage that was refused as CORRUPT brought the bad bytes itself."""
    return stage.data is not None and crc32c(stage.data.view) != stage.checksum
