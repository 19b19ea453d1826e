"""Chunks of one target whose bytes are bad: brought from another replica and written anew.

Whoever meets a bad chunk calls :meth:`Repairs.suspect`; one chunk after another is tried. A try
runs on a thread of its own: verify, and if the bytes are bad indeed, fetch. What comes of it is
dealt with on the reactor's thread, like everything else here. docs/decisions/0005-repair.md has
the reasons.

While a chunk is being tried its stages wait here (``running``, :meth:`Repairs.hold`), and so does
an update that found bad bytes under it (:meth:`Repairs.hold_failed`), until the try is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from fs3.checksum import crc32c
from fs3.clock import Clock
from fs3.core.chunks import ChunkMeta
from fs3.core.messages import Stage
from fs3.core.replica import Replica
from fs3.core.types import Chain, ChunkId, PublicState, TargetId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import Reactor

from .chunkstore.interface import ChunkStore, Piece
from .fetching import fetch_chunk
from .settings import RepairSettings

_log = get_logger(__name__)
_CASES_MAX = 4096  # suspected at once; more are found again by the next scrub
_AT_ONCE = 3  # tries without a pause, of a chunk that changes under them
_PATIENCE = 5  # tries before an update that waits is refused
_DISAGREEMENTS = 3  # with good bytes elsewhere that are not ours
_PAUSE_S_MIN = 0.1
_PAUSE_S_MAX = 30.0

Held = tuple[Replica, Stage]


class Verdict(Enum):
    """What came of a try."""

    GOOD = "the bytes are good"
    BROUGHT = "good bytes have come"
    MOVED = "another version is committed by now"
    UNREACHED = "nobody who serves could be asked"
    LOST = "no other replica has good bytes"
    DISAGREED = "another replica has other bytes of the same version"
    DISK = "the disk has failed"


class Outcome(NamedTuple):
    """... in words, and the bytes that came."""

    verdict: Verdict
    detail: str = ""
    content: memoryview = memoryview(b"")


class Ward(Protocol):
    """What repairs need of their target."""

    target: TargetId
    store: ChunkStore
    core: Replica | None

    def address_of(self, target: TargetId) -> str | None:
        """Where another target's data port is, if that is known."""

    def fail(self, reason: str) -> None:
        """The target cannot be trusted."""

    def resume(self, held: Sequence[Held]) -> None:
        """Do these stages now."""


@dataclass(slots=True)
class _Case:
    """A suspected chunk."""

    detail: str
    tries: int = 0
    disagreements: int = 0
    bad: bool = False  # the bytes have been seen to be bad
    lost: str = ""  # why it cannot be repaired now
    held: list[Held] = field(default_factory=list)
    paused: bool = False


class Repairs:
    """Reactor thread only, but for ``_attempt``."""

    def __init__(
        self,
        ward: Ward,
        settings: RepairSettings,
        *,
        reactor: Reactor,
        clock: Clock,
        cluster_id: str,
    ) -> None:
        self.running: ChunkId | None = None  # its stages wait
        self.found = 0  # chunks seen to be bad, since the start
        self.repaired = 0
        self._ward = ward
        self._settings = settings
        self._reactor = reactor
        self._clock = clock
        self._cluster_id = cluster_id
        self._cases: dict[ChunkId, _Case] = {}
        self._queue: deque[ChunkId] = deque()
        self._found_ms: deque[int] = deque()  # when bad ones were found, within the window
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"repair-{ward.target}")
        self._closed = False

    # --- what others see and say -----------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Chunks that are bad and not repaired yet, or suspected and not looked at yet."""
        return len(self._cases)

    @property
    def complaint(self) -> str:
        """What an operator should know; empty if all is well."""
        lost = [(chunk, case.lost) for chunk, case in self._cases.items() if case.lost]
        if not lost:
            return ""
        chunk, why = lost[0]
        return f"{len(lost)} bad chunks cannot be repaired: chunk {chunk.hex()}: {why}"

    def suspect(self, chunk: ChunkId, detail: str) -> None:
        """Its bytes may be bad. Idempotent."""
        if self._closed or chunk in self._cases or len(self._cases) >= _CASES_MAX:
            return
        _log.warning("chunk_suspected", target=self._ward.target, chunk=chunk.hex(), reason=detail)
        self._cases[chunk] = _Case(detail)
        self._enqueue(chunk)

    def hold(self, core: Replica, stage: Stage) -> bool:
        """True if the stage must wait for the try that is under way; it is resumed after it."""
        if stage.chunk != self.running:
            return False
        self._cases[stage.chunk].held.append((core, stage))
        return True

    def hold_failed(self, core: Replica, stage: Stage, detail: str) -> bool:
        """The stage found bad bytes in the store. True if it is resumed later, False: refuse it."""
        self.suspect(stage.chunk, detail)
        case = self._cases.get(stage.chunk)
        if case is None or case.lost or case.tries >= _PATIENCE:
            return False
        case.held.append((core, stage))
        return True

    def kick(self) -> None:
        """The chain has changed: who could not be asked may serve now."""
        for chunk, case in self._cases.items():
            if case.paused:
                self._resume_case(chunk, case)

    def stop(self) -> None:
        """The target is out of service: nothing more is tried, what is held has been answered."""
        self._closed = True
        self._cases.clear()
        self._queue.clear()
        self.running = None

    def close(self) -> None:
        """Wait for the thread, which gives up within seconds."""
        self.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    # --- tries -----------------------------------------------------------------------------------

    def _enqueue(self, chunk: ChunkId) -> None:
        self._queue.append(chunk)
        self._reactor.call_soon(self._next)

    def _resume_case(self, chunk: ChunkId, case: _Case) -> None:
        if case.paused and self._cases.get(chunk) is case:
            case.paused = False
            self._enqueue(chunk)

    def _next(self) -> None:
        if self.running is not None or not self._queue:
            return
        chunk = self._queue.popleft()
        meta = self._ward.store.meta(chunk)
        if meta is None or not meta.version:
            self._end(chunk)  # removed meanwhile
            return
        self.running = chunk
        chain, sources = self._sources()
        attempt = self._thread.submit(self._attempt, chunk, meta, chain, sources)
        attempt.add_done_callback(
            lambda done: self._reactor.call_soon(self._tried, chunk, meta, done)
        )

    def _sources(self) -> tuple[Chain | None, list[str | None]]:
        """The chain, and the addresses of the others that serve; None for an unknown one."""
        core = self._ward.core
        if core is None or core.place.state is not PublicState.SERVING:
            return None, []
        others = [r.target for r in core.chain.serving if r.target != self._ward.target]
        return core.chain, [self._ward.address_of(target) for target in others]

    def _attempt(
        self, chunk: ChunkId, meta: ChunkMeta, chain: Chain | None, sources: list[str | None]
    ) -> Outcome:
        """On the thread."""
        return self._verify(chunk, meta) or self._fetch(chunk, meta, chain, sources)

    def _verify(self, chunk: ChunkId, meta: ChunkMeta) -> Outcome | None:
        """None: the bytes are bad."""
        buffer = memoryview(bytearray(meta.length))
        piece = Piece(chunk, 0, meta.length)
        (found,) = self._ward.store.read([piece], [buffer], verify=True)
        if found.code is Code.DISK:
            return Outcome(Verdict.DISK, found.detail)
        if found.code is Code.OK and found.version != meta.version:
            return Outcome(Verdict.MOVED)
        if found.code is Code.OK and crc32c(buffer[: found.length]) == meta.checksum:
            return Outcome(Verdict.GOOD)
        return Outcome(Verdict.MOVED) if found.code is Code.NO_CHUNK else None

    def _fetch(
        self, chunk: ChunkId, meta: ChunkMeta, chain: Chain | None, sources: list[str | None]
    ) -> Outcome:
        """Ask one after another; if nobody has it, the answer that weighs most."""
        if chain is None:
            return Outcome(Verdict.UNREACHED, "this target does not serve")
        worst = Outcome(Verdict.LOST, "no other replica serves" if not sources else "")
        for address in sources:
            if address is None:
                found = Outcome(Verdict.UNREACHED, "the address of a replica is not known")
            else:
                found = self._fetch_from(address, chunk, meta, chain)
            if found.verdict is Verdict.BROUGHT:
                return found
            if _WEIGHT.index(found.verdict) >= _WEIGHT.index(worst.verdict):
                worst = found
        return worst

    def _fetch_from(self, address: str, chunk: ChunkId, meta: ChunkMeta, chain: Chain) -> Outcome:
        try:
            copy = fetch_chunk(address, self._cluster_id, chain, chunk, meta.length)
        except OSError as error:
            if not isinstance(error, Fs3Error):
                return Outcome(Verdict.UNREACHED, f"{address}: {error}")
            if error.code is Code.CORRUPT:
                return Outcome(Verdict.LOST, error.detail)
            if error.code is Code.NO_CHUNK:
                return Outcome(Verdict.MOVED, f"{address} has no such chunk")
            return Outcome(Verdict.UNREACHED, f"{error.code.name}: {error.detail}")
        if copy.version != meta.version:
            return Outcome(Verdict.MOVED, f"{address} has version {copy.version}")
        if (len(copy.content), copy.checksum) != (meta.length, meta.checksum):
            return Outcome(
                Verdict.DISAGREED,
                f"version {meta.version} at {address} has checksum {copy.checksum:08x},"
                f" here it is said to have {meta.checksum:08x}",
            )
        return Outcome(Verdict.BROUGHT, address, copy.content)

    # --- what came of them -----------------------------------------------------------------------

    def _tried(self, chunk: ChunkId, meta: ChunkMeta, attempt: Future[Outcome]) -> None:
        if self._closed:
            return
        self.running = None
        case, outcome = self._cases[chunk], attempt.result()
        if outcome.verdict is Verdict.BROUGHT:
            outcome = self._restore(chunk, meta, outcome)
        if outcome.verdict is Verdict.DISK:
            self._ward.fail(outcome.detail)
            return
        if outcome.verdict not in (Verdict.GOOD, Verdict.MOVED) and not case.bad:
            case.bad = True
            self._count(chunk)
        if chunk not in self._cases:  # that was one too many
            return
        if outcome.verdict in (Verdict.GOOD, Verdict.BROUGHT):
            self._end(chunk)
        else:
            self._again(chunk, case, outcome)
        self._reactor.call_soon(self._next)

    def _restore(self, chunk: ChunkId, meta: ChunkMeta, outcome: Outcome) -> Outcome:
        code = self._ward.store.restore(chunk, meta.version, outcome.content)
        if code is Code.OK:
            self.repaired += 1
            _log.info(
                "chunk_repaired",
                target=self._ward.target,
                chunk=chunk.hex(),
                version=meta.version,
                source=outcome.detail,
            )
            return outcome
        if code is Code.STALE_UPDATE:
            return Outcome(Verdict.MOVED)
        if code is Code.DISK:
            return Outcome(Verdict.DISK, self._ward.store.failed or "the disk has failed")
        return Outcome(Verdict.UNREACHED, f"the good bytes could not be stored: {code.name}")

    def _again(self, chunk: ChunkId, case: _Case, outcome: Outcome) -> None:
        case.tries += 1
        reason = outcome.detail or outcome.verdict.value
        case.disagreements += outcome.verdict is Verdict.DISAGREED
        if case.disagreements >= _DISAGREEMENTS and self._others_serve():
            self._ward.fail(f"chunk {chunk.hex()} is bad and cannot be repaired: {reason}")
            return
        lost = reason if outcome.verdict in (Verdict.LOST, Verdict.DISAGREED) else ""
        if lost and not case.lost:
            _log.error("chunk_lost", target=self._ward.target, chunk=chunk.hex(), reason=reason)
        case.lost = lost
        held, case.held = case.held, []
        self._ward.resume(held)  # what needs the bad bytes is back at once, or refused
        at_once = outcome.verdict is Verdict.MOVED and case.tries <= _AT_ONCE
        pause_s = min(_PAUSE_S_MIN * 2 ** min(case.tries, 16), _PAUSE_S_MAX)
        case.paused = True
        if at_once:
            self._resume_case(chunk, case)
        else:
            self._reactor.call_later(pause_s, lambda: self._resume_case(chunk, case))

    def _end(self, chunk: ChunkId) -> None:
        case = self._cases.pop(chunk)
        self._ward.resume(case.held)

    def _count(self, chunk: ChunkId) -> None:
        """One more bad chunk: is the disk dying?"""
        self.found += 1
        now_ms = self._clock.monotonic_ms()
        self._found_ms.append(now_ms)
        while self._found_ms[0] < now_ms - self._settings.window_s * 1000:
            self._found_ms.popleft()
        detail = self._cases[chunk].detail
        _log.error("chunk_corrupt", target=self._ward.target, chunk=chunk.hex(), reason=detail)
        if len(self._found_ms) > self._settings.bad_chunks_max and self._others_serve():
            self._ward.fail(
                f"{len(self._found_ms)} bad chunks within {self._settings.window_s:g} s,"
                f" more than repair.bad_chunks_max; the last one: {chunk.hex()}: {detail}"
            )

    def _others_serve(self) -> bool:
        core = self._ward.core
        return core is not None and len(core.chain.serving) > 1


_WEIGHT = (Verdict.LOST, Verdict.UNREACHED, Verdict.MOVED, Verdict.DISAGREED)
