"""Messages between places (a node, a client, the manager): late, lost, doubled, out of order, cut.

A place is a name. A cut is for one direction between two places; a message that is on its way when
the cut comes is lost too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .swarm import Settings
from .world import World


class Network:
    """Carries calls from place to place."""

    def __init__(self, world: World, settings: Settings) -> None:
        self._world = world
        self._settings = settings
        self._cuts: set[tuple[str, str]] = set()
        self._calm = False
        self.rift: set[tuple[str, str]] = set()  # cuts that stay when the world is calm

    def send(self, source: str, destination: str, deliver: Callable[[], None]) -> None:
        """Perhaps call ``deliver``, later; perhaps twice."""
        settings, world = self._settings, self._world
        if self._calm:
            arrive = partial(self._arrive, source, destination, deliver)
            # Not at once: what two replicas ask each other until a disk is done must take time.
            world.after(max(1, settings.delay_min_ms), arrive)
            return
        if world.chance(settings.drop):
            return
        copies = 2 if world.chance(settings.duplicate) else 1
        for _ in range(copies):
            delay_ms = world.random.randint(settings.delay_min_ms, settings.delay_max_ms)
            if world.chance(settings.straggle):
                delay_ms += world.random.randint(0, 4000)
            world.after(delay_ms, lambda: self._arrive(source, destination, deliver))

    def _arrive(self, source: str, destination: str, deliver: Callable[[], None]) -> None:
        if (source, destination) not in self._cuts and (source, destination) not in self.rift:
            deliver()

    def cut(self, source: str, destination: str) -> None:
        """Nothing passes in this direction until :meth:`heal`."""
        self._world.note("network", f"cut {source} -> {destination}")
        self._cuts.add((source, destination))

    def heal(self, source: str, destination: str) -> None:
        """It passes again."""
        self._world.note("network", f"heal {source} -> {destination}")
        self._cuts.discard((source, destination))

    def part(self, source: str, destination: str) -> None:
        """Nothing passes in this direction until :meth:`mend`."""
        self._world.note("network", f"rift {source} -> {destination}")
        self.rift.add((source, destination))

    def mend(self) -> None:
        """The rift closes."""
        self._world.note("network", "the rift closes")
        self.rift.clear()

    def calm(self) -> None:
        """From now on everything arrives, but across the rift."""
        self._cuts.clear()
        self._calm = True
