"""How good eviction is, and how fast: ``tests/bench/eviction.py [--traces DIR] [--rate DIR]``.

Hit rates of the shipped policy beside a true LRU that is fed key by key, on requests drawn from a
Zipf distribution and on traces (the files of ``--traces``), at capacities of 1, 5 and 20 % of all
pages that are asked for. A hit is a page of the longest prefix that is there.

``--rate``: values discarded a second by a real chunk store in that directory, beside as many files
unlinked there; of CPU time, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fs3.checksum import crc32c
from fs3.client.bench.kv_trace import read_trace
from fs3.core.chunks import UpdateKind
from fs3.core.kv import NAMESPACE_FIRST, digests
from fs3.core.recency import Recency
from fs3.core.types import ChunkId
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit, StageRequest
from fs3.storageserver.chunkstore.store import DiskChunkStore

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
        for chain in self._chains:
            mine = [ChunkId(k) for k, c in zip(keys[:hits], chains, strict=False) if c is chain]
            if mine:
                chain.used(mine, self._now_ms)
        for key, chain in zip(keys[hits:], chains[hits:], strict=True):
            chain.stored(ChunkId(key), 1, self._now_ms)
        for chain in self._chains:
            excess = chain.used_bytes - self._share
            if excess > 0:
                room = excess + int(self._share * MARGIN)
                chain.removed(chain.oldest(512, room, self._now_ms))
        return hits


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
        caches = TrueLru(capacity), Shipped(capacity)
        rates = [100 * sum(map(cache.request, wanted)) / asked for cache in caches]
        print(
            f"| {name} | {len(wanted):,} | {percent} % = {capacity:,} pages |"
            f" {rates[0]:.2f} % | {rates[1]:.2f} % |",
            flush=True,
        )


def eviction_rate(directory: Path, count: int = 2000, length: int = 64 << 10) -> None:
    """Values discarded by a store, and files of the same size unlinked, a second of CPU."""
    data = memoryview(os.urandom(length))
    store = DiskChunkStore(Files(), directory / "store")
    chunks = [ChunkId(NAMESPACE_FIRST.to_bytes(8, "big") + os.urandom(16)) for _ in range(count)]
    for at in range(0, count, 100):
        part = chunks[at : at + 100]
        crc = crc32c(data)
        store.stage([StageRequest(c, UpdateKind.WRITE, 1, 0, length, data, crc, 1) for c in part])
        store.commit([Commit(c, 1, 1) for c in part])
        for number in range(at, at + 100):
            (directory / f"file-{number}").write_bytes(data)
    began = time.process_time()
    for at in range(0, count, 512):
        store.discard(chunks[at : at + 512])
    discarded = count / (time.process_time() - began)
    names = [str(directory / f"file-{number}") for number in range(count)]
    began = time.process_time()
    for name in names:
        os.unlink(name)
    unlinked = count / (time.process_time() - began)
    store.close()
    ratio = f"{discarded / unlinked:.1f} times"
    print(f"{length} bytes: {discarded:,.0f} discarded, {unlinked:,.0f} unlinked a second: {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="a directory with *.jsonl")
    parser.add_argument("--rate", type=Path, help="an empty directory on the disk to measure")
    said = parser.parse_args()
    if said.rate is not None:
        for length in (64 << 10, 1 << 20, 4 << 20):
            directory = said.rate / str(length)
            directory.mkdir()
            eviction_rate(directory, (1 << 30) // length if length > 1 << 16 else 4000, length)
        return
    print("| requests of | number | capacity | true LRU | fs3 |\n|---|---|---|---|---|")
    hit_rates("Zipf 0.9, 100,000 pages", zipf(500_000, 100_000))
    for path in sorted(said.traces.glob("*.jsonl")) if said.traces else []:
        hit_rates(path.stem, read_trace(path))


if __name__ == "__main__":
    main()
