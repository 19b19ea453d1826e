"""Everything bad that happens by itself, and what operators order, at the rates of the swarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fs3.core import messages as m
from fs3.core.types import TargetId

from .manager import Manager
from .network import Network
from .nodes import Node
from .swarm import Settings
from .world import World


class Cluster(Protocol):
    """What may be hit."""

    nodes: dict[int, Node]
    manager: Manager


class Faults:
    """Strikes until it is told to stop, and then repairs everything."""

    def __init__(
        self, world: World, settings: Settings, network: Network, cluster: Cluster
    ) -> None:
        self._world = world
        self._settings = settings
        self._network = network
        self._cluster = cluster
        self._over = False
        self._every(settings.crashes, self._crash)
        self._every(settings.cuts, self._cut)
        self._every(settings.pauses, self._pause)
        self._every(settings.manager_restarts, self._restart_manager)
        self._every(settings.orders, self._order)
        self._every(settings.full_disks, self._fill)
        if settings.rift:
            world.after(world.random.randrange(settings.faults_ms), self._part)

    def _every(self, rate_per_s: float, strike: Callable[[], None]) -> None:
        if not rate_per_s:
            return

        def again() -> None:
            if not self._over:
                strike()
                self._every(rate_per_s, strike)

        self._world.after(1 + int(self._world.random.expovariate(rate_per_s) * 1000), again)

    def _some_node(self) -> Node:
        return self._world.random.choice(list(self._cluster.nodes.values()))

    def _crash(self) -> None:
        """One node, sometimes all at once."""
        random = self._world.random
        nodes = list(self._cluster.nodes.values())
        hit = nodes if random.random() < 0.15 else [random.choice(nodes)]
        for node in hit:
            self._kill(node)

    def _kill(self, node: Node) -> None:
        random = self._world.random
        if node.up and not self._over:
            node.die(power=self._settings.power and random.random() < 0.7)
            self._world.after(random.choice([50, 500, 6000]), lambda: self._boot(node))

    def moment(self, node: Node) -> None:
        """A good moment for ``node`` to die, within the next milliseconds."""
        if not self._over and self._world.chance(self._settings.snipes):
            self._world.after(self._world.random.choice([0, 2, 20]), lambda: self._kill(node))

    def chain_changed(self) -> None:
        """Perhaps somebody hears of it late: this is what leases and joining are for."""
        if not self._over and self._world.chance(self._settings.deaf):
            name = self._some_node().name
            self._network.cut("manager", name)
            span_ms = self._world.random.choice([100, 500, 2000])
            self._world.after(span_ms, lambda: self._network.heal("manager", name))

    def _boot(self, node: Node) -> None:
        if not node.up:
            node.boot()

    def _cut(self) -> None:
        """Between two places, one way or both, for a while."""
        random = self._world.random
        places = [node.name for node in self._cluster.nodes.values()] + ["manager", "client 1"]
        a, b = random.sample(places, 2) if len(places) > 1 else (places[0], "manager")
        ways = [(a, b)] if random.random() < 0.5 else [(a, b), (b, a)]
        for way in ways:
            self._network.cut(*way)

        def heal() -> None:
            for way in ways:
                self._network.heal(*way)
            self._link_up(a, b)
            self._link_up(b, a)

        self._world.after(random.choice([100, 1000, 5000]), heal)

    def _part(self) -> None:
        """Two nodes, or one and all others, one way or both; each reaches the manager."""
        random = self._world.random
        names = [node.name for node in self._cluster.nodes.values()]
        random.shuffle(names)
        others = names[1:] if random.random() < 0.3 else names[1:2]
        kind = random.randrange(3)
        for other in others:
            if kind != 0:
                self._network.part(names[0], other)
            if kind != 1:
                self._network.part(other, names[0])

    def _link_up(self, a: str, b: str) -> None:
        """A connection is made anew, and its end hears of it."""
        by_name = {node.name: node for node in self._cluster.nodes.values()}
        if a in by_name and b in by_name and by_name[a].core is not None:
            by_name[a].feed(m.PeerUp(TargetId(by_name[b].number)))

    def _pause(self) -> None:
        node = self._some_node()
        if node.up:
            node.pause(self._world.random.choice([100, 1000, 5000]))

    def _restart_manager(self) -> None:
        if self._cluster.manager.up:
            self._cluster.manager.restart(self._world.random.choice([10, 500, 2000]))

    def _order(self) -> None:
        """A replica leaves the chain, or one that is in none joins, whatever it still holds."""
        manager = self._cluster.manager
        if not manager.up:
            return
        absent = [n for n in self._cluster.nodes if manager.chain.replica(TargetId(n)) is None]
        if absent and self._world.chance(0.6):
            manager.add(TargetId(self._world.random.choice(absent)))
        else:
            manager.remove()

    def _fill(self) -> None:
        node = self._some_node()
        self._world.note(node.name, "has a full disk")
        node.disk.store.capacity_bytes = 0

        def empty() -> None:
            node.disk.store.capacity_bytes = 1 << 40
            if node.up and node.problem:
                node.die(power=False)
                node.boot()

        self._world.after(self._world.random.choice([200, 2000]), empty)

    def end(self) -> None:
        """From now on the world is good."""
        self._over = True
        self._network.calm()
        for node in self._cluster.nodes.values():
            node.disk.store.capacity_bytes = 1 << 40
            if node.up and node.problem:
                node.die(power=False)
            self._boot(node)
