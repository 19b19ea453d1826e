"""A storageserver with one target: the real replica core under a small shell.

The shell does what storageserver/target.py does: it says OFFLINE after a start until the manager
has taken its target out, builds a core when the chain shows the target SERVING or SYNCING, performs
the core's effects in order, answers clean reads by itself, and discards a core that is demoted. A
new core waits until the store has done all that the old one asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.codes import Code
from fs3.core.reach import Prober
from fs3.core.replica import Replica
from fs3.core.types import Chain, ChainVersion, LocalState, NodeId, PublicState
from fs3.core.types import TargetId as Target

from .checkers import Checker
from .disk import CAPACITY_BYTES, Disk
from .manager import Grant, Manager, Report
from .network import Network
from .swarm import Settings
from .world import Violation, World

_TICK_MS = 20
_EARLY_MAX = 256
_WRITABLE = (PublicState.SERVING, PublicState.SYNCING)


class Answer(Protocol):
    """Where a client's answer goes."""

    def __call__(
        self, code: Code, value: bytes | None = None, result: tuple[int, int] = (0, 0)
    ) -> None: ...


class Cluster(Protocol):
    """What a node sees of the rest of the world."""

    nodes: dict[int, Node]
    manager: Manager

    def moment(self, node: Node) -> None:
        """``node`` has shown data, or committed some: a good moment for it to die."""


class Node:
    """One storageserver process after another, on one machine with one disk."""

    def __init__(
        self,
        number: int,
        world: World,
        settings: Settings,
        network: Network,
        cluster: Cluster,
        checker: Checker,
    ) -> None:
        self.number = number
        self.name = f"node {number}"
        self.disk = Disk(world, settings)
        self.core: Replica | None = None
        self.up = False
        self.problem = ""
        self._world = world
        self._settings = settings
        self._network = network
        self._cluster = cluster
        self._checker = checker
        self._chain: Chain | None = None
        self._closed = True
        self._early: list[m.Message] = []
        self._queue: deque[m.Event] = deque()
        self._stepping = False
        self._incarnation = 0
        self._sequence = 0
        self._prober = Prober(settings.lease_ms)
        self._paused_until_ms = 0
        self._rate = 1000 + world.random.randint(-1, 1) * settings.drift_per_mille

    # --- life and death --------------------------------------------------------------------------

    def boot(self, *, fresh: bool = False) -> None:
        """The process starts. ``fresh``: in no chain yet, so nothing to be taken out of."""
        self._incarnation += 1
        self._world.note(self.name, f"boots, incarnation {self._incarnation}")
        self.up, self.problem, self._closed = True, "", not fresh
        self.core, self._chain = None, None
        self._early, self._sequence = [], 0
        self._prober = Prober(self._settings.lease_ms)
        self._queue.clear()
        self.disk.store.capacity_bytes = CAPACITY_BYTES
        if not fresh:
            self._register()
        self._beat()
        self._tick()

    def die(self, *, power: bool) -> None:
        """kill -9, or a loss of power."""
        self._world.note(self.name, "loses power" if power else "crashes")
        self.up = False
        self.core = None
        self._paused_until_ms = 0
        self.disk.lose(power=power)

    def pause(self, span_ms: int) -> None:
        """SIGSTOP and, after a while, SIGCONT."""
        self._world.note(self.name, f"is stopped for {span_ms} ms")
        self._paused_until_ms = self._world.now_ms + span_ms

    def fail(self, reason: str) -> None:
        """Out of service until a restart."""
        self._world.note(self.name, f"fails: {reason}")
        self._checker.failed(self.number, reason)
        self.problem = reason
        self._stop_core()
        self._report()

    def _alive(self, thing: Callable[[], None]) -> Callable[[], None]:
        """Done only if this very process still lives, and not while it is stopped."""
        incarnation = self._incarnation

        def guarded() -> None:
            if not self.up or incarnation != self._incarnation:
                return
            if self._world.now_ms < self._paused_until_ms:
                self._world.after(self._paused_until_ms - self._world.now_ms, guarded)
                return
            thing()

        return guarded

    def clock_ms(self) -> int:
        """This machine's monotonic clock."""
        return self._world.now_ms * self._rate // 1000

    # --- membership ------------------------------------------------------------------------------

    def _call_manager(self, ask: Callable[[Manager], Callable[[], None]]) -> None:
        """One RPC: ``ask`` runs at the manager, what it returns runs here."""
        network, cluster = self._network, self._cluster

        def there() -> None:
            if cluster.manager.up:
                network.send("manager", self.name, self._alive(ask(cluster.manager)))

        network.send(self.name, "manager", there)

    def _register(self) -> None:
        incarnation = self._incarnation

        def ask(manager: Manager) -> Callable[[], None]:
            manager.register(NodeId(self.number), incarnation)
            return lambda: None

        self._call_manager(ask)

    def _beat(self) -> None:
        self._report()
        self._world.after(self._settings.heartbeat_ms, self._alive(self._beat))

    @property
    def state(self) -> LocalState:
        """What the manager hears of the target."""
        if self.problem or self._closed:
            return LocalState.OFFLINE
        return self.core.local_state if self.core is not None else LocalState.ONLINE

    def _report(self) -> None:
        self._sequence += 1
        chain = self.core.chain if self.core is not None else self._chain
        version = chain.version if chain is not None else ChainVersion(0)
        node = NodeId(self.number)
        unreachable = self._prober.unreachable
        report = Report(node, self._incarnation, self._sequence, self.state, version, unreachable)
        sent_ms = self.clock_ms()

        def ask(manager: Manager) -> Callable[[], None]:
            grant = manager.hear(report)
            return lambda: self._granted(grant, sent_ms)

        self._call_manager(ask)

    def _granted(self, grant: Grant, sent_ms: int) -> None:
        if grant.unknown:
            self._register()
            return
        if self._chain is None or grant.chain.version > self._chain.version:
            self._refresh()  # the answer speaks of it, but does not bring it
        if grant.leased is not None and self.core is not None:
            self.feed(m.LeaseRenewed(grant.leased, sent_ms + self._settings.lease_ms))

    def _refresh(self) -> None:
        def ask(manager: Manager) -> Callable[[], None]:
            chain = manager.chain
            return lambda: self._on_chain(chain)

        self._call_manager(ask)

    def hear(self, chain: Chain) -> None:
        """The manager pushes a chain."""
        self._network.send("manager", self.name, self._alive(lambda: self._on_chain(chain)))

    def _on_chain(self, chain: Chain) -> None:
        if self._chain is not None and chain.version <= self._chain.version:
            return
        before = self.state
        self._chain = chain
        if self.core is not None:
            self.feed(m.ChainChanged(chain))
        self._consider()
        if self.state is not before:
            self._report()

    def _consider(self) -> None:
        """No core: is it time for one?"""
        chain = self._chain
        if self.core is not None or self.problem or chain is None:
            return
        place = chain.replica(Target(self.number))
        state = place.state if place is not None else None
        if self._closed:
            self._closed = state in (*_WRITABLE, PublicState.WAITING)
            if self._closed:
                return
        if state not in _WRITABLE or self.disk.outstanding:
            return
        self.core = Replica(Target(self.number), chain, self.disk.store, self._settings.limits)
        early, self._early = self._early, []
        self._perform(self.core.start(self.clock_ms()))
        for message in early:
            self.feed(message)

    def _stop_core(self) -> None:
        if self.core is not None:
            core, self.core = self.core, None
            self._perform(core.stop())

    def _probe(self) -> None:
        """Ask those who share the chain; they answer whatever state they are in."""
        if not self._settings.rift:
            return
        chain = self._chain
        mine = chain.replica(Target(self.number)) if chain is not None else None
        members = chain.replicas if chain is not None and mine is not None else ()
        wanted = [r.node for r in members if r.node != self.number]
        now_ms, prober = self.clock_ms(), self._prober

        def answer(node: NodeId) -> None:
            prober.answered(node, now_ms, self.clock_ms())

        for node in prober.tick(wanted, now_ms):
            self._cluster.nodes[int(node)].probed(self.name, self._alive(partial(answer, node)))

    def probed(self, asker: str, answered: Callable[[], None]) -> None:
        """A probe is on its way here from ``asker``."""
        answer = self._alive(lambda: self._network.send(self.name, asker, answered))
        self._network.send(asker, self.name, answer)

    def _tick(self) -> None:
        self._probe()
        if self.core is not None:
            self.feed(m.Tick())
        self._world.after(_TICK_MS, self._alive(self._tick))

    # --- clients ---------------------------------------------------------------------------------

    def write(self, chain_version: int, update: m.Write, answer: Answer) -> None:
        """A client's update."""

        def arrive() -> None:
            if self.core is None:
                answer(Code.NOT_SERVING)
            else:
                request = partial(self._answered, update, answer)
                self.feed(update._replace(request=request, chain_version=chain_version))

        self._alive(arrive)()

    def _answered(self, update: m.Write, answer: Answer, code: Code, *rest: Any) -> None:
        # Others may have had nothing to change, and leave no record then.
        if code is Code.OK and update.tag is not None and update.kind is UpdateKind.WRITE:
            self._checker.acknowledged(self.number, update.chunk, update.tag)
        answer(code, *rest)

    def read(self, chain_version: ChainVersion, chunk: bytes, answer: Answer) -> None:
        """A client's read: clean chunks are answered here, dirty ones by the core."""

        def arrive() -> None:
            core = self.core
            if core is None or not core.serves(self.clock_ms()):
                answer(Code.NOT_SERVING)
            elif core.chain.version != chain_version:
                answer(Code.STALE_CHAIN)
            elif (meta := self.disk.store.meta(chunk)) is not None and meta.pending_version:
                self.feed(m.Read(answer, chain_version, chunk))
            else:
                self._serve(answer, chunk, pending=False)

        self._alive(arrive)()

    def _serve(self, answer: Answer, chunk: bytes, *, pending: bool) -> None:
        value = self.disk.read(chunk, pending=pending)
        self._checker.shows(self.number, chunk, value)
        answer(Code.OK, value)
        self._cluster.moment(self)

    # --- the core --------------------------------------------------------------------------------

    def deliver(self, message: m.Message) -> None:
        """A neighbour's message."""

        def arrive() -> None:
            if self.core is not None:
                self.feed(message)
            elif len(self._early) < _EARLY_MAX:
                self._early.append(message)

        self._alive(arrive)()

    def feed(self, event: m.Event) -> None:
        """Step the core, and perform what comes of it; what is fed meanwhile comes afterwards."""
        self._queue.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self._stepping = False
        self._consider()

    def _step(self, event: m.Event) -> None:
        core = self.core
        if core is None:
            if isinstance(event, m.Write | m.Read):
                event.request(Code.NOT_SERVING)
            return
        if self._world.watched and not isinstance(event, m.Tick):
            self._world.note(self.name, f"<- {_told(event)}")
        self._perform(core.step(event, self.clock_ms()))

    def _perform(self, effects: list[m.Effect]) -> None:
        for effect in effects:
            if self._world.watched:
                self._world.note(self.name, f"   {_told(effect)}")
            self._perform_one(effect)

    def _perform_one(self, effect: m.Effect) -> None:
        match effect:
            case m.Stage() | m.Commit() | m.Drop() | m.PutChannels() | m.Flush():
                core = self.core
                self.disk.put(effect, lambda event: self._stored(core, effect, event))
            case m.Send():
                self._send(effect.message)
            case m.Reply():
                value = effect.code is Code.NO_CHUNK
                code = Code.OK if value else effect.code
                if value:
                    self._checker.shows(self.number, None, None)
                effect.request(code, None, (effect.length, effect.checksum))
            case m.ServeRead():
                self._serve(effect.request, effect.chunk, pending=effect.pending)
            case m.StateChanged():
                self._report()
            case m.RefreshRouting():
                self._refresh()
            case m.Demoted():
                self.core = None
            case m.Fault():
                self.fail(effect.detail)
            case m.Mismatch():
                raise Violation(f"{self.name} and its successor disagree: {effect}")

    def _stored(self, core: Replica | None, effect: m.Effect, event: m.Event | None) -> None:
        """A request to the store is done; nobody takes it that did not ask for it."""
        if isinstance(effect, m.Commit) and core is self.core and core is not None:
            self._checker.committed(self.number, effect.chunk, effect.chain_version)
            self._cluster.moment(self)
        if event is not None:
            self._alive(lambda: self._completed(core, event))()
        else:
            self._consider()

    def _completed(self, core: Replica | None, event: m.Event) -> None:
        if core is self.core and core is not None:
            self.feed(event)
        self._consider()

    def _send(self, message: m.Message) -> None:
        if isinstance(message, m.Forward):
            lacks = message.data is None and message.kind is UpdateKind.REPLACE
            if lacks:
                message = message._replace(data=self.disk.content(message))
        peer = self._cluster.nodes.get(int(message.route.destination))
        if peer is not None:
            self._network.send(self.name, peer.name, lambda: peer.deliver(message))


def _told(what: m.Event | m.Effect) -> str:
    """In words that are the same in every run."""
    fields = what._asdict()
    if "request" in fields:
        fields["request"] = "..."
    if isinstance(what, m.Send):
        return f"Send {_told(what.message)}"
    if isinstance(what, m.ChainChanged):
        return f"ChainChanged to {what.chain.version}"
    inside = ", ".join(f"{name}={_value(value)}" for name, value in fields.items())
    return f"{type(what).__name__}({inside})"


def _value(value: object) -> str:
    if isinstance(value, bytes) and len(value) == 24:
        return f"#{value[-1]}"
    if isinstance(value, m.Route):
        return f"{value.source}->{value.destination}@{value.chain_version}"
    return value.name if isinstance(value, Code | UpdateKind | LocalState) else repr(value)
