"""Jobs explored by chance: nodes fall silent and return, the manager restarts, orders come and go.

Whatever happens, no chain loses the last that serves it to a job, routing never contradicts itself,
and when everybody is back every job ends.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
from test_manager_jobs import Jobs

from fs3.core.chain import violation
from fs3.core.types import ChainId, NodeId, PublicState, TargetId
from fs3.errors import Fs3Error
from fs3.metaserver.manager_store import ClusterState

STEPS = 60


class Chance(Jobs):
    """Five nodes with two targets each, chains of two and a few free targets, and a die."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        super().__init__(nodes=5, targets=2, replicas=3)
        self.silent: set[int] = set()
        self.watch()

    def watch(self) -> None:
        self.store.before_save = self.check

    def check(self, old: ClusterState, new: ClusterState) -> None:
        """Of every state that becomes durable."""
        member_of: dict[TargetId, ChainId] = {}
        for chain in new.routing.chains.values():
            assert violation(chain) is None
            assert not (
                chain.serving == () and all(not _waited_for(r.state) for r in chain.replicas)
            )
            for replica in chain.replicas:
                assert replica.target not in member_of, "in two chains"
                member_of[replica.target] = chain.chain
            before = old.routing.chains.get(chain.chain)
            if before is not None and before != chain:
                assert chain.version > before.version
                left = {r.target for r in before.serving} - {r.target for r in chain.replicas}
                assert not left, f"{left} left while serving"
        for target, info in new.routing.targets.items():
            assert info.chain == member_of.get(target, 0), f"target {target}"
        moves = [m.chain for job in new.jobs.values() if job.is_open for m in job.moves]
        assert len(set(moves)) == len(moves), "two moves in one chain"

    def anything(self) -> None:
        die = self.random
        node = NodeId(die.choice(sorted(self.targets)))
        target = TargetId(die.choice(sorted(self.routing.targets)))
        other = TargetId(die.choice([0, *sorted(self.routing.targets)]))
        chain = ChainId(die.choice([0, *self.routing.chains]))
        orders = self.orders
        jobs = sorted(self.manager.state.jobs) or [1]
        choice = die.choice(
            [
                lambda: orders.drain(node),
                lambda: orders.replace(target, other),
                lambda: orders.remove(target),
                lambda: orders.add(chain, other),
                lambda: orders.rotate(chain),
                lambda: orders.cancel(die.choice(jobs)),
                lambda: self.silent.add(node) if len(self.silent) < 2 else None,
                self.silent.clear,
                lambda: self.restart_node(node) if node not in self.silent else None,
                lambda: (self.start_manager(), self.watch()),
                lambda: self.stuck.symmetric_difference_update({target}),
                lambda: None,
            ]
        )
        with suppress(Fs3Error):  # an order that makes no sense now
            choice()
        self.pass_ms(die.choice([100, 500, 500, 2000, 5000]), *self.silent)


def _waited_for(state: PublicState) -> bool:
    return state in (PublicState.SERVING, PublicState.LASTSRV)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_ordered_chains_keep_their_rules_and_jobs_end(seed: int) -> None:
    cluster = Chance(seed)
    for _ in range(STEPS):
        cluster.anything()
    cluster.silent.clear()
    cluster.stuck.clear()
    for progress in cluster.orders.all():
        if progress.job.is_open:
            cluster.orders.cancel(progress.job.number)
    cluster.pass_ms(40_000)
    assert [p.job for p in cluster.orders.all() if p.job.is_open] == []
    assert not [why for why in cluster.manager.state.held.values() if why.startswith("job")]
    for chain in cluster.routing.chains.values():
        assert [r.state.name for r in chain.replicas] == ["SERVING"] * len(chain.replicas)
