"""The table of failures: number, errno, gRPC status, retry class. Pure data; fs3/errors.py raises.

A code exists only where some caller acts on it; everything else is said in the error's detail.
Numbers go by layer (1xxx any, 3xxx metadata, 4xxx storage, 5xxx cluster) and are never reused.
"""

from __future__ import annotations

import errno as _errno
from enum import Enum, IntEnum
from typing import NamedTuple


class Retry(Enum):
    """What a caller may do after a failure."""

    NEVER = "never"
    PAUSE = "after a pause"
    REFRESH = "refresh routing, then at once"
    SAME_REQUEST = "same request id only"
    OTHER_REPLICA = "another replica; report it"


class Code(IntEnum):
    """What happened, stable for ever."""

    OK = 0
    INVALID = 1001
    UNSUPPORTED = 1002
    PROTOCOL = 1003
    WRONG_CLUSTER = 1004
    BUSY = 1005
    MAYBE_APPLIED = 1006
    UNREACHABLE = 1007
    CANCELLED = 1008
    TOO_LARGE = 1009
    PERMISSION = 1010
    BUG = 1099
    NOT_FOUND = 3001
    EXISTS = 3002
    NOT_EMPTY = 3003
    NOT_DIRECTORY = 3004
    IS_DIRECTORY = 3005
    ACCESS = 3006
    NAME_TOO_LONG = 3007
    LOOP = 3008
    CROSS_DEVICE = 3009
    TOO_MANY_LINKS = 3010
    READ_ONLY = 3011
    NO_ATTRIBUTE = 3012
    STALE_HANDLE = 3013
    CONFLICT = 3014
    NO_SPACE = 4001
    CORRUPT = 4002
    STALE_CHAIN = 4003
    NOT_SERVING = 4004
    NO_CHUNK = 4005
    DIRTY = 4006
    DISK = 4007
    STALE_UPDATE = 4008
    NOT_MANAGER = 5001
    UNKNOWN_NODE = 5002
    NOT_READY = 5003


class Row(NamedTuple):
    """One line of the table. ``grpc_status`` is the numeric value of ``grpc.StatusCode``."""

    errno: int
    grpc_status: int
    retry: Retry


_CANCELLED, _INVALID, _DEADLINE, _NOT_FOUND, _EXISTS = 1, 3, 4, 5, 6
_PERMISSION, _EXHAUSTED, _FAILED_PRECONDITION, _ABORTED = 7, 8, 9, 10
_UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE, _DATA_LOSS = 12, 13, 14, 15

TABLE: dict[Code, Row] = {
    Code.INVALID: Row(_errno.EINVAL, _INVALID, Retry.NEVER),
    Code.UNSUPPORTED: Row(_errno.EOPNOTSUPP, _UNIMPLEMENTED, Retry.NEVER),
    Code.PROTOCOL: Row(_errno.EPROTO, _INVALID, Retry.NEVER),
    Code.WRONG_CLUSTER: Row(_errno.EREMCHG, _FAILED_PRECONDITION, Retry.NEVER),
    Code.BUSY: Row(_errno.EAGAIN, _UNAVAILABLE, Retry.PAUSE),
    Code.MAYBE_APPLIED: Row(_errno.EIO, _DEADLINE, Retry.SAME_REQUEST),
    Code.UNREACHABLE: Row(_errno.EHOSTUNREACH, _UNAVAILABLE, Retry.REFRESH),
    Code.CANCELLED: Row(_errno.EINTR, _CANCELLED, Retry.NEVER),
    Code.TOO_LARGE: Row(_errno.EFBIG, _INVALID, Retry.NEVER),
    Code.PERMISSION: Row(_errno.EPERM, _PERMISSION, Retry.NEVER),
    Code.BUG: Row(_errno.EIO, _INTERNAL, Retry.NEVER),
    Code.NOT_FOUND: Row(_errno.ENOENT, _NOT_FOUND, Retry.NEVER),
    Code.EXISTS: Row(_errno.EEXIST, _EXISTS, Retry.NEVER),
    Code.NOT_EMPTY: Row(_errno.ENOTEMPTY, _FAILED_PRECONDITION, Retry.NEVER),
    Code.NOT_DIRECTORY: Row(_errno.ENOTDIR, _FAILED_PRECONDITION, Retry.NEVER),
    Code.IS_DIRECTORY: Row(_errno.EISDIR, _FAILED_PRECONDITION, Retry.NEVER),
    Code.ACCESS: Row(_errno.EACCES, _PERMISSION, Retry.NEVER),
    Code.NAME_TOO_LONG: Row(_errno.ENAMETOOLONG, _INVALID, Retry.NEVER),
    Code.LOOP: Row(_errno.ELOOP, _INVALID, Retry.NEVER),
    Code.CROSS_DEVICE: Row(_errno.EXDEV, _INVALID, Retry.NEVER),
    Code.TOO_MANY_LINKS: Row(_errno.EMLINK, _FAILED_PRECONDITION, Retry.NEVER),
    Code.READ_ONLY: Row(_errno.EROFS, _FAILED_PRECONDITION, Retry.NEVER),
    Code.NO_ATTRIBUTE: Row(_errno.ENODATA, _NOT_FOUND, Retry.NEVER),
    Code.STALE_HANDLE: Row(_errno.ESTALE, _NOT_FOUND, Retry.NEVER),
    Code.CONFLICT: Row(_errno.EAGAIN, _ABORTED, Retry.PAUSE),
    Code.NO_SPACE: Row(_errno.ENOSPC, _EXHAUSTED, Retry.NEVER),
    Code.CORRUPT: Row(_errno.EIO, _DATA_LOSS, Retry.OTHER_REPLICA),
    Code.STALE_CHAIN: Row(_errno.EIO, _FAILED_PRECONDITION, Retry.REFRESH),
    Code.NOT_SERVING: Row(_errno.EIO, _UNAVAILABLE, Retry.REFRESH),
    Code.NO_CHUNK: Row(_errno.ENODATA, _NOT_FOUND, Retry.NEVER),
    Code.DIRTY: Row(_errno.EIO, _ABORTED, Retry.PAUSE),
    Code.DISK: Row(_errno.EIO, _INTERNAL, Retry.OTHER_REPLICA),
    Code.STALE_UPDATE: Row(_errno.EIO, _FAILED_PRECONDITION, Retry.NEVER),
    Code.NOT_MANAGER: Row(_errno.EIO, _FAILED_PRECONDITION, Retry.REFRESH),
    Code.UNKNOWN_NODE: Row(_errno.EIO, _FAILED_PRECONDITION, Retry.NEVER),
    Code.NOT_READY: Row(_errno.EAGAIN, _UNAVAILABLE, Retry.PAUSE),
}


def code_of(number: int) -> Code:
    """The code that a peer sent; a number from a newer release reads as BUG."""
    try:
        return Code(number)
    except ValueError:
        return Code.BUG
