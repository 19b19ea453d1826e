"""Clients: one operation after another, with routing that is old until somebody says so.

An operation is a batch of one item. Whom to ask, when again and when to give up, and which reads
are asked twice, is decided by the core of the native client (fs3/core/request.py); here is its
shell. An update keeps its tag through all its tries. When it is given up, the operation stays open
in the history: it may have happened, or may happen yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fs3.checksum import crc32c
from fs3.core import messages as m
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.codes import Code
from fs3.core.pace import Pace
from fs3.core.request import Batch, Limits, Send
from fs3.core.request import Operation as Kind
from fs3.core.types import Chain, ChainVersion, ChunkId, NodeId, chunk_id

from .linearizability import Operation, Update
from .manager import Manager
from .network import Network
from .nodes import Node
from .swarm import Settings
from .world import Violation, World


class Cluster(Protocol):
    """What a client can reach."""

    nodes: dict[int, Node]
    manager: Manager


_PATIENT_MS = 1 << 30


@dataclass(slots=True)
class _Task:
    """The operation under way."""

    chunk: ChunkId
    operation: Operation
    event: m.Write | None
    batch: Batch
    sent_ms: dict[int, int]  # requests that may still be answered, and when they left


class Client:
    """One client with one channel."""

    def __init__(
        self,
        number: int,
        world: World,
        settings: Settings,
        network: Network,
        cluster: Cluster,
        histories: dict[ChunkId, list[Operation]],
    ) -> None:
        self.name = f"client {number}"
        self._number = number
        self._world = world
        self._settings = settings
        self._network = network
        self._cluster = cluster
        self._histories = histories
        chain: Chain = cluster.manager.chain
        self._chains = {chain.chain: chain}
        self._pace = Pace(settings.hedges)
        self._left = settings.operations
        self._sequence = 0
        self._patient = False
        self._task: _Task | None = None
        self._wake = 0  # the alarm that is set; earlier ones ring in vain

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return self._task is None

    def start(self) -> None:
        """Begin with the first operation."""
        self._think()

    def stop(self) -> None:
        """No operation more after this one."""
        self._left = 0

    def look(self, chunk: ChunkId) -> None:
        """One last read, which must succeed."""
        self._patient = True
        self._begin(chunk, None)

    def _think(self) -> None:
        self._task = None
        if self._left > 0:
            delay_ms = self._world.random.randint(0, self._settings.think_ms_max)
            self._world.after(delay_ms, self._choose)

    def _choose(self) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        random = self._world.random
        if random.random() < self._settings.fresh:
            self._refresh()
        chunk = chunk_id(1, random.randrange(self._settings.chunks))
        update = None if random.random() < self._settings.reads else self._draw_update()
        self._begin(chunk, update)

    def _draw_update(self) -> Update:
        random = self._world.random
        value = b"%d.%d " % (self._number, self._sequence)
        if self._settings.creates and random.random() < self._settings.creates:
            if random.random() < 0.3:
                return Update(UpdateKind.REMOVE)
            return Update(UpdateKind.CREATE, 0, value.ljust(8))
        if random.random() >= self._settings.odd_updates:
            return Update(UpdateKind.WRITE, 0, value.ljust(8))
        kind = random.choice(list(UpdateKind)[:4])
        if kind is UpdateKind.WRITE:
            return Update(kind, random.randint(0, 10), value)
        return Update(kind, length=random.randint(0, 12))

    def _begin(self, chunk: ChunkId, update: Update | None) -> None:
        operation = Operation(self._number, self._world.events, update)
        self._histories.setdefault(chunk, []).append(operation)
        self._world.note(self.name, f"wants {update or 'to read'} of #{chunk[-1]}")
        event = self._event(chunk, update) if update is not None else None
        length = event.length if event is not None and event.data is not None else 64
        now_ms = self._world.now_ms
        batch = Batch(
            Kind.READ if update is None else Kind.WRITE,
            np.full(1, next(iter(self._chains)), np.uint32),
            np.full(1, length, np.uint32),
            now_ms,
            self._limits(),
            self._world.random.randrange(12),  # whose turn it is among equals: as if others asked
            self._pace,
        )
        self._task = _Task(chunk, operation, event, batch, {})
        self._go_on()

    def _limits(self) -> Limits:
        settings = self._settings
        return Limits(
            deadline_ms=_PATIENT_MS if self._patient else settings.give_up_ms,
            request_ms=settings.try_ms,
            look_ms=settings.look_ms,
            avoid_ms=settings.avoid_ms,
            pause_max_ms=settings.pause_ms_max,
        )

    def _event(self, chunk: ChunkId, update: Update) -> m.Write:
        self._sequence += 1
        brings = update.kind in (UpdateKind.WRITE, UpdateKind.CREATE)
        return m.Write(
            None,
            ChainVersion(0),
            chunk,
            update.kind,
            update.offset,
            len(update.data) if brings else update.length,
            crc32c(update.data),
            Tag(self._number, 1, self._sequence),
            self._world.chance(self._settings.sync),
            update.data if brings else None,
        )

    def _go_on(self) -> None:
        """Send what is due, give up what is overdue, and look again when it is time."""
        task, world = self._task, self._world
        assert task is not None
        batch = task.batch
        if batch.refresh:
            batch.refresh = False
            self._refresh()
        for number in batch.overdue(world.now_ms):
            world.note(self.name, f"gives request {number} up")
            self._lost(task, number)
        sends = batch.sends(self._chains, {}, world.now_ms)
        for send in sends + batch.hedges({}, world.now_ms):
            self._ask(task, send)
        if batch.finished:
            self._end(task)
        else:
            self._wake += 1
            wake = self._wake
            world.after(batch.wake_ms(world.now_ms) - world.now_ms, lambda: self._ring(wake))

    def _ring(self, wake: int) -> None:
        if wake == self._wake and self._task is not None:
            self._go_on()

    def _end(self, task: _Task) -> None:
        code = Code(int(task.batch.codes[0]))
        self._world.note(self.name, f"ends with {code.name}")
        if code is Code.OK:
            task.operation.returned_at = self._world.events
        self._think()

    def _ask(self, task: _Task, send: Send) -> None:
        world, network = self._world, self._network
        node = self._cluster.nodes[int(send.node)]
        version = ChainVersion(int(send.chain_versions[0]))
        world.note(self.name, f"asks {node.name} at chain version {version}: {send.number}")
        task.sent_ms[send.number] = world.now_ms

        def answer(
            code: Code, value: bytes | None = None, result: tuple[int, int] = (0, 0)
        ) -> None:
            network.send(
                node.name, self.name, lambda: self._answered(task, send, code, value, result)
            )

        def arrive() -> None:
            if not node.up and world.chance(0.5):  # its machine says that nobody listens there
                network.send(node.name, self.name, lambda: self._broken(task, send.number))
            elif task.event is not None:
                node.write(version, task.event, answer)
            else:
                node.read(version, task.chunk, answer)

        network.send(self.name, node.name, arrive)

    def _answered(
        self,
        task: _Task,
        send: Send,
        code: Code,
        value: bytes | None,
        result: tuple[int, int],
    ) -> None:
        if send.number not in task.sent_ms or task is not self._task:
            return  # given up, or answered before
        sent_ms, now_ms = task.sent_ms.pop(send.number), self._world.now_ms
        self._world.note(self.name, f"hears {code.name} {value if task.event is None else ''}")
        if code is Code.STALE_UPDATE:
            raise Violation(f"{self.name}'s newest update is called stale")
        if task.event is None:
            self._pace.answered(NodeId(send.node), send.bytes, now_ms - sent_ms, now_ms)
        counts = task.batch.replied(send.number, np.full(1, code, np.uint32), now_ms)
        if counts and code is Code.OK:
            task.operation.value, task.operation.result = value, result
        for number in task.batch.cancelled:
            task.sent_ms.pop(number, None)
        task.batch.cancelled.clear()
        self._go_on()

    def _broken(self, task: _Task, number: int) -> None:
        """The connection has broken."""
        if number in task.sent_ms and task is self._task:
            self._world.note(self.name, f"loses request {number}")
            self._lost(task, number)
            self._go_on()

    def _lost(self, task: _Task, number: int) -> None:
        task.sent_ms.pop(number)
        task.batch.lost(number, self._world.now_ms)

    def _refresh(self) -> None:
        def back(chain: Chain) -> None:
            if chain.version > self._chains[chain.chain].version:
                self._chains = {chain.chain: chain}
                if self._task is not None:
                    self._go_on()

        def there() -> None:
            manager = self._cluster.manager
            if manager.up:
                chain = manager.chain
                self._network.send("manager", self.name, lambda: back(chain))

        self._network.send(self.name, "manager", there)
