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
