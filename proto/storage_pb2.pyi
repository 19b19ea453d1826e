from fs3.proto import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrimItem(_message.Message):
    __slots__ = ("owner", "keep_slots", "cut_slot", "cut_length_bytes", "cut")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KEEP_SLOTS_FIELD_NUMBER: _ClassVar[int]
    CUT_SLOT_FIELD_NUMBER: _ClassVar[int]
    CUT_LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    owner: int
    keep_slots: int
    cut_slot: int
    cut_length_bytes: int
    cut: bool
    def __init__(self, owner: _Optional[int] = ..., keep_slots: _Optional[int] = ..., cut_slot: _Optional[int] = ..., cut_length_bytes: _Optional[int] = ..., cut: _Optional[bool] = ...) -> None: ...

class TrimChunksRequest(_message.Message):
    __slots__ = ("header", "chain", "chain_version", "items", "limit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    chain: int
    chain_version: int
    items: _containers.RepeatedCompositeFieldContainer[TrimItem]
    limit: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., items: _Optional[_Iterable[_Union[TrimItem, _Mapping]]] = ..., limit: _Optional[int] = ...) -> None: ...

class TrimChunksReply(_message.Message):
    __slots__ = ("removed", "more")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    removed: int
    more: bool
    def __init__(self, removed: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...

class LastChunkRequest(_message.Message):
    __slots__ = ("header", "chain", "chain_version", "owner")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    chain: int
    chain_version: int
    owner: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., owner: _Optional[int] = ...) -> None: ...

class LastChunkReply(_message.Message):
    __slots__ = ("found", "slot", "length_bytes")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    found: bool
    slot: int
    length_bytes: int
    def __init__(self, found: _Optional[bool] = ..., slot: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class ChunkRecord(_message.Message):
    __slots__ = ("chunk", "version", "chain_version", "length_bytes", "checksum", "pending_version")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    PENDING_VERSION_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    version: int
    chain_version: int
    length_bytes: int
    checksum: int
    pending_version: int
    def __init__(self, chunk: _Optional[bytes] = ..., version: _Optional[int] = ..., chain_version: _Optional[int] = ..., length_bytes: _Optional[int] = ..., checksum: _Optional[int] = ..., pending_version: _Optional[int] = ...) -> None: ...

class ScanChunksRequest(_message.Message):
    __slots__ = ("header", "target", "after", "limit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    target: int
    after: bytes
    limit: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., target: _Optional[int] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ...) -> None: ...

class ScanChunksReply(_message.Message):
    __slots__ = ("chunks", "more")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkRecord]
    more: bool
    def __init__(self, chunks: _Optional[_Iterable[_Union[ChunkRecord, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class GetTargetsRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ...) -> None: ...

class TargetInfo(_message.Message):
    __slots__ = ("target", "chain", "chain_version", "local_state", "public_state", "chunks", "used_bytes", "problem", "serving", "path")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STATE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_STATE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    target: int
    chain: int
    chain_version: int
    local_state: int
    public_state: int
    chunks: int
    used_bytes: int
    problem: str
    serving: bool
    path: str
    def __init__(self, target: _Optional[int] = ..., chain: _Optional[int] = ..., chain_version: _Optional[int] = ..., local_state: _Optional[int] = ..., public_state: _Optional[int] = ..., chunks: _Optional[int] = ..., used_bytes: _Optional[int] = ..., problem: _Optional[str] = ..., serving: _Optional[bool] = ..., path: _Optional[str] = ...) -> None: ...

class GetTargetsReply(_message.Message):
    __slots__ = ("targets",)
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[TargetInfo]
    def __init__(self, targets: _Optional[_Iterable[_Union[TargetInfo, _Mapping]]] = ...) -> None: ...

class GetScrubRequest(_message.Message):
    __slots__ = ("header", "targets")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., targets: _Optional[_Iterable[int]] = ...) -> None: ...

class SetScrubRequest(_message.Message):
    __slots__ = ("header", "targets", "start", "set_rate", "bytes_per_s")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SET_RATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    targets: _containers.RepeatedScalarFieldContainer[int]
    start: bool
    set_rate: bool
    bytes_per_s: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., targets: _Optional[_Iterable[int]] = ..., start: _Optional[bool] = ..., set_rate: _Optional[bool] = ..., bytes_per_s: _Optional[int] = ...) -> None: ...

class ScrubState(_message.Message):
    __slots__ = ("target", "running", "bytes_per_s", "position", "chunks", "chunks_total", "length_bytes", "bad_in_pass", "started_ns", "finished_ns", "bad_found", "repaired", "bad_waiting")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    BAD_IN_PASS_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_NS_FIELD_NUMBER: _ClassVar[int]
    BAD_FOUND_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    BAD_WAITING_FIELD_NUMBER: _ClassVar[int]
    target: int
    running: bool
    bytes_per_s: int
    position: bytes
    chunks: int
    chunks_total: int
    length_bytes: int
    bad_in_pass: int
    started_ns: int
    finished_ns: int
    bad_found: int
    repaired: int
    bad_waiting: int
    def __init__(self, target: _Optional[int] = ..., running: _Optional[bool] = ..., bytes_per_s: _Optional[int] = ..., position: _Optional[bytes] = ..., chunks: _Optional[int] = ..., chunks_total: _Optional[int] = ..., length_bytes: _Optional[int] = ..., bad_in_pass: _Optional[int] = ..., started_ns: _Optional[int] = ..., finished_ns: _Optional[int] = ..., bad_found: _Optional[int] = ..., repaired: _Optional[int] = ..., bad_waiting: _Optional[int] = ...) -> None: ...

class ScrubReply(_message.Message):
    __slots__ = ("states",)
    STATES_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[ScrubState]
    def __init__(self, states: _Optional[_Iterable[_Union[ScrubState, _Mapping]]] = ...) -> None: ...

class SetResyncRequest(_message.Message):
    __slots__ = ("header", "targets", "bytes_per_s")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    targets: _containers.RepeatedScalarFieldContainer[int]
    bytes_per_s: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., targets: _Optional[_Iterable[int]] = ..., bytes_per_s: _Optional[int] = ...) -> None: ...

class ResyncState(_message.Message):
    __slots__ = ("target", "bytes_per_s")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    target: int
    bytes_per_s: int
    def __init__(self, target: _Optional[int] = ..., bytes_per_s: _Optional[int] = ...) -> None: ...

class ResyncReply(_message.Message):
    __slots__ = ("states",)
    STATES_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[ResyncState]
    def __init__(self, states: _Optional[_Iterable[_Union[ResyncState, _Mapping]]] = ...) -> None: ...

class GetKvStatsRequest(_message.Message):
    __slots__ = ("header", "namespace")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    namespace: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., namespace: _Optional[int] = ...) -> None: ...

class KvStats(_message.Message):
    __slots__ = ("target", "chain", "namespace", "head", "values", "used_bytes", "hits", "misses", "read_bytes", "found", "not_found", "stored", "stored_bytes", "evicted", "evicted_bytes", "expired", "pinned", "oldest_ms", "evicted_age_ms", "heard")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    NOT_FOUND_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    OLDEST_MS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    target: int
    chain: int
    namespace: int
    head: bool
    values: int
    used_bytes: int
    hits: int
    misses: int
    read_bytes: int
    found: int
    not_found: int
    stored: int
    stored_bytes: int
    evicted: int
    evicted_bytes: int
    expired: int
    pinned: int
    oldest_ms: int
    evicted_age_ms: int
    heard: int
    def __init__(self, target: _Optional[int] = ..., chain: _Optional[int] = ..., namespace: _Optional[int] = ..., head: _Optional[bool] = ..., values: _Optional[int] = ..., used_bytes: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., read_bytes: _Optional[int] = ..., found: _Optional[int] = ..., not_found: _Optional[int] = ..., stored: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., evicted: _Optional[int] = ..., evicted_bytes: _Optional[int] = ..., expired: _Optional[int] = ..., pinned: _Optional[int] = ..., oldest_ms: _Optional[int] = ..., evicted_age_ms: _Optional[int] = ..., heard: _Optional[int] = ...) -> None: ...

class KvStatsReply(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: _containers.RepeatedCompositeFieldContainer[KvStats]
    def __init__(self, stats: _Optional[_Iterable[_Union[KvStats, _Mapping]]] = ...) -> None: ...

class QueuePairEnd(_message.Message):
    __slots__ = ("endpoint", "queue_pair", "sequence_number", "slots", "slot_bytes", "reads_max", "manager_port")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PAIR_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    READS_MAX_FIELD_NUMBER: _ClassVar[int]
    MANAGER_PORT_FIELD_NUMBER: _ClassVar[int]
    endpoint: _common_pb2.RdmaEndpoint
    queue_pair: int
    sequence_number: int
    slots: int
    slot_bytes: int
    reads_max: int
    manager_port: int
    def __init__(self, endpoint: _Optional[_Union[_common_pb2.RdmaEndpoint, _Mapping]] = ..., queue_pair: _Optional[int] = ..., sequence_number: _Optional[int] = ..., slots: _Optional[int] = ..., slot_bytes: _Optional[int] = ..., reads_max: _Optional[int] = ..., manager_port: _Optional[int] = ...) -> None: ...

class ConnectQueuePairRequest(_message.Message):
    __slots__ = ("header", "caller", "gid")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    caller: QueuePairEnd
    gid: bytes
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., caller: _Optional[_Union[QueuePairEnd, _Mapping]] = ..., gid: _Optional[bytes] = ...) -> None: ...

class ConnectQueuePairReply(_message.Message):
    __slots__ = ("server", "link")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    server: QueuePairEnd
    link: int
    def __init__(self, server: _Optional[_Union[QueuePairEnd, _Mapping]] = ..., link: _Optional[int] = ...) -> None: ...
