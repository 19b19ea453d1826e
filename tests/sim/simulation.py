"""One seed from its beginning to its end: bad times first, then calm, then the judgement."""

from __future__ import annotations

from dataclasses import dataclass

from fs3.core.chain import new_chain
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    ChunkId,
    NodeId,
    PublicState,
    Replica,
    TargetId,
    chunk_id,
)

from .checkers import Checker
from .clients import Client
from .faults import Faults
from .linearizability import Operation, linearizable
from .manager import Manager
from .network import Network
from .nodes import Node
from .swarm import Settings, draw
from .world import Violation, World

CALM_MS = 120_000  # by then a good world must be whole again


@dataclass(slots=True)
class Result:
    """What came of a seed."""

    seed: int
    problem: str | None
    story: list[str]
    digest: str
    events: int
    operations: int
    undecided: int  # histories whose search was given up


class Simulation:
    """A cluster of one chain in a world."""

    def __init__(
        self,
        seed: int,
        *,
        settings: Settings | None = None,
        tell: bool = False,
        digest: bool = False,
    ) -> None:
        self.world = World(seed, tell=tell, digest=digest)
        self.settings = settings = settings or draw(seed)
        self.world.note("swarm", settings)
        self.network = Network(self.world, settings)
        self.histories: dict[ChunkId, list[Operation]] = {}
        replicas = tuple(
            Replica(TargetId(n + 1), NodeId(n + 1), PublicState.SERVING)
            for n in range(settings.replicas)
        )
        chain = new_chain(Chain(ChainId(1), ChainVersion(1), replicas))
        self.manager = Manager(self.world, settings, chain, self._push)
        self.checker = Checker(self, settings, self.network.rift)
        self.nodes: dict[int, Node] = {}
        for number in range(1, settings.replicas + settings.spares + 1):
            self.nodes[number] = Node(
                number, self.world, settings, self.network, self, self.checker
            )
        self.clients = [
            Client(n + 1, self.world, settings, self.network, self, self.histories)
            for n in range(settings.clients)
        ]
        self.faults = Faults(self.world, settings, self.network, self)

    def moment(self, node: Node) -> None:
        """A node has shown or committed something."""
        self.faults.moment(node)

    def _push(self, chain: Chain) -> None:
        self.faults.chain_changed()
        for node in self.nodes.values():
            if self.world.chance(self.settings.push):
                node.hear(chain)

    def run(self) -> Result:
        """Let it happen; a broken promise is the result's problem."""
        problem, undecided = None, 0
        try:
            self._live()
            undecided = self._judge()
        except Violation as broken:
            problem = str(broken)
        operations = sum(map(len, self.histories.values()))
        world = self.world
        return Result(
            world.seed, problem, world.story, world.digest, world.events, operations, undecided
        )

    def _live(self) -> None:
        world = self.world
        for node in self.nodes.values():
            node.boot(fresh=True)
        for client in self.clients:
            client.start()
        world.run(self.settings.faults_ms)
        world.note("world", "calm")
        self.faults.end()
        for client in self.clients:
            client.stop()
        self._come_to_rest()
        if self.network.rift:
            self.network.mend()
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        """In a good world everything is whole in the end; across a rift, what can be."""
        world = self.world
        if not world.run(world.now_ms + CALM_MS, self._quiet):
            raise Violation(
                f"not whole after {CALM_MS} ms without faults: {self.checker.problem()}"
            )
        # Everybody looks at everything once more, at all replicas in turn.
        for _ in self.nodes:
            for slot in range(self.settings.chunks):
                for client in self.clients:
                    client.look(chunk_id(1, slot))
                if not world.run(world.now_ms + 30_000, self._idle):
                    raise Violation("the last reads do not end")

    def _idle(self) -> bool:
        return all(client.idle for client in self.clients)

    def _quiet(self) -> bool:
        return self.world.events % 50 == 0 and self._idle() and self.checker.problem() is None

    def _judge(self) -> int:
        undecided = 0
        for chunk, history in self.histories.items():
            verdict = linearizable(history)
            undecided += verdict is None
            if verdict is False:
                raise Violation(f"the history of chunk #{chunk[-1]} is not linearizable")
        return undecided


def simulate(
    seed: int, *, settings: Settings | None = None, tell: bool = False, digest: bool = False
) -> Result:
    """The result of one seed, in the world that it draws or in the given one."""
    return Simulation(seed, settings=settings, tell=tell, digest=digest).run()
