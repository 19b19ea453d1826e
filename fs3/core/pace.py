"""How fast nodes answer: who is slow, when an answer is late, and how many may be asked twice.

What is measured is the time from a read's departure to its answer. Requests of all sizes count:
each is compared with what requests of its size (a power of two) take on the average.

* A node's *slowness* is a moving average of how much longer it took than others, 1 for a node like
  all; it is forgotten with time, so that a node that was slow is tried again.
* An answer is *late* when it takes longer than 95 of 100 requests of its size did.
* A late read may be asked of another node too ("The Tail at Scale", Dean and Barroso, CACM 2013),
  but only so many: each read earns a small part of one, so that trouble does not double the load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fs3.core.types import NodeId

_ALPHA = 0.2  # weight of the newest sample
_FORGET_MS = 5_000.0  # after so long less than half of a slowness is remembered
_SLOW = 1.5  # from here on a node is avoided; below it is noise
_STEPS = 4  # of the histogram per doubling
_LOWEST = -6 * _STEPS  # 1/64 ms
_BUCKETS = 22 * _STEPS  # up to a minute
_SAMPLES_MIN = 32  # before anything is called late
_SAMPLES_KEPT = 512  # beyond it all counts are halved
_RECOUNT = 32  # samples between two looks at the whole histogram


class _Size:
    """Requests of one size."""

    __slots__ = ("average_ms", "counts", "late_ms", "since", "total")

    def __init__(self) -> None:
        self.average_ms = 0.0
        self.counts = [0] * _BUCKETS
        self.total = 0
        self.since = 0
        self.late_ms = math.inf

    def add(self, taken_ms: float) -> None:
        bucket = int(math.log2(taken_ms) * _STEPS) - _LOWEST if taken_ms > 0 else 0
        self.counts[min(max(bucket, 0), _BUCKETS - 1)] += 1
        self.total += 1
        self.since += 1
        if self.since >= _RECOUNT and self.total >= _SAMPLES_MIN:
            self.since = 0
            self._recount()

    def _recount(self) -> None:
        above, bucket = self.total // 20, _BUCKETS
        while above >= 0 and bucket:
            bucket -= 1
            above -= self.counts[bucket]
        self.late_ms = 2.0 ** ((bucket + 1 + _LOWEST) / _STEPS)  # the bucket's upper end
        if self.total > _SAMPLES_KEPT:
            self.counts = [count // 2 for count in self.counts]
            self.total = sum(self.counts)


class Pace:
    """Of all nodes that a client reads from. Times are in ms, on any clock that goes forward."""

    def __init__(self, hedge_share: float = 0.05, hedges_saved_max: float = 10.0) -> None:
        """``hedge_share``: at most this part of all reads is asked twice in the long run."""
        self._share = hedge_share
        self._saved_max = hedges_saved_max
        self._saved = 1.0
        self._sizes: dict[int, _Size] = {}
        self._slowness: dict[NodeId, tuple[float, float]] = {}  # and when it was measured
        self._slow: dict[NodeId, None] = {}  # those that may count as slow

    def answered(self, node: NodeId, size_bytes: int, taken_ms: float, now_ms: float) -> None:
        """A read of ``size_bytes`` came back."""
        self._saved = min(self._saved + self._share, self._saved_max)
        size = self._sizes.setdefault(size_bytes.bit_length(), _Size())
        size.add(taken_ms)
        average = size.average_ms or taken_ms
        size.average_ms = average + _ALPHA * (min(taken_ms, 1.5 * average) - average)
        ratio = taken_ms / average if average > 0 else 1.0
        before = self.slowness(node, now_ms)
        slowness = before + _ALPHA * (ratio - before)
        self._slowness[node] = (slowness, now_ms)
        if slowness > _SLOW:
            self._slow[node] = None

    def slowness(self, node: NodeId, now_ms: float) -> float:
        """How much longer ``node`` takes than others; 1 for one that was not asked lately."""
        found = self._slowness.get(node)
        if found is None:
            return 1.0
        slowness, measured_ms = found
        return 1.0 + (slowness - 1.0) * math.exp((measured_ms - now_ms) / _FORGET_MS)

    def late_ms(self, size_bytes: int) -> float:
        """After how long an answer is late; infinite while too little is known.

        For a size that was seldom asked for: what holds for the next larger one, or, scaled up, for
        the next smaller one.
        """
        wanted = size_bytes.bit_length()
        found = self._sizes.get(wanted)
        if found is not None and found.late_ms < math.inf:
            return found.late_ms
        known = [size for size, of in self._sizes.items() if of.late_ms < math.inf]
        if not known:
            return math.inf
        larger = [size for size in known if size > wanted]
        if larger:
            return self._sizes[min(larger)].late_ms
        return math.ldexp(self._sizes[max(known)].late_ms, wanted - max(known))

    def take_hedge(self) -> bool:
        """Whether one more read may be asked twice now; True counts it."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

    def weighed(
        self, outstanding: Mapping[NodeId, int], request_bytes: int, now_ms: float
    ) -> Mapping[NodeId, int]:
        """``outstanding`` bytes per node, as if all nodes were equally fast.

        What a slow node has outstanding takes longer, and so would ``request_bytes`` more.
        """
        if not self._slow:
            return outstanding
        weighed = dict(outstanding)
        for node in list(self._slow):
            slowness = self.slowness(node, now_ms)
            if slowness > _SLOW:
                load = outstanding.get(node, 0)
                weighed[node] = int(load * slowness + request_bytes * (slowness - 1.0))
            else:
                self._slow.pop(node, None)
        return weighed
