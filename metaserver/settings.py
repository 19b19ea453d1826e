"""What an operator can set: a TOML file, the environment and flags, in that order (fs3.settings).

Unless a field says otherwise, a change needs a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fs3.core.layout import check_chunk_bytes
from fs3.core.types import CHUNK_BYTES_DEFAULT
from fs3.errors import Fs3Error
from fs3.log import LEVELS
from fs3.settings import section, setting, size
from fs3.transport.address import parse

ENGINES = ("rocksdb", "memory")


def _first(*checks: tuple[bool, str]) -> str | None:
    """The problem of the first check that does not hold."""
    return next((problem for holds, problem in checks if not holds), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerSettings:
    """Membership: how fast a death is noticed, and at what price."""

    heartbeat_ms: int = setting(500, help="how often storageservers report")
    lease_ms: int = setting(
        3000, help="how long a storageserver may serve after it sent a heartbeat"
    )
    tick_ms: int = setting(100, help="how often the manager looks for leases that ran out")
    history: int = setting(64, help="routing versions kept, so that watchers get deltas")
    moves: int = setting(4, help="chains whose members jobs change at once (drain, replace, ...)")

    def validate(self) -> str | None:
        """Refuse relations that make a healthy node lose its lease."""
        return _first(
            (
                0 < self.heartbeat_ms <= self.lease_ms // 3,
                f"heartbeat_ms {self.heartbeat_ms} is not allowed: above 0 and at most a third of"
                f" lease_ms ({self.lease_ms}) is, so that two may get lost",
            ),
            (
                0 < self.tick_ms <= self.lease_ms // 4,
                f"tick_ms {self.tick_ms} is not allowed: above 0 and at most a quarter of lease_ms"
                f" ({self.lease_ms}) is, or a manager that hears nobody would seem asleep",
            ),
            (self.history >= 1, f"history {self.history} is not allowed: at least 1 is"),
            (self.moves >= 1, f"moves {self.moves} is not allowed: at least 1 is"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Clients that hold files open."""

    lease_ms: int = setting(
        60_000, help="a client not heard of for so long has its sessions pruned"
    )
    prune_ms: int = setting(5_000, help="how often the metaserver looks for such clients")

    def validate(self) -> str | None:
        """See the fields."""
        return _first(
            (self.lease_ms >= 1000, f"lease_ms {self.lease_ms} is not allowed: at least 1000 is"),
            (self.prune_ms > 0, f"prune_ms {self.prune_ms} is not allowed: above 0 is"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GcSettings:
    """Removing the chunks of removed files."""

    interval_ms: int = setting(1000, help="how often the queue of removed files is looked at")
    files: int = setting(256, help="removed files taken up in one round")
    chunks: int = setting(4096, help="chunks that one call to a storageserver removes at most")
    delay_ms: int = setting(0, help="how long a removed file keeps its chunks")
    retry_ms_max: int = setting(
        30_000, help="longest pause before a chain that is down is tried again"
    )

    def validate(self) -> str | None:
        """See the fields."""
        positive = [(name, getattr(self, name)) for name in ("interval_ms", "files", "chunks")]
        return _first(
            *(
                (value > 0, f"{name} {value} is not allowed: above 0 is")
                for name, value in positive
            ),
            (self.delay_ms >= 0, f"delay_ms {self.delay_ms} is not allowed: 0 or more is"),
            (
                self.retry_ms_max >= self.interval_ms,
                f"retry_ms_max {self.retry_ms_max} is not allowed: at least interval_ms"
                f" ({self.interval_ms}) is",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The metaserver's settings."""

    cluster_id: str = setting("default", help="the cluster's name; all its processes have the same")
    data_dir: Path = setting(Path("fs3-meta"), help="where the metadata engine keeps its files")
    engine: str = setting("rocksdb", help="rocksdb; memory forgets everything at exit (tests)")
    chunk_bytes: int = size(CHUNK_BYTES_DEFAULT, help="of the root directory, when it is made")
    stripe: int = setting(8, help="chains of a file in the root directory, when that is made")
    listen: str = setting(
        "127.0.0.1:7450", help="host:port of the frame port; port 0: any free one"
    )
    grpc_listen: str = setting("127.0.0.1:7451", help="host:port of gRPC; port 0: any free one")
    workers: int = setting(16, help="threads that run calls of the frame port")
    grpc_workers: int = setting(
        16, help="threads that run gRPC calls, beside those of routing streams"
    )
    connections_max: int = setting(4096, help="connections to the frame port at once")
    drain_s: float = setting(3.0, help="at SIGTERM, how long calls in progress may take to finish")
    trim_deadline_s: float = setting(20.0, help="how long a truncation waits for storageservers")
    log_level: str = setting("info", help="debug, info, warning or error")
    log_file: Path | None = setting(None, help="where the log goes; unset: stderr")
    port_file: Path | None = setting(
        None, help="JSON file told the addresses once both ports serve"
    )
    manager: ManagerSettings = section(ManagerSettings)
    sessions: SessionSettings = section(SessionSettings)
    gc: GcSettings = section(GcSettings)

    def validate(self) -> str | None:
        """See the fields; the sections validate themselves."""
        counts = ("workers", "grpc_workers", "connections_max", "stripe")
        for address in (self.listen, self.grpc_listen):
            try:
                parse(address)
            except Fs3Error as error:
                return error.detail
        wrong_chunk = check_chunk_bytes(self.chunk_bytes)
        if wrong_chunk is not None:
            return wrong_chunk
        return _first(
            (bool(self.cluster_id), "cluster_id '' is not allowed: any other text is"),
            (
                self.engine in ENGINES,
                f"engine {self.engine!r} is not allowed: {', '.join(ENGINES)} are",
            ),
            (
                self.log_level in LEVELS,
                f"log_level {self.log_level!r} is not allowed: {', '.join(LEVELS)} are",
            ),
            *(
                (getattr(self, name) >= 1, f"{name} {getattr(self, name)}: at least 1 is allowed")
                for name in counts
            ),
            (self.drain_s > 0, f"drain_s {self.drain_s} is not allowed: above 0 is"),
            (
                self.trim_deadline_s > 0,
                f"trim_deadline_s {self.trim_deadline_s}: above 0 is allowed",
            ),
        )
