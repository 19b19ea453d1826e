"""Calls of the metaserver with fs3's own types, repeated until they are answered.

A call that may have been applied (the answer was lost), or that found nobody, is repeated with the
same request id, after growing pauses, up to ``retry_s``: the server answers a repeated id with the
first result, so the restart of a metaserver is a pause and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.proto import metadata_pb2 as pb
from fs3.rpc import CALL_TIMEOUT_S, Stub, methods
from fs3.types import Credentials, Dentry, Inode, SetAttributes, StatFs
from fs3.wire import (
    decode_dentry,
    decode_inode,
    decode_stat_fs,
    encode_layout,
    encode_name,
    encode_set_attributes,
)

from .pipeline import Pipeline

RETRY_S = 60.0
LISTING_PAGE = 1000  # entries
ATTRIBUTES_PAGE = 1000  # inodes
CLOSINGS_PAGE = 500  # sessions
_TRUNCATE_TIMEOUT_S = 30.0  # the metaserver waits for the storageservers
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.01, 1.0
_METHODS = {m.python_name: m for m in methods(pb.DESCRIPTOR.services_by_name["Metadata"])}
RETRIED = frozenset(
    (Code.MAYBE_APPLIED, Code.UNREACHABLE, Code.BUSY, Code.NOT_READY, Code.CONFLICT)
)


class Resolved(NamedTuple):
    """Where a path leads. ``inode`` is None if only the parent is there."""

    inode: Inode | None
    parent: InodeId
    name: str  # the last component


class Closing(NamedTuple):
    """One session to end; a writer says how far it wrote (``length_bytes``)."""

    inode: InodeId
    session: int
    wrote: bool = False
    length_bytes: int = 0
    truncate_version: int = 0
    mtime_ns: int = 0


class Metadata:
    """Any thread may call. ``who`` is on whose behalf; by default that of the constructor."""

    def __init__(
        self,
        stub: Stub,
        who: Credentials,
        retry_s: float = RETRY_S,
        pipeline: Pipeline | None = None,
    ) -> None:
        self._stub = stub
        self._pipeline = pipeline
        self.retry_s = retry_s
        self.who = who

    def disconnect(self) -> None:
        """Let go of the connections for pipelined calls."""
        if self._pipeline is not None:
            self._pipeline.close()

    def replace_stub(self, stub: Stub) -> None:
        """Call as another client from now on (after a fork)."""
        self._stub = stub
        if self._pipeline is not None:
            self._pipeline.after_fork()

    def _call(
        self,
        method: str,
        request: Message,
        who: Credentials | None = None,
        timeout_s: float | None = None,
        request_id: int | None = None,
        repeat: bool = True,
    ) -> Any:  # noqa: ANN401 - each method has its own reply
        function: Callable[..., Any] = getattr(self._stub, method)
        if request_id is None:
            request_id = self._stub.next_request_id()
        deadline_s = time.monotonic() + self.retry_s
        pause_s = _PAUSE_MIN_S
        while True:
            try:
                return function(
                    request, who=who or self.who, request_id=request_id, timeout_s=timeout_s
                )
            except Fs3Error as error:
                late = not repeat or time.monotonic() + pause_s > deadline_s
                if late or error.code not in RETRIED:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _call_many(self, method: str, requests: Sequence[Any]) -> list[Any]:
        """The same for many at once; raises the first failure."""
        if self._pipeline is None:
            return [self._call(method, request) for request in requests]
        for request in requests:
            self._stub.fill_header(request, self.who)
        outcomes: list[Any] = self._pipeline.exchange(_METHODS[method], requests, CALL_TIMEOUT_S)
        for place, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            if isinstance(outcome, Fs3Error):
                if outcome.code not in RETRIED:
                    raise outcome
                request_id = request.header.request_id
                outcomes[place] = self._call(method, request, request_id=request_id)
        return outcomes

    # -- names -----------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: str, who: Credentials | None = None) -> Inode:
        """NOT_FOUND if there is no such name."""
        request = pb.LookupRequest(parent=parent, name=encode_name(name))
        return decode_inode(self._call("lookup", request, who).inode)

    def resolve(self, path: str, *, follow: bool = True, want_parent: bool = False) -> Resolved:
        """Walk an absolute path on the server."""
        request = pb.ResolveRequest(path=encode_name(path), follow=follow, want_parent=want_parent)
        return decode_resolved(self._call("resolve", request))

    def resolve_many(self, paths: Sequence[str]) -> list[Resolved]:
        """The same for many paths, in a few round trips."""
        requests = [pb.ResolveRequest(path=encode_name(path), follow=True) for path in paths]
        return [decode_resolved(reply) for reply in self._call_many("resolve", requests)]

    def mkdir(
        self, parent: InodeId, name: str, permissions: int, who: Credentials | None = None
    ) -> Inode:
        """EXISTS if the name is taken."""
        request = pb.MakeDirectoryRequest(
            parent=parent, name=encode_name(name), permissions=permissions
        )
        return decode_inode(self._call("make_directory", request, who).inode)

    def mknod(
        self, parent: InodeId, name: str, mode: int, device: int, who: Credentials | None = None
    ) -> Inode:
        """A file, FIFO, socket or device; ``mode`` is a whole st_mode."""
        request = pb.MakeNodeRequest(
            parent=parent, name=encode_name(name), mode=mode, device=device
        )
        return decode_inode(self._call("make_node", request, who).inode)

    def symlink(
        self, parent: InodeId, name: str, target: str, who: Credentials | None = None
    ) -> Inode:
        """EXISTS if the name is taken."""
        request = pb.MakeSymlinkRequest(
            parent=parent, name=encode_name(name), target=os.fsencode(target)
        )
        return decode_inode(self._call("make_symlink", request, who).inode)

    def link(
        self, inode: InodeId, parent: InodeId, name: str, who: Credentials | None = None
    ) -> Inode:
        """The inode with its new link count."""
        request = pb.LinkRequest(inode=inode, parent=parent, name=encode_name(name))
        return decode_inode(self._call("link", request, who).inode)

    def unlink(self, parent: InodeId, name: str, who: Credentials | None = None) -> None:
        """Remove a non-directory's name."""
        self._call("unlink", pb.UnlinkRequest(parent=parent, name=encode_name(name)), who)

    def rmdir(self, parent: InodeId, name: str, who: Credentials | None = None) -> None:
        """Remove an empty directory."""
        self._call("remove_directory", pb.UnlinkRequest(parent=parent, name=encode_name(name)), who)

    def rename(
        self,
        parent: InodeId,
        name: str,
        new_parent: InodeId,
        new_name: str,
        *,
        no_replace: bool = False,
        exchange: bool = False,
        who: Credentials | None = None,
    ) -> None:
        """As renameat2(2)."""
        request = pb.RenameRequest(
            parent=parent,
            name=encode_name(name),
            new_parent=new_parent,
            new_name=encode_name(new_name),
            no_replace=no_replace,
            exchange=exchange,
        )
        self._call("rename", request, who)

    def readdir(
        self,
        inode: InodeId,
        after: str = "",
        *,
        attributes: bool = False,
        limit: int = LISTING_PAGE,
        who: Credentials | None = None,
    ) -> tuple[list[Dentry], bool]:
        """A page of names behind ``after``, and whether there are more."""
        request = pb.ReadDirectoryRequest(
            inode=inode, after=encode_name(after), limit=limit, attributes=attributes
        )
        reply = self._call("read_directory", request, who)
        return [decode_dentry(entry) for entry in reply.entries], reply.more

    # -- attributes ------------------------------------------------------------------------------

    def getattr_many(self, inodes: Sequence[InodeId]) -> list[Inode | None]:
        """In the order asked; None for one that is gone."""
        found: list[Inode | None] = []
        for start in range(0, len(inodes), ATTRIBUTES_PAGE):
            page = inodes[start : start + ATTRIBUTES_PAGE]
            reply = self._call("get_attributes", pb.GetAttributesRequest(inodes=page))
            found += [decode_inode(m) if m.inode else None for m in reply.inodes]
        return found

    def getattr(self, inode: InodeId) -> Inode:
        """STALE_HANDLE if it is gone."""
        found = self.getattr_many([inode])[0]
        if found is None:
            raise Fs3Error(Code.STALE_HANDLE, f"inode {inode} does not exist any more")
        return found

    def setattr(
        self,
        inode: InodeId,
        changes: SetAttributes,
        session: int = 0,
        who: Credentials | None = None,
    ) -> Inode:
        """Change attributes; a length is settled and old chunks are gone when this returns."""
        request = encode_set_attributes(inode, changes, session)
        timeout_s = None if changes.length_bytes is None else _TRUNCATE_TIMEOUT_S
        return decode_inode(self._call("set_attributes", request, who, timeout_s).inode)

    def statfs(self) -> StatFs:
        """Space, divided by the number of replicas."""
        return decode_stat_fs(self._call("stat_fs", pb.StatFsRequest()))

    def set_layout(self, inode: InodeId, layout: Layout) -> Inode:
        """How new files of a directory are spread; its ``chains`` are not used."""
        request = pb.SetLayoutRequest(inode=inode, layout=encode_layout(layout))
        return decode_inode(self._call("set_layout", request).inode)

    def getxattr(self, inode: InodeId, name: str, who: Credentials | None = None) -> bytes:
        """NO_ATTRIBUTE if there is none."""
        request = pb.XattrRequest(inode=inode, name=encode_name(name))
        value: bytes = self._call("get_xattr", request, who).value
        return value

    def setxattr(
        self,
        inode: InodeId,
        name: str,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
        who: Credentials | None = None,
    ) -> None:
        """As setxattr(2)."""
        request = pb.XattrRequest(
            inode=inode, name=encode_name(name), value=value, create=create, replace=replace
        )
        self._call("set_xattr", request, who)

    def listxattrs(self, inode: InodeId, who: Credentials | None = None) -> list[str]:
        """The names of all."""
        reply = self._call("list_xattrs", pb.XattrRequest(inode=inode), who)
        return [os.fsdecode(name) for name in reply.names]

    def removexattr(self, inode: InodeId, name: str, who: Credentials | None = None) -> None:
        """NO_ATTRIBUTE if there is none."""
        request = pb.XattrRequest(inode=inode, name=encode_name(name))
        self._call("remove_xattr", request, who)

    # -- open files ------------------------------------------------------------------------------

    def create(
        self,
        parent: InodeId,
        name: str,
        permissions: int,
        *,
        exclusive: bool,
        truncate: bool,
        read: bool,
        write: bool,
        session: int,
        who: Credentials | None = None,
    ) -> tuple[Inode, bool]:
        """Open a file, made if it is missing: its inode, and whether it was made."""
        request = pb.CreateRequest(
            parent=parent,
            name=encode_name(name),
            permissions=permissions,
            exclusive=exclusive,
            truncate=truncate,
            read=read,
            write=write,
            session=session,
        )
        timeout_s = _TRUNCATE_TIMEOUT_S if truncate else None
        reply = self._call("create", request, who, timeout_s)
        return decode_inode(reply.inode), reply.created

    def open(
        self,
        inode: InodeId,
        *,
        read: bool,
        write: bool,
        truncate: bool,
        session: int,
        who: Credentials | None = None,
    ) -> Inode:
        """Open a file that is there."""
        request = pb.OpenRequest(
            inode=inode, read=read, write=write, truncate=truncate, session=session
        )
        timeout_s = _TRUNCATE_TIMEOUT_S if truncate else None
        return decode_inode(self._call("open", request, who, timeout_s).inode)

    def open_many(self, sessions: Sequence[tuple[InodeId, int]]) -> list[Inode]:
        """Open files for writing: inode and session each, in a few round trips."""
        requests = [
            pb.OpenRequest(inode=inode, write=True, session=session) for inode, session in sessions
        ]
        return [decode_inode(reply.inode) for reply in self._call_many("open", requests)]

    def close(self, closings: Iterable[Closing], *, repeat: bool = True) -> list[Inode | None]:
        """End sessions and settle what they wrote; the inodes as they are then.

        ``repeat`` False: ask once. All of it may be asked again, also with other request ids.
        """
        items = [pb.CloseItem(**closing._asdict()) for closing in closings]
        found: list[Inode | None] = []
        for start in range(0, len(items), CLOSINGS_PAGE):
            request = pb.CloseRequest(items=items[start : start + CLOSINGS_PAGE])
            reply = self._call("close", request, repeat=repeat)
            found += [decode_inode(m) if m.inode else None for m in reply.inodes]
        return found

    def settle(
        self, inode: InodeId, length_bytes: int, truncate_version: int, mtime_ns: int
    ) -> Inode:
        """Make a length that was written visible to all."""
        request = pb.SettleLengthRequest(
            inode=inode,
            length_bytes=length_bytes,
            truncate_version=truncate_version,
            mtime_ns=mtime_ns,
        )
        return decode_inode(self._call("settle_length", request).inode)

    def reserve_append(self, inode: InodeId, length_bytes: int) -> tuple[int, Inode]:
        """The offset of a range at the end of the file that nobody else will get."""
        request = pb.ReserveAppendRequest(inode=inode, length_bytes=length_bytes)
        reply = self._call("reserve_append", request)
        return reply.offset_bytes, decode_inode(reply.inode)

    def extend_session(self, description: str) -> int:
        """Keep this client's sessions alive; for how long, in milliseconds."""
        reply = self._call("extend_session", pb.ExtendSessionRequest(description=description))
        lease_ms: int = reply.lease_ms
        return lease_ms


def decode_resolved(reply: pb.ResolveReply) -> Resolved:
    """What a ResolveReply says."""
    inode = decode_inode(reply.inode) if reply.inode.inode else None
    return Resolved(inode, InodeId(reply.parent), os.fsdecode(reply.name))
