from fs3.proto import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InodeReply(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: _common_pb2.Inode
    def __init__(self, inode: _Optional[_Union[_common_pb2.Inode, _Mapping]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("header", "parent", "name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class GetAttributesRequest(_message.Message):
    __slots__ = ("header", "inodes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class GetAttributesReply(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedCompositeFieldContainer[_common_pb2.Inode]
    def __init__(self, inodes: _Optional[_Iterable[_Union[_common_pb2.Inode, _Mapping]]] = ...) -> None: ...

class SetAttributesRequest(_message.Message):
    __slots__ = ("header", "inode", "permissions", "uid", "gid", "length_bytes", "atime_ns", "mtime_ns", "atime_now", "mtime_now", "session")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NOW_FIELD_NUMBER: _ClassVar[int]
    MTIME_NOW_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    permissions: int
    uid: int
    gid: int
    length_bytes: int
    atime_ns: int
    mtime_ns: int
    atime_now: bool
    mtime_now: bool
    session: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., permissions: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., length_bytes: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., atime_now: _Optional[bool] = ..., mtime_now: _Optional[bool] = ..., session: _Optional[int] = ...) -> None: ...

class CreateRequest(_message.Message):
    __slots__ = ("header", "parent", "name", "permissions", "exclusive", "truncate", "read", "write", "session", "layout")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    permissions: int
    exclusive: bool
    truncate: bool
    read: bool
    write: bool
    session: int
    layout: _common_pb2.Layout
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., permissions: _Optional[int] = ..., exclusive: _Optional[bool] = ..., truncate: _Optional[bool] = ..., read: _Optional[bool] = ..., write: _Optional[bool] = ..., session: _Optional[int] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("header", "inode", "read", "write", "truncate", "session")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    read: bool
    write: bool
    truncate: bool
    session: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., read: _Optional[bool] = ..., write: _Optional[bool] = ..., truncate: _Optional[bool] = ..., session: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("inode", "session", "created")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    inode: _common_pb2.Inode
    session: int
    created: bool
    def __init__(self, inode: _Optional[_Union[_common_pb2.Inode, _Mapping]] = ..., session: _Optional[int] = ..., created: _Optional[bool] = ...) -> None: ...

class CloseItem(_message.Message):
    __slots__ = ("inode", "session", "wrote", "length_bytes", "truncate_version", "mtime_ns")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WROTE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    session: int
    wrote: bool
    length_bytes: int
    truncate_version: int
    mtime_ns: int
    def __init__(self, inode: _Optional[int] = ..., session: _Optional[int] = ..., wrote: _Optional[bool] = ..., length_bytes: _Optional[int] = ..., truncate_version: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("header", "items")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    items: _containers.RepeatedCompositeFieldContainer[CloseItem]
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., items: _Optional[_Iterable[_Union[CloseItem, _Mapping]]] = ...) -> None: ...

class SettleLengthRequest(_message.Message):
    __slots__ = ("header", "inode", "length_bytes", "truncate_version", "mtime_ns")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    length_bytes: int
    truncate_version: int
    mtime_ns: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., length_bytes: _Optional[int] = ..., truncate_version: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class ReserveAppendRequest(_message.Message):
    __slots__ = ("header", "inode", "length_bytes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    length_bytes: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class ReserveAppendReply(_message.Message):
    __slots__ = ("offset_bytes", "inode")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    inode: _common_pb2.Inode
    def __init__(self, offset_bytes: _Optional[int] = ..., inode: _Optional[_Union[_common_pb2.Inode, _Mapping]] = ...) -> None: ...

class MakeNodeRequest(_message.Message):
    __slots__ = ("header", "parent", "name", "mode", "device")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    mode: int
    device: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., mode: _Optional[int] = ..., device: _Optional[int] = ...) -> None: ...

class MakeDirectoryRequest(_message.Message):
    __slots__ = ("header", "parent", "name", "permissions")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    permissions: int
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., permissions: _Optional[int] = ...) -> None: ...

class MakeSymlinkRequest(_message.Message):
    __slots__ = ("header", "parent", "name", "target")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    target: bytes
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., target: _Optional[bytes] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("header", "inode", "parent", "name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    parent: int
    name: bytes
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class UnlinkRequest(_message.Message):
    __slots__ = ("header", "parent", "name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("header", "parent", "name", "new_parent", "new_name", "no_replace", "exchange")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    NO_REPLACE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    no_replace: bool
    exchange: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., new_parent: _Optional[int] = ..., new_name: _Optional[bytes] = ..., no_replace: _Optional[bool] = ..., exchange: _Optional[bool] = ...) -> None: ...

class ReadDirectoryRequest(_message.Message):
    __slots__ = ("header", "inode", "after", "limit", "attributes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    after: bytes
    limit: int
    attributes: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ..., attributes: _Optional[bool] = ...) -> None: ...

class DentryRecord(_message.Message):
    __slots__ = ("name", "inode", "kind", "attributes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    inode: int
    kind: int
    attributes: _common_pb2.Inode
    def __init__(self, name: _Optional[bytes] = ..., inode: _Optional[int] = ..., kind: _Optional[int] = ..., attributes: _Optional[_Union[_common_pb2.Inode, _Mapping]] = ...) -> None: ...

class ReadDirectoryReply(_message.Message):
    __slots__ = ("entries", "more")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[DentryRecord]
    more: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[DentryRecord, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class StatFsRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ...) -> None: ...

class StatFsReply(_message.Message):
    __slots__ = ("capacity_bytes", "free_bytes", "inodes")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    free_bytes: int
    inodes: int
    def __init__(self, capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., inodes: _Optional[int] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("header", "path", "follow", "want_parent")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    WANT_PARENT_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    path: bytes
    follow: bool
    want_parent: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., path: _Optional[bytes] = ..., follow: _Optional[bool] = ..., want_parent: _Optional[bool] = ...) -> None: ...

class ResolveReply(_message.Message):
    __slots__ = ("inode", "parent", "name")
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    inode: _common_pb2.Inode
    parent: int
    name: bytes
    def __init__(self, inode: _Optional[_Union[_common_pb2.Inode, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class XattrRequest(_message.Message):
    __slots__ = ("header", "inode", "name", "value", "create", "replace")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    name: bytes
    value: bytes
    create: bool
    replace: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ..., create: _Optional[bool] = ..., replace: _Optional[bool] = ...) -> None: ...

class XattrReply(_message.Message):
    __slots__ = ("value", "names")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, value: _Optional[bytes] = ..., names: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SetLayoutRequest(_message.Message):
    __slots__ = ("header", "inode", "layout")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    inode: int
    layout: _common_pb2.Layout
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., inode: _Optional[int] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ...) -> None: ...

class ExtendSessionRequest(_message.Message):
    __slots__ = ("header", "description")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.RequestHeader
    description: str
    def __init__(self, header: _Optional[_Union[_common_pb2.RequestHeader, _Mapping]] = ..., description: _Optional[str] = ...) -> None: ...

class ExtendSessionReply(_message.Message):
    __slots__ = ("lease_ms",)
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    def __init__(self, lease_ms: _Optional[int] = ...) -> None: ...
