"""What a local cluster is, on disk: the paths in its directory, and ``cluster.json``.

    DIR/cluster.json               the description below; written once, by the first ``fs3 up``
    DIR/supervisor.{pid,log,lock}  the process that restarts daemons
    DIR/operation.lock             held by ``up`` and ``down``: one at a time
    DIR/spawn.lock                 held while a daemon is started; free: records are complete
    DIR/mounts/NAME.{json,pid,log} FUSE mounts of this cluster
    DIR/metaserver/                config.toml, pid, log, data/
    DIR/node-N/                    config.toml, pid, log, target-T/; ``hold``: do not restart it

Addresses are chosen once and stay, so that a restarted daemon is found where it was.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fs3 import durable
from fs3.errors import Code, Fs3Error

FORMAT = 1
_TARGETS_PER_NODE_MAX = 99  # target 203 is the third target of node 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpecification:
    """One storageserver: its addresses, and the targets it owns."""

    node: int
    host: str  # a label of its own, so that the replicas of a chain land on different nodes
    data_address: str
    control_address: str
    targets: tuple[int, ...]
    kv_targets: tuple[int, ...] = ()  # for values of the KV cache that have one replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A local cluster, as ``cluster.json`` tells it to supervisors and clients."""

    cluster_id: str
    replicas: int
    metaserver_frame_address: str
    metaserver_grpc_address: str
    nodes: tuple[NodeSpecification, ...]

    @property
    def targets_per_node(self) -> int:
        """How many targets each storageserver owns."""
        return len(self.nodes[0].targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What ``fs3 up`` is asked for. None: whatever is there already, or else the default."""

    nodes: int | None = None
    targets_per_node: int | None = None
    replicas: int | None = None
    cluster_id: str | None = None
    kv_targets: int | None = None  # of each node; by default none


def complete_shape(shape: Shape) -> tuple[int, int, int, str]:
    """Nodes, targets per node, replicas and cluster id with defaults filled in, checked."""
    nodes = 3 if shape.nodes is None else shape.nodes
    per_node = 2 if shape.targets_per_node is None else shape.targets_per_node
    replicas = min(3, nodes) if shape.replicas is None else shape.replicas
    cluster_id = "local" if shape.cluster_id is None else shape.cluster_id
    if not 1 <= nodes <= 64:
        raise Fs3Error(Code.INVALID, f"--nodes is {nodes}; 1 to 64 are allowed")
    if not 1 <= per_node <= _TARGETS_PER_NODE_MAX:
        allowed = f"1 to {_TARGETS_PER_NODE_MAX} are allowed"
        raise Fs3Error(Code.INVALID, f"--targets-per-node is {per_node}; {allowed}")
    if not 1 <= replicas <= nodes:
        why = "each replica is on a node of its own"
        raise Fs3Error(Code.INVALID, f"--replicas is {replicas}; 1 to {nodes} (nodes): {why}")
    if not cluster_id or not all(c.isalnum() or c in "-_." for c in cluster_id):
        allowed = "letters, digits, '-', '_' and '.' are allowed"
        raise Fs3Error(Code.INVALID, f"--cluster-id is {cluster_id!r}; {allowed}")
    return nodes, per_node, replicas, cluster_id


def kv_targets_of(shape: Shape, per_node: int) -> int:
    """How many targets each node has for single replicas of the KV cache, checked."""
    count = shape.kv_targets or 0
    most = _TARGETS_PER_NODE_MAX - per_node
    if not 0 <= count <= most:
        raise Fs3Error(Code.INVALID, f"--kv-targets is {count}; 0 to {most} are allowed")
    return count


def check_against(shape: Shape, found: Specification) -> None:
    """Raises Fs3Error INVALID if ``shape`` asks for something else than what is there."""
    pairs = (
        ("--nodes", shape.nodes, len(found.nodes)),
        ("--targets-per-node", shape.targets_per_node, found.targets_per_node),
        ("--replicas", shape.replicas, found.replicas),
        ("--cluster-id", shape.cluster_id, found.cluster_id),
        ("--kv-targets", shape.kv_targets, len(found.nodes[0].kv_targets)),
    )
    for flag, asked, has in pairs:
        if asked is not None and asked != has:
            raise Fs3Error(
                Code.INVALID,
                f"{flag} is {asked}, but the cluster in this directory has {has}; leave the flag"
                " out, or use another --dir",
            )


def target_ids(node: int, count: int, first: int = 1) -> tuple[int, ...]:
    """The ids of a node's targets: 201, 202, ... are on node 2."""
    return tuple(node * (_TARGETS_PER_NODE_MAX + 1) + n for n in range(first, first + count))


@dataclass(frozen=True, slots=True)
class ClusterDirectory:
    """The paths of a local cluster. Does nothing but name, read and write them."""

    root: Path

    @classmethod
    def at(cls, directory: Path) -> ClusterDirectory:
        """The cluster directory at ``directory``, as an absolute path."""
        return cls(Path(os.path.abspath(directory)))

    @property
    def description(self) -> Path:
        """``cluster.json``."""
        return self.root / "cluster.json"

    @property
    def metaserver(self) -> Path:
        """The metaserver's directory."""
        return self.root / "metaserver"

    @property
    def mounts(self) -> Path:
        """Records and logs of mounts."""
        return self.root / "mounts"

    def node(self, node: int) -> Path:
        """A storageserver's directory."""
        return self.root / f"node-{node}"

    def daemon_directories(self, specification: Specification) -> list[Path]:
        """Every daemon's directory, the metaserver's first."""
        return [self.metaserver, *(self.node(n.node) for n in specification.nodes)]

    def supervisor_file(self, suffix: str) -> Path:
        """The supervisor's ``pid``, ``log`` or ``lock``."""
        return self.root / f"supervisor.{suffix}"

    def exists(self) -> bool:
        """Whether a cluster was ever made here."""
        return self.description.is_file()

    def read(self) -> Specification:
        """The cluster's description; Fs3Error NOT_FOUND or INVALID saying why not."""
        try:
            fields = json.loads(self.description.read_text())
        except FileNotFoundError:
            hint = "start one with `fs3 up`, or name its directory with --dir"
            raise Fs3Error(Code.NOT_FOUND, f"no cluster in {self.root} ({hint})") from None
        except ValueError as error:
            raise Fs3Error(Code.INVALID, f"{self.description}: {error}") from None
        try:
            found = fields.pop("format")
            if found != FORMAT:
                what = f"format {found}; this release reads format {FORMAT}"
                raise Fs3Error(Code.UNSUPPORTED, f"{self.description} is of {what}")
            nodes = [
                {**n, "targets": tuple(n["targets"]), "kv_targets": tuple(n.get("kv_targets", ()))}
                for n in fields.pop("nodes")
            ]
            made = tuple(NodeSpecification(**n) for n in nodes)
            return Specification(**fields, nodes=made)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"not a cluster description ({error})"
            raise Fs3Error(Code.INVALID, f"{self.description}: {what}") from None

    def write(self, specification: Specification) -> None:
        """Write ``cluster.json``, atomically, to stable storage."""
        fields = {"format": FORMAT, **asdict(specification)}
        durable.write_file(self.description, json.dumps(fields, indent=2) + "\n")

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold ``DIR/NAME.lock``, waiting for whoever has it."""
        with (self.root / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
