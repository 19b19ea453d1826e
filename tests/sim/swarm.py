"""What kind of world a seed is: sizes, rates, delays and limits, drawn so that worlds differ much.

Swarm testing: a seed has many kinds of fault switched off, so that the rest meets longer stretches
of progress, and odd combinations come up by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fs3.core.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One world. Rates are events a simulated second; 0: never."""

    replicas: int
    spares: int
    clients: int
    chunks: int
    operations: int  # of each client
    think_ms_max: int
    try_ms: int  # a client waits so long for an answer before it asks again
    give_up_ms: int  # and so long in all
    faults_ms: int  # how long the world is bad
    delay_min_ms: int
    delay_max_ms: int
    drop: float
    duplicate: float
    straggle: float  # messages that take up to four seconds more
    disk_ms_max: int
    lease_ms: int
    heartbeat_ms: int
    drift_per_mille: int  # clocks run faster or slower by up to this
    crashes: float
    snipes: float  # of the moments when data was shown or committed, so many are a node's last
    power: bool  # crashes are power losses too; clients then write with sync
    deaf: float  # chain changes that one node cannot hear of for a while
    cuts: float
    rift: bool  # some nodes lose each other for good, until the world has come to rest without
    pauses: float
    manager_restarts: float
    orders: float  # an operator adds or removes a replica
    full_disks: float
    sync: float  # updates that want stable storage
    reads: float  # share of operations
    odd_updates: float  # share of updates that are not plain overwrites
    fresh: float  # operations that begin with a look at the routing
    push: float  # chain changes that nodes hear of at once
    limits: Limits
    creates: float  # share of updates that are to happen only if the chunk is not there
    look_ms: int  # clients that wait look so often for newer routing
    avoid_ms: int  # and read from a node that lost a request last, for so long
    pause_ms_max: int  # and wait at most so long before they try again
    hedges: float  # share of reads that may be asked twice, if they are late


def draw(seed: int) -> Settings:
    """The world of ``seed``."""
    r = Random(f"swarm {seed}")

    def maybe(probability: float, *values: float) -> float:
        return r.choice(values) if r.random() < probability else 0.0

    power = r.random() < 0.25
    delay_min_ms = r.choice([0, 1, 1, 5])
    client = Random(f"client {seed}")
    return Settings(
        replicas=r.choice([1, 2, 2, 3, 3, 3, 4]),
        spares=r.choice([0, 0, 1]),
        clients=r.randint(2, 4),
        chunks=r.choice([1, 1, 2, 4]),
        operations=r.choice([15, 30, 60, 100]),
        think_ms_max=r.choice([1, 10, 50, 400]),
        try_ms=r.choice([100, 400, 1500]),
        give_up_ms=r.choice([3_000, 10_000, 25_000]),
        faults_ms=r.choice([8_000, 15_000, 30_000]),
        delay_min_ms=delay_min_ms,
        delay_max_ms=delay_min_ms + r.choice([1, 5, 30, 150]),
        drop=maybe(0.5, 0.005, 0.03, 0.1),
        duplicate=maybe(0.5, 0.01, 0.1, 0.3),
        straggle=maybe(0.4, 0.01, 0.05),
        disk_ms_max=r.choice([0, 1, 10, 60, 400]),
        lease_ms=r.choice([600, 1000, 3000]),
        heartbeat_ms=r.choice([100, 200]),
        drift_per_mille=r.choice([0, 4]),
        crashes=maybe(0.75, 0.05, 0.15, 0.4),
        power=power,
        snipes=maybe(0.5, 0.003, 0.01, 0.05),
        deaf=maybe(0.4, 0.2, 0.6),
        cuts=maybe(0.5, 0.1, 0.3),
        rift=Random(f"rift {seed}").random() < 0.3,
        pauses=maybe(0.3, 0.1, 0.3),
        manager_restarts=maybe(0.3, 0.05, 0.2),
        orders=maybe(0.3, 0.1, 0.3),
        full_disks=maybe(0.2, 0.05, 0.2),
        sync=1.0 if power else r.choice([0.0, 0.3]),
        reads=r.choice([0.3, 0.5, 0.8]),
        odd_updates=r.choice([0.0, 0.2, 0.5]),
        fresh=r.choice([0.0, 0.3, 1.0]),
        push=r.choice([0.0, 0.7, 1.0]),
        limits=_limits(r, Random(f"limits {seed}")),
        creates=maybe(0.4, 0.3, 0.8),  # last: what is drawn before is what it always was
        look_ms=client.choice([50, 300, 1000]),
        avoid_ms=client.choice([0, 100, 1000]),
        pause_ms_max=client.choice([10, 100, 500]),
        hedges=client.choice([0.0, 0.05, 1.0]),
    )


def _limits(r: Random, later: Random) -> Limits:
    """``later``: for what has been added since, so that ``r`` draws what it always drew."""
    if r.random() < 0.5:
        return Limits(resend_ms=200, resend_ms_max=1000)
    return Limits(
        waiting_per_chunk=r.choice([1, 3, 256]),
        parked=r.choice([0, 2, 1024]),
        parked_bytes=r.choice([0, 20, 1 << 20]),
        resend_ms=r.choice([5, 50, 500]),
        resend_ms_max=r.choice([50, 1000]),
        query_ms=r.choice([1, 50, 200]),
        resync_window=r.choice([1, 2, 8]),
        resync_page=r.choice([1, 2, 2000]),
        resync_bytes_per_s=r.choice([0, 0, 50]),
        resync_window_bytes=later.choice([1, 20, 2 << 20]),
        resync_flush_bytes=later.choice([1, 20, 16 << 20]),
    )
