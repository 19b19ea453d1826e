"""How a cluster's state looks: tables for people, plain values for programs."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fs3.client.administration import ClusterStatus, TargetStatus
from fs3.core.types import Chain, LocalState, PublicState

from .appearance import human_bytes, new_table

_COLOURS = {
    PublicState.SERVING: "green",
    PublicState.LASTSRV: "red",
    PublicState.SYNCING: "cyan",
    PublicState.WAITING: "yellow",
    PublicState.OFFLINE: "red",
}


def as_dict(status: ClusterStatus) -> dict[str, Any]:
    """The status as JSON values; states are names."""
    fields: dict[str, Any] = _plain(asdict(status))
    return {
        **fields,
        "healthy": not status.problems,
        "problems": status.problems,
        "capacity": dict(zip(("capacity_bytes", "used_bytes"), _capacity(status), strict=True)),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def render(status: ClusterStatus) -> RenderableType:
    """Nodes, targets, chains, capacity, verdict."""
    tables = _nodes(status), _targets(status), chains(status)
    return Group(*(part for table in tables for part in (table, Text())), _summary(status))


def _nodes(status: ClusterStatus) -> Table:
    table = new_table(f"Nodes of cluster {status.cluster_id!r}")
    for name in ("node", "host", "data address", "control address", "state", "heartbeat"):
        table.add_column(name, no_wrap=True)
    for node in status.nodes:
        info = node.info
        state = Text("alive", "green") if info.alive else Text("away", "red")
        age = f"{node.heartbeat_age_ms / 1000:.1f} s ago" if node.heartbeat_age_ms else "-"
        addresses = info.data_address, info.control_address
        table.add_row(str(info.node), info.host, *addresses, state, age)
    return table


def _targets(status: ClusterStatus) -> Table:
    table = new_table("Targets")
    for name in ("target", "node", "chain", "in chain", "by itself"):
        table.add_column(name, no_wrap=True)
    for name in ("used", "of", "chunks"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("remarks")
    rates = _resync_rates(status)
    for target in status.targets:
        table.add_row(
            str(target.target),
            str(target.node),
            str(target.chain or "-"),
            _state(target.public_state),
            target.local_state.name,
            human_bytes(target.used_bytes),
            human_bytes(target.capacity_bytes),
            f"{target.chunks:,}",
            _remarks(target, rates.get(target.chain, 0)),
        )
    return table


def _state(state: PublicState | None) -> Text:
    return Text("-") if state is None else Text(state.name, _COLOURS[state])


def _resync_rates(status: ClusterStatus) -> dict[int, int]:
    """By chain: how fast its last serving target may bring the next one up to date."""
    rates = {target.target: target.resync_bytes_per_s for target in status.targets}
    return {int(c.chain): rates.get(c.serving[-1].target, 0) for c in status.chains if c.serving}


def _remarks(target: TargetStatus, bytes_per_s: int) -> Text:
    if target.problem:
        return Text(target.problem, "red")
    if target.public_state is PublicState.SYNCING:
        done, total = target.sync_done_chunks, target.sync_total_chunks
        what = f"synced {done:,} of {total:,} chunks ({done / total:.0%})" if total else "syncing"
        limit = f", at most {human_bytes(bytes_per_s)}/s" if bytes_per_s else ""
        return Text(what + limit, "cyan")
    return Text("")


def chains(status: ClusterStatus, preferred: bool = False) -> Table:
    """Every chain; with the order that it is meant to be in, if asked for."""
    table = new_table("Chains")
    for name in ("chain", "version", "replicas (target@node), head first"):
        table.add_column(name)
    if preferred:
        table.add_column("preferred order")
    for chain in status.chains:
        order = [" -> ".join(map(str, chain.preferred)) or "-"] if preferred else []
        table.add_row(str(chain.chain), str(chain.version), _replicas(chain), *order)
    return table


def _replicas(chain: Chain) -> Text:
    parts = [Text(f"{r.target}@{r.node} {r.state.name}", _COLOURS[r.state]) for r in chain.replicas]
    return Text(" -> ").join(parts)


def _capacity(status: ClusterStatus) -> tuple[int, int]:
    """Capacity and use, replicas counted once: a chain holds what its smallest target does."""
    by_chain: dict[int, list[TargetStatus]] = {}
    for target in status.targets:
        if target.chain and target.local_state is not LocalState.OFFLINE:
            by_chain.setdefault(target.chain, []).append(target)
    capacity = sum(min(t.capacity_bytes for t in targets) for targets in by_chain.values())
    used = sum(max(t.used_bytes for t in targets) for targets in by_chain.values())
    return capacity, used


def _summary(status: ClusterStatus) -> Text:
    capacity, used = _capacity(status)
    text = Text(
        f"{human_bytes(used)} used of {human_bytes(capacity)}, replicas counted once\n"
        f"clients: {status.clients}; routing version {status.routing_version}\n"
    )
    problems = status.problems
    if not problems:
        return text.append("HEALTHY: every target serves", "bold green")
    if status.unavailable_chains or not status.chains:
        text.append("UNAVAILABLE: some data cannot be read", "bold red")
    else:
        text.append("DEGRADED: all data can be read and written", "bold yellow")
    for problem in problems:
        text.append(f"\n  - {problem}")
    return text
