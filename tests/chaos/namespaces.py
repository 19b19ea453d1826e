"""A network of its own for every process: namespaces, joined by a bridge in one more.

    switch: br0 ── port n1 ──── eth0 in namespace n1, 10.77.0.1
               └── port n2 ──── eth0 in namespace n2, 10.77.0.2      ...

Nothing of it is seen from outside, so any number of networks may exist at once, all with the same
addresses. A cut in one direction is a permanent wrong entry in the sender's table of neighbours:
its packets go to a network card that nobody has, and are lost without a word, as in a broken
switch. What comes from the other side still arrives. Unplugging takes a place's port down.

A thread enters a namespace with :meth:`Network.inside`; sockets that it opens there and processes
that it starts there stay there. (``ip netns exec`` would hide mounts as well.)
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import keep
from .keeper import Keeper

_RUN = Path("/run/netns")
_NOBODY = "02:00:00:00:00:00"
_numbers = itertools.count()


def why_not() -> str | None:
    """Why networks cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "needs `ip`, from the package iproute2"
    return None


class Network:
    """Places that can reach each other until they are told not to. Use as a context manager."""

    def __init__(self, places: Sequence[str], keeper: Keeper) -> None:
        self._keeper = keeper
        self._prefix = f"fs3-{os.getpid()}-{next(_numbers)}"
        self.places = tuple(places)
        self._cuts: set[tuple[str, str]] = set()
        self._unplugged: set[str] = set()

    def __enter__(self) -> Network:
        self._remove_orphans()
        switch = self._name("switch")
        try:
            lines = [f"netns add {self._name(place)}" for place in (*self.places, "switch")]
            self._ip(lines)
            self._ip(["link add br0 type bridge", "link set br0 up"], switch)
            for number, place in enumerate(self.places, 1):
                peer = f"peer name {place} netns {switch}"
                self._ip([f"link add eth0 netns {self._name(place)} type veth {peer}"])
                self._ip([f"link set {place} master br0", f"link set {place} up"], switch)
                address = f"addr add {self.address(place)}/24 dev eth0"
                up = ["link set lo up", "link set eth0 up"]
                self._ip(
                    [f"link set eth0 address 02:f5:03:00:00:{number:02x}", address, *up],
                    self._name(place),
                )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it; a namespace goes when the last process in it has ended."""
        for place in (*self.places, "switch"):
            if (_RUN / self._name(place)).exists():
                self._ip([f"netns del {self._name(place)}"])

    def _name(self, place: str) -> str:
        return f"{self._prefix}-{place}"

    def address(self, place: str) -> str:
        """Its IPv4 address."""
        return f"10.77.0.{self.places.index(place) + 1}"

    def namespace(self, place: str) -> Path:
        """The file that names its namespace."""
        return _RUN / self._name(place)

    @contextmanager
    def inside(self, place: str) -> Iterator[None]:
        """The calling thread is there."""
        with keep.inside(str(self.namespace(place))):
            yield

    def cut(self, source: str, destination: str) -> None:
        """Nothing passes in this direction."""
        self._cuts.add((source, destination))
        wrong = f"neigh replace {self.address(destination)} lladdr {_NOBODY} dev eth0 nud permanent"
        self._ip([wrong], self._name(source))

    def unplug(self, place: str) -> None:
        """Nothing passes from or to it."""
        self._unplugged.add(place)
        self._ip([f"link set {place} down"], self._name("switch"))

    def heal(self) -> None:
        """Everything passes again."""
        for source, destination in sorted(self._cuts):
            self._ip([f"neigh del {self.address(destination)} dev eth0"], self._name(source))
        for place in sorted(self._unplugged):
            self._ip([f"link set {place} up"], self._name("switch"))
        self._cuts.clear()
        self._unplugged.clear()

    def _ip(self, lines: Sequence[str], namespace: str | None = None) -> None:
        where = ["-n", namespace] if namespace else []
        status, _, errors = self._keeper.run(["ip", *where, "-batch", "-"], "\n".join(lines))
        assert status == 0, errors

    def _remove_orphans(self) -> None:
        """Networks of test runs that were killed."""
        for path in _RUN.glob("fs3-*-*-*") if _RUN.exists() else ():
            if not Path(f"/proc/{path.name.split('-')[1]}").exists():
                self._keeper.run(["ip", "netns", "del", path.name])
