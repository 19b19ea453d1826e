"""How good eviction is, and how fast: ``tests/bench/eviction.py [--traces DIR] [--rate DIR]``.

Hit rates of the shipped policy beside a true LRU that is fed key by key, on requests drawn from a
Zipf distribution and on traces (the files of ``--traces``), at capacities of 1, 5 and 20 % of all
pages that are asked for. A hit is a page of the longest prefix that is there. With one replica, and
with three that are read in turn: as it is, and if the head went by what it sees alone.

``--rate``: values evicted a second from a real chunk store in that directory, beside as many files
of their size unlinked there, all of them on stable storage before; and files that were just written
and nowhere but in memory. Of CPU time, the database's threads included, which a busy machine
disturbs least, and of wall time. An evicted value's space is for the next one, and given back when
it is not needed for some time: what that costs is said, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from fs3.checksum import crc32c
from fs3.client.bench.kv_trace import read_trace
from fs3.clock import SystemClock
from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.kv import NAMESPACE_FIRST, KvNamespace, NamespaceId, digests
from fs3.core.place import Place
from fs3.core.recency import Recency
from fs3.core.replica import Limits, Replica
from fs3.core.sightings import Sightings
from fs3.core.types import Chain, ChainId, ChainVersion, ChunkId, NodeId, PublicState, TargetId
from fs3.core.types import Replica as ChainMember
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import StageRequest, Usage
from fs3.storageserver.chunkstore.store import DiskChunkStore
from fs3.storageserver.settings import EvictionSettings
from fs3.storageserver.values import Values

CHAINS = 3
MARGIN = 0.02  # storageserver/eviction.py makes so much more room than it must
ALL = 1 << 40


class TrueLru:
    """A cache of so many pages."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._pages: OrderedDict[bytes, None] = OrderedDict()

    def request(self, keys: list[bytes]) -> int:
        """How many pages of the prefix are there; then all are."""
        hits = next((i for i, key in enumerate(keys) if key not in self._pages), len(keys))
        for key in keys:
            self._pages[key] = None
            self._pages.move_to_end(key)
        while len(self._pages) > self._capacity:
            self._pages.popitem(last=False)
        return hits


class Shipped:
    """The same with what storageservers do: a share per chain, batches, room made in advance."""

    def __init__(self, capacity: int) -> None:
        self._share = max(1, capacity // CHAINS)
        self._chains = [Recency() for _ in range(CHAINS)]
        self._now_ms = 0

    def request(self, keys: list[bytes]) -> int:
        self._now_ms += 1
        chains = [self._chains[key[-1] % CHAINS] for key in keys]
        hits = len(keys)
        for index, (key, chain) in enumerate(zip(keys, chains, strict=True)):
            if ChunkId(key) not in chain:
                hits = index
                break
        for place, chain in enumerate(self._chains):
            mine = [ChunkId(k) for k, c in zip(keys[:hits], chains, strict=False) if c is chain]
            if mine:
                self._use(place, mine)
        self._pass_time()
        for key, chain in zip(keys[hits:], chains[hits:], strict=True):
            chain.stored(ChunkId(key), 1, self._now_ms)
        for chain in self._chains:
            excess = chain.used_bytes - self._share
            if excess > 0:
                room = excess + int(self._share * MARGIN)
                chain.removed(chain.oldest(512, room, self._now_ms))
        return hits

    def _use(self, place: int, keys: list[ChunkId]) -> None:
        self._chains[place].used(keys, self._now_ms)

    def _pass_time(self) -> None:
        """A request a millisecond."""


class Replicated(Shipped):
    """Chains of three replicas, which are read in turn; only the first evicts."""

    def __init__(self, capacity: int, *, told: bool) -> None:
        """``told``: the others tell it what they see being used."""
        super().__init__(capacity)
        self._told = told
        replicas = (ChainMember(TargetId(n), NodeId(n), PublicState.SERVING) for n in range(3))
        chain = Chain(ChainId(1), ChainVersion(1), tuple(replicas))
        self._places = [Place(TargetId(n), chain) for n in range(3)]
        self._seen = [[Sightings() for _ in range(3)] for _ in range(CHAINS)]

    def _use(self, place: int, keys: list[ChunkId]) -> None:
        replica = (self._now_ms + place) % 3
        if replica == 0:
            super()._use(place, keys)
        else:
            self._seen[place][replica].see(keys, self._now_ms)

    def _pass_time(self) -> None:
        for chain, seen in zip(self._chains, self._seen, strict=True):
            for place, sightings in zip(self._places, seen, strict=True):
                message = sightings.tell(place, self._now_ms)
                if message is not None and self._told:
                    chain.used(message.chunks, self._now_ms)


def zipf(requests: int, pages: int, seed: int = 1) -> Iterator[list[int]]:
    """Single pages, the n-th most wanted n**-0.9 as often as the first."""
    weights = np.arange(1, pages + 1) ** -0.9
    drawn = np.random.default_rng(seed).choice(pages, requests, p=weights / weights.sum())
    return ([page] for page in drawn.tolist())


def hit_rates(name: str, requests: Iterable[list[int]]) -> None:
    owner = NAMESPACE_FIRST.to_bytes(8, "big")
    wanted = [[owner + digests([b"%d" % block]) for block in blocks] for blocks in requests]
    asked, distinct = sum(map(len, wanted)), len({key for keys in wanted for key in keys})
    for percent in (1, 5, 20):
        capacity = distinct * percent // 100
        caches = (
            TrueLru(capacity),
            Shipped(capacity),
            Replicated(capacity, told=True),
            Replicated(capacity, told=False),
        )
        rates = [100 * sum(map(cache.request, wanted)) / asked for cache in caches]
        print(
            f"| {name} | {len(wanted):,} | {percent} % = {capacity:,} pages |",
            " | ".join(f"{rate:.2f} %" for rate in rates),
            "|",
            flush=True,
        )


class Alone:
    """The reactor, and the target, of a chain of one replica without a server around it."""

    def __init__(self, store: DiskChunkStore) -> None:
        self.target, self.store = TargetId(1), store
        serving = ChainMember(self.target, NodeId(1), PublicState.SERVING)
        self.chain = Chain(ChainId(1), ChainVersion(1), (serving,))
        self.core = Replica(self.target, self.chain, store, Limits())
        self.core.start(0)
        self.core.step(m.LeaseRenewed(self.chain.version, 1 << 60), 0)
        self.due: list[Callable[[], object]] = []

    def call_soon(self, function: Callable[[], object]) -> None:
        self.due.append(function)

    def run(self) -> None:
        while self.due:
            self.due.pop()()

    def feed(self, events: Sequence[m.Event]) -> None:
        raise AssertionError("a chain of one replica discards")

    def tell(self, message: m.Message) -> None:
        raise AssertionError("a head has nobody to tell")

    def usage(self) -> Usage:
        return self.store.usage()


def namespace(capacity_bytes: int) -> dict[NamespaceId, KvNamespace]:
    made = KvNamespace(
        namespace=NAMESPACE_FIRST,
        name="bench",
        table=1,
        chains=(ChainId(1),),
        replicas=1,
        capacity_bytes=capacity_bytes,
    )
    return {NAMESPACE_FIRST: made}


def filled_store(root: Path, count: int, data: memoryview) -> tuple[Alone, Values]:
    """A store with so many values, on stable storage, and what evicts them."""
    settings = ChunkStoreSettings(idle_bytes_max=0, idle_ticks=0, punch_bytes=1 << 40)
    store = DiskChunkStore(Files(), root, settings)
    alone, owner, crc = Alone(store), NAMESPACE_FIRST.to_bytes(8, "big"), crc32c(data)
    values = Values(alone, EvictionSettings(), reactor=alone, clock=SystemClock())  # type: ignore[arg-type]
    values.load(root / "recency.bin")
    values.know(namespace(0), 1 << 64)
    for at in range(0, count, 100):
        chunks = [ChunkId(owner + os.urandom(16)) for _ in range(min(100, count - at))]
        store.create(
            [StageRequest(c, UpdateKind.WRITE, 1, 0, len(data), data, crc, 1) for c in chunks]
        )
        values.created([(chunk, len(data)) for chunk in chunks])
    alone.run()
    store.sync()
    return alone, values


class Cost(NamedTuple):
    """Of a piece of work, in seconds."""

    cpu_s: float
    wall_s: float


def cost_of(work: Callable[[], object]) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def one_round(directory: Path, count: int, length: int) -> dict[str, Cost]:
    """What it costs to be rid of so many values, and of as many files of their size."""
    data = memoryview(os.urandom(length))
    for name in (names := [str(directory / f"file-{number}") for number in range(count)]):
        Path(name).write_bytes(data)
    alone, values = filled_store(directory / "store", count, data)
    os.sync()
    time.sleep(0.5)  # the database has its own threads
    values.know(namespace(1), 1 << 64)

    def evict() -> None:
        values.background()
        alone.run()

    def give_back() -> None:
        alone.store.sync()
        alone.store.tick()

    def unlink() -> None:
        for name in names:
            os.unlink(name)

    costs = {"evicted": cost_of(evict)}
    assert alone.store.usage().chunks == 0
    given_back = cost_of(give_back)
    costs["and their space given back"] = Cost(
        costs["evicted"].cpu_s + given_back.cpu_s, costs["evicted"].wall_s + given_back.wall_s
    )
    assert alone.store.usage().used_bytes == 0
    alone.store.close()
    costs["files unlinked"] = cost_of(unlink)
    for name in names:
        Path(name).write_bytes(data)
    costs["files unlinked that no disk has seen"] = cost_of(unlink)
    shutil.rmtree(directory / "store")
    return costs


def eviction_rate(directory: Path, rounds: int, length: int) -> None:
    """Medians of several rounds, and of the ratios within each."""
    count = max(256, min(8192, (1 << 30) // length))
    found = [one_round(directory, count, length) for _ in range(rounds)]
    print(f"{length >> 10} KiB, {count} of them, {rounds} rounds")
    for name in found[0]:
        mine = [costs[name] for costs in found]
        said = [f"  {name:38}"]
        for kind in ("cpu_s", "wall_s"):
            per_s = median(count / getattr(cost, kind) for cost in mine)
            said.append(f"{per_s:9,.0f}/s of {kind[:-2]} time")
            for files in (name for name in found[0] if name.startswith("files")):
                theirs = [getattr(costs[files], kind) for costs in found]
                ratio = median(a / getattr(b, kind) for a, b in zip(theirs, mine, strict=True))
                said.append(f"{ratio:6.1f} x")
        print(*said, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="a directory with *.jsonl")
    parser.add_argument("--rate", type=Path, help="an empty directory on the disk to measure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1024, 4096], help="in KiB")
    said = parser.parse_args()
    if said.rate is not None:
        for length in said.sizes:
            eviction_rate(said.rate, said.rounds, length << 10)
        return
    print("| requests of | number | capacity | true LRU | fs3 | 3 replicas | head alone |")
    print("|---|---|---|---|---|---|---|")
    hit_rates("Zipf 0.9, 100,000 pages", zipf(500_000, 100_000))
    for path in sorted(said.traces.glob("*.jsonl")) if said.traces else []:
        hit_rates(path.stem, read_trace(path))


if __name__ == "__main__":
    main()
