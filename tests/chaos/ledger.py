"""A ledger: files that are written once, and what was acknowledged of them.

A file whose close returned must be there with every byte, whatever dies; one whose removal
returned must stay away; of one whose close or removal failed nothing is known.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fs3.client.api import Client

from .networked_cluster import PATIENCE_S, NetworkedCluster

_BYTES_MAX = 300_000  # a few chunks
_KEPT = 40  # files of one worker: the oldest are removed


def content(name: str) -> bytes:
    """What a file of that name holds."""
    chance = random.Random(name)
    return chance.randbytes(chance.randrange(_BYTES_MAX))


class Bookkeeper(ABC):
    """Makes files and removes them, one after the other."""

    def __init__(self, number: int, folder: str) -> None:
        self._number = number
        self._folder = folder
        self.present: list[str] = []
        self.gone: list[str] = []
        self.failures = 0

    @abstractmethod
    def open(self) -> object:
        """A context for the thread that works."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Returns when it is closed."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Returns when it is gone."""

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``."""
        made = 0
        with self.open():
            while not stop.wait(0.02):
                made += 1
                name = f"{self._number}-{made}"
                try:
                    self.write(name, content(name))
                    self.present.append(name)
                except OSError:
                    self.failures += 1
                if len(self.present) > _KEPT:
                    self._remove(self.present.pop(0))

    def _remove(self, name: str) -> None:
        try:
            self.remove(name)
            self.gone.append(name)
        except OSError:
            self.failures += 1

    def check(self, client: Client, mountpoint: Path) -> None:
        """Read back what was acknowledged, through both."""
        names = {entry.name for entry in client.scandir(f"/{self._folder}")}
        assert names.isdisjoint(self.gone), "removed files are back"
        for name in self.present:
            expected = content(name)
            assert name in names, f"{name} is missing"
            assert client.read(f"/{self._folder}/{name}") == expected, name
            assert (mountpoint / self._folder / name).read_bytes() == expected, name


class NativeBookkeeper(Bookkeeper):
    """Through the native client."""

    def __init__(self, number: int, folder: str, cluster: NetworkedCluster, place: str) -> None:
        super().__init__(number, folder)
        self._cluster = cluster
        self._place = place

    @contextmanager
    def open(self) -> Iterator[None]:
        """A client of its own."""
        with self._cluster.client(self._place, PATIENCE_S) as self._client:
            yield

    def write(self, name: str, data: bytes) -> None:
        """In one go."""
        self._client.write(f"/{self._folder}/{name}", data)

    def remove(self, name: str) -> None:
        """Whatever it holds."""
        self._client.unlink(f"/{self._folder}/{name}")


class MountBookkeeper(Bookkeeper):
    """Through a mount."""

    def __init__(self, number: int, folder: str, mountpoint: Path) -> None:
        super().__init__(number, folder)
        self._directory = mountpoint / folder

    @contextmanager
    def open(self) -> Iterator[None]:
        """Nothing stays open."""
        yield

    def write(self, name: str, data: bytes) -> None:
        """In one go."""
        (self._directory / name).write_bytes(data)

    def remove(self, name: str) -> None:
        """Whatever it holds."""
        (self._directory / name).unlink()
