"""Replaying a trace of requests against a KV cache: what a prefix cache would have saved.

A trace has one JSON object a line with ``hash_ids``, the request's prefix blocks in order; equal
ids are equal prefixes (the format of the Mooncake project's traces). A request asks how much of its
prefix is there, reads those pages, and puts the others after its prefill, which takes no time here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fs3.client.kvcache import KVCache
from fs3.errors import Code, Fs3Error

_PAGES_MAX = 512  # of one request
_MARK = np.dtype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of a trace."""

    requests: int
    pages: int
    hit_pages: int
    page_bytes: int
    seconds: float
    first_token_p50_ms: float  # match and get of the pages that were there, of requests with any
    first_token_p99_ms: float

    @property
    def hit_ratio(self) -> float:
        """Pages that need not be computed, of all."""
        return self.hit_pages / self.pages if self.pages else 0.0


def read_trace(path: Path) -> Iterator[list[int]]:
    """The block ids of each request. Fs3Error INVALID for a line that is none."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                yield [int(block) for block in json.loads(line)["hash_ids"]]
            except (ValueError, KeyError, TypeError) as error:
                detail = f"{path} line {number} has no hash_ids: {error!r}"
                raise Fs3Error(Code.INVALID, detail) from None


def replay(
    cache: KVCache, trace: Iterator[list[int]], page_bytes: int, requests_max: int = 0
) -> Replay:
    """Run a trace as fast as it goes, one request after another.

    Fs3Error INVALID for pages of fewer bytes than two marks, BUG for a page that is another one.
    """
    if page_bytes < 2 * _MARK.itemsize:
        raise Fs3Error(Code.INVALID, f"pages of {page_bytes} bytes: {2 * _MARK.itemsize} at least")
    room = np.ones((_PAGES_MAX, page_bytes), np.uint8)
    pages, waits = list(room), []
    ends = room[:, : _MARK.itemsize].view(_MARK), room[:, -_MARK.itemsize :].view(_MARK)
    requests = asked = hit = 0
    began = time.perf_counter()
    for blocks in trace:
        if requests_max and requests == requests_max:
            break
        keys = [b"%d" % block for block in blocks[:_PAGES_MAX]]
        requests, asked = requests + 1, asked + len(keys)
        before = time.perf_counter()
        for mark in ends:  # which block a page is
            mark[: len(keys)] = -1
        there = cache.match(keys)
        sizes = cache.get_into(keys[:there], pages[:there])
        missed = np.flatnonzero(sizes < 0)  # evicted since
        there = int(missed[0]) if len(missed) else there
        if there:
            waits.append(time.perf_counter() - before)
        hit += there
        wanted = np.array(blocks[: len(keys)], _MARK)[:, np.newaxis]
        for mark in ends:
            if (mark[:there] != wanted[:there]).any():
                raise Fs3Error(Code.BUG, "a get brought another page than was asked for")
            mark[: len(keys)] = wanted
        cache.put_from(keys[there:], pages[there : len(keys)])
    return Replay(
        requests=requests,
        pages=asked,
        hit_pages=hit,
        page_bytes=page_bytes,
        seconds=time.perf_counter() - began,
        first_token_p50_ms=float(np.percentile(waits, 50) * 1000) if waits else 0.0,
        first_token_p99_ms=float(np.percentile(waits, 99) * 1000) if waits else 0.0,
    )
