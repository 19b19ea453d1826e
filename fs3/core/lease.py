"""Who may serve until when: the two ends of a lease, counted on two clocks that never meet.

    node       sends a heartbeat at its own monotonic time s
    manager    receives it at its own monotonic time r (r is never before s, in true time)
    node       with the reply in hand, may serve until s + lease_ms
    manager    from r + lease_ms + drift margin on, knows that the node no longer serves

Nothing is compared across machines, only durations; so no clock needs to be set, but no two
may differ in speed by more than DRIFT_PER_MILLE. NTP slews by at most 0.5 per mille and quartz is
a hundred times better, so ten per mille leaves room for a virtual machine's bad day.

A lease names a chain version. A target that has not heard of that version yet must not use it: it
may have been taken out and let in again in between, and would serve what it held before. A target
that has heard of a later version may: whoever is taken out without his own word is taken out
only after this lease has run out.

A manager that was itself stopped for a while (its process, its machine, a disk that it waited for)
has heard nobody meanwhile, and what they said may still wait in its sockets: that time does not
count as their silence. It makes no lease longer: who is declared dead later may serve no longer.

A manager that has just started remembers no heartbeat. It behaves as if it had heard every node at
its own start: the manager before it can have granted nothing that lasts longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from fs3.core.types import ChainVersion, NodeId, TargetId

DRIFT_PER_MILLE = 10  # by which two monotonic clocks may differ in speed


def sure_end_ms(lease_ms: int) -> int:
    """How long after it RECEIVED a heartbeat the manager waits until that lease has surely ended.

    One millisecond more for the clock's own resolution.
    """
    return lease_ms + -(-lease_ms * DRIFT_PER_MILLE // 1000) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLease:
    """The node's end: leave for one target to serve, on the node's own monotonic clock."""

    target: TargetId
    chain_version: ChainVersion
    until_ms: int

    @classmethod
    def granted(
        cls, target: TargetId, chain_version: ChainVersion, sent_ms: int, lease_ms: int
    ) -> TargetLease:
        """What the reply to the heartbeat that was SENT at ``sent_ms`` allows."""
        return cls(target=target, chain_version=chain_version, until_ms=sent_ms + lease_ms)

    def allows(self, chain_version: ChainVersion, now_ms: int) -> bool:
        """May a target that knows its chain at ``chain_version`` serve at ``now_ms``?"""
        return now_ms < self.until_ms and chain_version >= self.chain_version


class NodeLeases:
    """The manager's end: until when may each node believe that it serves?

    All times are the manager's monotonic clock; ``started_ms`` is when this manager began to
    listen, before it answered anybody.
    """

    def __init__(self, lease_ms: int, started_ms: int) -> None:
        if lease_ms <= 0:
            raise ValueError(f"a lease of {lease_ms} ms; it must be positive")
        self.lease_ms = lease_ms
        self.started_ms = started_ms
        self._sure_end_ms = sure_end_ms(lease_ms)
        self._heard_ms: dict[NodeId, int] = {}
        self._slept_ms = 0  # in all, and when each node was heard last
        self._slept_before_ms: dict[NodeId, int] = {}

    def slept(self, span_ms: int) -> None:
        """The manager was stopped, and is not yet listening again, for ``span_ms`` up to now."""
        self._slept_ms += span_ms

    def heard(self, node: NodeId, now_ms: int) -> None:
        """A heartbeat of ``node`` was received, and will be answered with a lease."""
        self._heard_ms[node] = max(now_ms, self._heard_ms.get(node, now_ms))
        self._slept_before_ms[node] = self._slept_ms

    def heard_ms(self, node: NodeId) -> int:
        """When ``node`` was heard last; the manager's own start if it never was."""
        return self._heard_ms.get(node, self.started_ms)

    def has_heard(self, node: NodeId) -> bool:
        """Was ``node`` heard since this manager started?"""
        return node in self._heard_ms

    def ended_ms(self, node: NodeId) -> int:
        """From when on ``node``, if not heard again, surely has no lease."""
        return self.heard_ms(node) + self._sure_end_ms

    def expired(self, node: NodeId, now_ms: int) -> bool:
        """Has every lease of ``node`` surely run out, and the manager listened for so long?"""
        slept_ms = self._slept_ms - self._slept_before_ms.get(node, 0)
        return now_ms >= self.ended_ms(node) + slept_ms

    def bootstrapping(self, now_ms: int) -> bool:
        """May a lease still be in force that the manager before this one granted?"""
        return now_ms < self.started_ms + self._sure_end_ms

    def forget(self, node: NodeId) -> None:
        """``node`` is no member any more."""
        self._heard_ms.pop(node, None)
        self._slept_before_ms.pop(node, None)
