from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
NUMBER_FIELD_NUMBER: _ClassVar[int]
number: _descriptor.FieldDescriptor
INLINE_FIELD_NUMBER: _ClassVar[int]
inline: _descriptor.FieldDescriptor

class Credentials(_message.Message):
    __slots__ = ("uid", "gid", "gids")
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GIDS_FIELD_NUMBER: _ClassVar[int]
    uid: int
    gid: int
    gids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ..., gids: _Optional[_Iterable[int]] = ...) -> None: ...

class RequestHeader(_message.Message):
    __slots__ = ("cluster_id", "protocol_version", "request_id", "client_id", "who")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    protocol_version: int
    request_id: int
    client_id: int
    who: Credentials
    def __init__(self, cluster_id: _Optional[str] = ..., protocol_version: _Optional[int] = ..., request_id: _Optional[int] = ..., client_id: _Optional[int] = ..., who: _Optional[_Union[Credentials, _Mapping]] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("chunk_bytes", "stripe", "chain_table", "chains")
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_TABLE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    chunk_bytes: int
    stripe: int
    chain_table: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chunk_bytes: _Optional[int] = ..., stripe: _Optional[int] = ..., chain_table: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ...) -> None: ...

class Inode(_message.Message):
    __slots__ = ("inode", "kind", "permissions", "uid", "gid", "links", "length_bytes", "atime_ns", "mtime_ns", "ctime_ns", "layout", "version", "truncate_version", "symlink", "device", "parent")
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    inode: int
    kind: int
    permissions: int
    uid: int
    gid: int
    links: int
    length_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    layout: Layout
    version: int
    truncate_version: int
    symlink: bytes
    device: int
    parent: int
    def __init__(self, inode: _Optional[int] = ..., kind: _Optional[int] = ..., permissions: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., links: _Optional[int] = ..., length_bytes: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., version: _Optional[int] = ..., truncate_version: _Optional[int] = ..., symlink: _Optional[bytes] = ..., device: _Optional[int] = ..., parent: _Optional[int] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RdmaEndpoint(_message.Message):
    __slots__ = ("gid", "lid", "mtu_bytes", "infiniband", "roce_v2", "name", "iwarp")
    GID_FIELD_NUMBER: _ClassVar[int]
    LID_FIELD_NUMBER: _ClassVar[int]
    MTU_BYTES_FIELD_NUMBER: _ClassVar[int]
    INFINIBAND_FIELD_NUMBER: _ClassVar[int]
    ROCE_V2_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    IWARP_FIELD_NUMBER: _ClassVar[int]
    gid: bytes
    lid: int
    mtu_bytes: int
    infiniband: bool
    roce_v2: bool
    name: str
    iwarp: bool
    def __init__(self, gid: _Optional[bytes] = ..., lid: _Optional[int] = ..., mtu_bytes: _Optional[int] = ..., infiniband: _Optional[bool] = ..., roce_v2: _Optional[bool] = ..., name: _Optional[str] = ..., iwarp: _Optional[bool] = ...) -> None: ...
