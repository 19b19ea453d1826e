"""What an operator can set on a storageserver (fs3/settings.py says where)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fs3.errors import Code, Fs3Error
from fs3.log import LEVELS
from fs3.settings import section, setting, size
from fs3.transport.address import UNIX, parse, resolve

from .chunkstore.files import BOOT_ID_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """One target: a directory, best on a disk of its own."""

    id: int = setting(help="the target's number, unique in the cluster")
    path: Path = setting(help="its directory; made if missing")
    capacity_bytes: int = size(0, help="use at most this much; 0: what the disk has")

    def validate(self) -> None:
        """See the fields."""
        if not 0 < self.id < 1 << 32:
            raise Fs3Error(
                Code.INVALID, f"targets.id {self.id} is not allowed: 1 to {(1 << 32) - 1} are"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncSettings:
    """Bringing a returning target up to date."""

    bytes_per_s: int = size(0, help="per target that is brought up to date; 0: unlimited")
    window: int = setting(8, help="chunks under way at once while no client writes (2 MiB)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSettings:
    """When a disk that hands out bad bytes is given up."""

    bad_chunks_max: int = setting(64, help="more than so many bad chunks take a target offline")
    window_s: float = setting(3600.0, help="... if they are found within this time")

    def validate(self) -> None:
        """See the fields."""
        if self.bad_chunks_max < 0:
            raise Fs3Error(
                Code.INVALID, f"repair.bad_chunks_max {self.bad_chunks_max}: 0 or more is allowed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubSettings:
    """Reading everything in turn, to find bad chunks that nobody reads."""

    bytes_per_s: int = size(16 << 20, help="read at most this much per target; 0: no scrubbing")
    pause_s: float = setting(86_400.0, help="from the end of a pass to the next one")

    def validate(self) -> None:
        """See the fields."""
        if self.bytes_per_s < 0 or self.pause_s < 0:
            raise Fs3Error(
                Code.INVALID,
                f"scrub.bytes_per_s {self.bytes_per_s} and scrub.pause_s {self.pause_s}:"
                " 0 or more is allowed",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionSettings:
    """How values of the KV cache make room."""

    values_per_turn: int = setting(512, help="discarded before anything else is served, at most")
    removals_at_once: int = setting(128, help="under way at once in chains of several replicas")
    free_percent: float = setting(5.0, help="with less free space than this, values go, too")
    snapshot_s: float = setting(60.0, help="how often the order of use is written down; 0: never")

    def validate(self) -> None:
        """See the fields."""
        if self.values_per_turn < 1 or self.removals_at_once < 1:
            raise Fs3Error(
                Code.INVALID,
                f"eviction.values_per_turn {self.values_per_turn} and eviction.removals_at_once"
                f" {self.removals_at_once}: 1 or more is allowed",
            )
        if not 0 <= self.free_percent <= 50 or self.snapshot_s < 0:
            raise Fs3Error(
                Code.INVALID,
                f"eviction.free_percent {self.free_percent} and eviction.snapshot_s"
                f" {self.snapshot_s}: 0 to 50, and 0 or more are allowed",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaSettings:
    """Moving payload by the NIC, for clients that can."""

    enabled: bool = setting(True, help="offer RDMA where a device is found; TCP is always there")
    devices: list[str] = setting(
        [],
        help="use only these: devices (mlx5_0), ports (mlx5_0:1), interfaces (eth4) or networks"
        " (10.1.0.0/16); empty: all",
    )
    links_max: int = setting(1024, help="clients' queue pairs at once; each locks 1 MiB")
    pulled_bytes: int = size(64 << 20, help="data of writes on its way here at once, of all")

    def validate(self) -> None:
        """See the fields."""
        if self.links_max < 1 or self.pulled_bytes < 1:
            raise Fs3Error(
                Code.INVALID,
                f"rdma.links_max {self.links_max} and rdma.pulled_bytes {self.pulled_bytes}:"
                " 1 or more is allowed",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """Clients on the same machine, which read the data files by themselves."""

    enabled: bool = setting(True, help="pass them the data files' descriptors, read-only")
    listen: str = setting(
        "", help="unix:/PATH or unix:@NAME of the socket; empty: an abstract one, newly named"
    )
    uids: list[int] = setting(
        [], help="users that may read so, beside root and the one that this server runs as"
    )
    lease_ms: int = setting(500, help="no block is reused for so long while it may be being read")

    def validate(self) -> None:
        """See the fields."""
        if self.listen:
            resolve(self.listen if self.listen.startswith(UNIX) else f"{UNIX}{self.listen}")
        if not 10 <= self.lease_ms <= 60_000:
            raise Fs3Error(
                Code.INVALID, f"local.lease_ms {self.lease_ms} is not allowed: 10 to 60000 are"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The storageserver's settings."""

    cluster_id: str = setting("default", help="the cluster's name; all its processes have the same")
    node_id: int = setting(help="this storageserver's number, unique in the cluster")
    host: str = setting("", help="the machine, for placement; empty: its host name")
    listen: str = setting("127.0.0.1:0", help="host:port of the data port; port 0: any free one")
    grpc_listen: str = setting("127.0.0.1:0", help="host:port of gRPC; port 0: any free one")
    metaservers: list[str] = setting(["127.0.0.1:7451"], help="gRPC addresses of the metaservers")
    targets: list[TargetSettings] = field(
        default_factory=list, metadata={"help": "the targets it serves"}
    )
    buffer_bytes: int = size(1 << 30, help="memory for payload under way at most")
    connections_max: int = setting(4096, help="connections to the data port at once")
    tick_ms: int = setting(50, help="how often time passes for the replicas")
    unreachable_ms: int = setting(
        3000, help="a node that shares a chain and does not answer for so long is reported"
    )
    resync: ResyncSettings = section(ResyncSettings)
    repair: RepairSettings = section(RepairSettings)
    scrub: ScrubSettings = section(ScrubSettings)
    eviction: EvictionSettings = section(EvictionSettings)
    rdma: RdmaSettings = section(RdmaSettings)
    local: LocalSettings = section(LocalSettings)
    boot_id_file: Path = setting(
        BOOT_ID_FILE, help="its content changes when the machine, and so its disks, loses power"
    )
    log_level: str = setting("info", help="debug, info, warning or error")
    log_file: Path | None = setting(None, help="where the log goes; unset: stderr")
    port_file: Path | None = setting(
        None, help="JSON file told the addresses once both ports serve"
    )

    def validate(self) -> None:
        """See the fields."""
        if not 0 < self.node_id < 1 << 32:
            raise Fs3Error(
                Code.INVALID, f"node_id {self.node_id} is not allowed: 1 to {(1 << 32) - 1} are"
            )
        if self.log_level not in LEVELS:
            raise Fs3Error(
                Code.INVALID,
                f"log_level {self.log_level!r} is not allowed: {', '.join(LEVELS)} are",
            )
        ids = [target.id for target in self.targets]
        doubled = sorted({i for i in ids if ids.count(i) > 1})
        if doubled:
            raise Fs3Error(Code.INVALID, f"targets.id {doubled[0]} appears twice: once is allowed")
        if not self.metaservers:
            raise Fs3Error(Code.INVALID, "metaservers is empty: at least one address is needed")
        if self.unreachable_ms < 10 * self.tick_ms:
            raise Fs3Error(
                Code.INVALID,
                f"unreachable_ms {self.unreachable_ms} is not allowed: at least ten times tick_ms"
                f" ({self.tick_ms}) is",
            )
        for address in (self.listen, self.grpc_listen, *self.metaservers):
            parse(address)
