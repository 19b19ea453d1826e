"""Clients: one operation after another, with routing that is old until somebody says so.

A client keeps an update's tag through all its tries. When it gives up, the operation stays open in
the history: it may have happened, or may happen yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fs3.checksum import crc32c
from fs3.core import messages as m
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.codes import TABLE, Code, Retry
from fs3.core.types import Chain, ChainVersion, ChunkId, chunk_id

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
        self._chain: Chain = cluster.manager.chain
        self._left = settings.operations
        self._sequence = 0
        self._try = 0  # the one that is under way; answers to others are too late
        self._patient = False
        self.idle = True

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
        self.idle = True
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
        self.idle = False
        operation = Operation(self._number, self._world.events, update)
        self._histories.setdefault(chunk, []).append(operation)
        self._world.note(self.name, f"wants {update or 'to read'} of #{chunk[-1]}")
        event: m.Write | None = None
        if update is not None:
            self._sequence += 1
            tag = Tag(self._number, 1, self._sequence)
            brings = update.kind in (UpdateKind.WRITE, UpdateKind.CREATE)
            length = len(update.data) if brings else update.length
            data = update.data if brings else None
            sync = self._world.chance(self._settings.sync)
            version = ChainVersion(0)
            event = m.Write(
                None,
                version,
                chunk,
                update.kind,
                update.offset,
                length,
                crc32c(update.data),
                tag,
                sync,
                data,
            )
        self._attempt(chunk, operation, event, self._world.now_ms + self._settings.give_up_ms)

    def _attempt(
        self, chunk: ChunkId, operation: Operation, event: m.Write | None, give_up_ms: int
    ) -> None:
        """Ask the right node of the chain as this client knows it."""
        world = self._world
        if world.now_ms >= give_up_ms and not self._patient:
            world.note(self.name, "gives up")
            self._try += 1
            self._think()
            return
        self._try += 1
        number = self._try

        def again(pause_ms: int, refresh: bool) -> None:
            if number == self._try:
                self._try += 1
                if refresh:
                    self._refresh()
                world.after(pause_ms, lambda: self._attempt(chunk, operation, event, give_up_ms))

        def answered(code: Code, value: bytes | None, result: tuple[int, int]) -> None:
            if number == self._try:
                self._answered(operation, code, value, result, again)

        self._ask(chunk, event, answered)
        world.after(self._settings.try_ms, lambda: again(0, True))

    def _ask(
        self,
        chunk: ChunkId,
        event: m.Write | None,
        answered: Callable[[Code, bytes | None, tuple[int, int]], None],
    ) -> None:
        serving = self._chain.serving
        if not serving:
            return
        replica = serving[0] if event is not None else self._world.random.choice(serving)
        node = self._cluster.nodes[int(replica.target)]
        version = self._chain.version
        self._world.note(self.name, f"asks {node.name} at chain version {version}")

        def answer(
            code: Code, value: bytes | None = None, result: tuple[int, int] = (0, 0)
        ) -> None:
            self._network.send(node.name, self.name, lambda: answered(code, value, result))

        def arrive() -> None:
            if event is not None:
                node.write(version, event, answer)
            else:
                node.read(version, chunk, answer)

        self._network.send(self.name, node.name, arrive)

    def _answered(
        self,
        operation: Operation,
        code: Code,
        value: bytes | None,
        result: tuple[int, int],
        again: Callable[[int, bool], None],
    ) -> None:
        self._world.note(self.name, f"hears {code.name} {value if not operation.update else ''}")
        if code is Code.OK:
            operation.returned_at = self._world.events
            operation.value, operation.result = value, result
        elif code is Code.STALE_UPDATE:
            raise Violation(f"{self.name}'s newest update is called stale")
        elif TABLE[code].retry is not Retry.NEVER:
            again(self._world.random.choice([0, 10, 100]), code is not Code.BUSY)
            return
        self._try += 1
        self._think()

    def _refresh(self) -> None:
        def back(chain: Chain) -> None:
            if chain.version > self._chain.version:
                self._chain = chain

        def there() -> None:
            manager = self._cluster.manager
            if manager.up:
                chain = manager.chain
                self._network.send("manager", self.name, lambda: back(chain))

        self._network.send(self.name, "manager", there)
