from fs3.proto import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TargetReport(_message.Message):
    __slots__ = ("target", "local_state", "chain_version", "capacity_bytes", "used_bytes", "free_bytes", "chunks", "problem", "sync_done_chunks", "sync_total_chunks", "resync_bytes_per_s")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STATE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SYNC_DONE_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SYNC_TOTAL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    RESYNC_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    target: int
    local_state: int
    chain_version: int
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    chunks: int
    problem: str
    sync_done_chunks: int
    sync_total_chunks: int
    resync_bytes_per_s: int
    def __init__(self, target: _Optional[int] = ..., local_state: _Optional[int] = ..., chain_version: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., problem: _Optional[str] = ..., sync_done_chunks: _Optional[int] = ..., sync_total_chunks: _Optional[int] = ..., resync_bytes_per_s: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("node", "host", "data_address", "control_address", "incarnation", "alive", "rdma", "local")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    RDMA_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    node: int
    host: str
    data_address: str
    control_address: str
    incarnation: int
    alive: bool
    rdma: _containers.RepeatedCompositeFieldContainer[_common_pb2.RdmaEndpoint]
    local: LocalEndpoint
    def __init__(self, node: _Optional[int] = ..., host: _Optional[str] = ..., data_address: _Optional[str] = ..., control_address: _Optional[str] = ..., incarnation: _Optional[int] = ..., alive: _Optional[bool] = ..., rdma: _Optional[_Iterable[_Union[_common_pb2.RdmaEndpoint, _Mapping]]] = ..., local: _Optional[_Union[LocalEndpoint, _Mapping]] = ...) -> None: ...

class LocalEndpoint(_message.Message):
    __slots__ = ("address", "boot_id")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    address: str
    boot_id: str
    def __init__(self, address: _Optional[str] = ..., boot_id: _Optional[str] = ...) -> None: ...

class RegisterNodeRequest(_message.Message):
    __slots__ = ("header", "node", "targets")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    node: Node
    targets: _containers.RepeatedCompositeFieldContainer[TargetReport]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., node: _Optional[_Union[Node, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[TargetReport, _Mapping]]] = ...) -> None: ...

class RegisterNodeReply(_message.Message):
    __slots__ = ("heartbeat_ms", "lease_ms")
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    heartbeat_ms: int
    lease_ms: int
    def __init__(self, heartbeat_ms: _Optional[int] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("header", "node", "incarnation", "sequence", "targets", "routing_version", "unreachable")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    node: int
    incarnation: int
    sequence: int
    targets: _containers.RepeatedCompositeFieldContainer[TargetReport]
    routing_version: int
    unreachable: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., node: _Optional[int] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[TargetReport, _Mapping]]] = ..., routing_version: _Optional[int] = ..., unreachable: _Optional[_Iterable[int]] = ...) -> None: ...

class TargetLease(_message.Message):
    __slots__ = ("target", "chain_version")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    target: int
    chain_version: int
    def __init__(self, target: _Optional[int] = ..., chain_version: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("lease_ms", "routing_version", "leases", "sequence")
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    routing_version: int
    leases: _containers.RepeatedCompositeFieldContainer[TargetLease]
    sequence: int
    def __init__(self, lease_ms: _Optional[int] = ..., routing_version: _Optional[int] = ..., leases: _Optional[_Iterable[_Union[TargetLease, _Mapping]]] = ..., sequence: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("target", "node", "chain")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    target: int
    node: int
    chain: int
    def __init__(self, target: _Optional[int] = ..., node: _Optional[int] = ..., chain: _Optional[int] = ...) -> None: ...

class ReplicaRecord(_message.Message):
    __slots__ = ("target", "node", "state")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    target: int
    node: int
    state: int
    def __init__(self, target: _Optional[int] = ..., node: _Optional[int] = ..., state: _Optional[int] = ...) -> None: ...

class ChainRecord(_message.Message):
    __slots__ = ("chain", "version", "replicas", "preferred")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_FIELD_NUMBER: _ClassVar[int]
    chain: int
    version: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaRecord]
    preferred: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain: _Optional[int] = ..., version: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaRecord, _Mapping]]] = ..., preferred: _Optional[_Iterable[int]] = ...) -> None: ...

class ChainTable(_message.Message):
    __slots__ = ("table", "version", "chains")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    table: int
    version: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, table: _Optional[int] = ..., version: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ...) -> None: ...

class GetRoutingRequest(_message.Message):
    __slots__ = ("header", "known_version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    known_version: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., known_version: _Optional[int] = ...) -> None: ...

class RoutingUpdate(_message.Message):
    __slots__ = ("from_version", "version", "nodes", "targets", "chains", "tables", "removed_chains", "removed_targets", "removed_nodes", "namespaces", "removed_namespaces", "namespaces_end")
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_CHAINS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TARGETS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_END_FIELD_NUMBER: _ClassVar[int]
    from_version: int
    version: int
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    chains: _containers.RepeatedCompositeFieldContainer[ChainRecord]
    tables: _containers.RepeatedCompositeFieldContainer[ChainTable]
    removed_chains: _containers.RepeatedScalarFieldContainer[int]
    removed_targets: _containers.RepeatedScalarFieldContainer[int]
    removed_nodes: _containers.RepeatedScalarFieldContainer[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[KvNamespace]
    removed_namespaces: _containers.RepeatedScalarFieldContainer[int]
    namespaces_end: int
    def __init__(self, from_version: _Optional[int] = ..., version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., chains: _Optional[_Iterable[_Union[ChainRecord, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[ChainTable, _Mapping]]] = ..., removed_chains: _Optional[_Iterable[int]] = ..., removed_targets: _Optional[_Iterable[int]] = ..., removed_nodes: _Optional[_Iterable[int]] = ..., namespaces: _Optional[_Iterable[_Union[KvNamespace, _Mapping]]] = ..., removed_namespaces: _Optional[_Iterable[int]] = ..., namespaces_end: _Optional[int] = ...) -> None: ...

class KvNamespace(_message.Message):
    __slots__ = ("namespace", "name", "table", "chains", "replicas", "capacity_bytes", "ttl_s", "value_bytes_max", "uid", "gid")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    name: str
    table: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    replicas: int
    capacity_bytes: int
    ttl_s: int
    value_bytes_max: int
    uid: int
    gid: int
    def __init__(self, namespace: _Optional[int] = ..., name: _Optional[str] = ..., table: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., replicas: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., ttl_s: _Optional[int] = ..., value_bytes_max: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ...) -> None: ...

class CreateNamespaceRequest(_message.Message):
    __slots__ = ("header", "namespace")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    namespace: KvNamespace
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., namespace: _Optional[_Union[KvNamespace, _Mapping]] = ...) -> None: ...

class SetNamespaceRequest(_message.Message):
    __slots__ = ("header", "name", "capacity_bytes", "ttl_s", "value_bytes_max", "uid", "gid")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    name: str
    capacity_bytes: int
    ttl_s: int
    value_bytes_max: int
    uid: int
    gid: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., ttl_s: _Optional[int] = ..., value_bytes_max: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ...) -> None: ...

class DropNamespaceRequest(_message.Message):
    __slots__ = ("header", "name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    name: str
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class CreateChainsRequest(_message.Message):
    __slots__ = ("header", "replicas", "table", "targets")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    replicas: int
    table: int
    targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., replicas: _Optional[int] = ..., table: _Optional[int] = ..., targets: _Optional[_Iterable[int]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node", "heartbeat_age_ms", "targets", "unreachable")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    heartbeat_age_ms: int
    targets: _containers.RepeatedCompositeFieldContainer[TargetReport]
    unreachable: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., heartbeat_age_ms: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[TargetReport, _Mapping]]] = ..., unreachable: _Optional[_Iterable[int]] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("cluster_id", "routing_version", "nodes", "clients")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    routing_version: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    clients: int
    def __init__(self, cluster_id: _Optional[str] = ..., routing_version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., clients: _Optional[int] = ...) -> None: ...

class OfflineTargetsRequest(_message.Message):
    __slots__ = ("header", "targets", "reason", "force")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    targets: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    force: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., targets: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("chain", "old_target", "new_target")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    OLD_TARGET_FIELD_NUMBER: _ClassVar[int]
    NEW_TARGET_FIELD_NUMBER: _ClassVar[int]
    chain: int
    old_target: int
    new_target: int
    def __init__(self, chain: _Optional[int] = ..., old_target: _Optional[int] = ..., new_target: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job", "kind", "subject", "state", "moves", "moves_done", "bytes_done", "started_ns")
    JOB_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    MOVES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    job: int
    kind: int
    subject: int
    state: int
    moves: _containers.RepeatedCompositeFieldContainer[Move]
    moves_done: int
    bytes_done: int
    started_ns: int
    def __init__(self, job: _Optional[int] = ..., kind: _Optional[int] = ..., subject: _Optional[int] = ..., state: _Optional[int] = ..., moves: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., moves_done: _Optional[int] = ..., bytes_done: _Optional[int] = ..., started_ns: _Optional[int] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("job", "moves_total", "bytes_done", "bytes_total", "remaining_ms", "waits_for")
    JOB_FIELD_NUMBER: _ClassVar[int]
    MOVES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    job: Job
    moves_total: int
    bytes_done: int
    bytes_total: int
    remaining_ms: int
    waits_for: str
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., moves_total: _Optional[int] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., remaining_ms: _Optional[int] = ..., waits_for: _Optional[str] = ...) -> None: ...

class StartJobRequest(_message.Message):
    __slots__ = ("header", "kind", "node", "chain", "old_target", "new_target")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    OLD_TARGET_FIELD_NUMBER: _ClassVar[int]
    NEW_TARGET_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    kind: int
    node: int
    chain: int
    old_target: int
    new_target: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., kind: _Optional[int] = ..., node: _Optional[int] = ..., chain: _Optional[int] = ..., old_target: _Optional[int] = ..., new_target: _Optional[int] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("header", "job")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    job: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., job: _Optional[int] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ...) -> None: ...

class ListJobsReply(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobProgress]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobProgress, _Mapping]]] = ...) -> None: ...

class SetPreferredOrderRequest(_message.Message):
    __slots__ = ("header", "chain", "targets")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    chain: int
    targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., chain: _Optional[int] = ..., targets: _Optional[_Iterable[int]] = ...) -> None: ...

class GiveUpLastRequest(_message.Message):
    __slots__ = ("header", "chain", "force")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    chain: int
    force: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., chain: _Optional[int] = ..., force: _Optional[bool] = ...) -> None: ...
