"""The Metadata service: decode, run one namespace function in one transaction, encode.

A change goes through :meth:`MetadataService._change`, which stores the answer in the transaction
that does the work: a repeated request id gets the first answer. Whatever a shrink left to do at
the storageservers is done after that transaction and before the reply; if it cannot be done, the
caller is told MAYBE_APPLIED and asks again with the same id. Methods that proto/metadata.proto
marks inline only read, from memory or the page cache, and take no lock that is held during I/O.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from fs3 import wire
from fs3.clock import Clock
from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.proto import common_pb2
from fs3.proto import metadata_pb2 as pb
from fs3.types import Credentials, Inode

from . import namespace
from .clients import Clients
from .directories import PAGE_ENTRIES, PAGE_ENTRIES_MAX
from .kv.interface import Engine, Transaction
from .lengths import Lengths
from .manager import Manager
from .manager_members import space
from .namespace import Handle, InodeAllocator, NewInode, OpenMode, Wrote
from .truncations import Truncations

INODES_MAX = 10_000  # asked for in one GetAttributes
CLOSES_MAX = 1_000  # sessions ended in one Close
_Reply = TypeVar("_Reply", bound=Message)


class _Request(Protocol):
    """Any request message."""

    @property
    def header(self) -> common_pb2.RequestHeader: ...


class MetadataService:
    """Handlers for :class:`fs3.rpc.Handlers`; each is described in proto/. Any thread may call."""

    def __init__(
        self,
        engine: Engine,
        manager: Manager,
        clients: Clients,
        truncations: Truncations,
        lengths: Lengths,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._manager = manager
        self._clients = clients
        self._truncations = truncations
        self._lengths = lengths
        self._clock = clock
        self._inodes = InodeAllocator(engine)

    # Names.

    def lookup(self, request: pb.LookupRequest) -> pb.InodeReply:
        dots = request.name in (b".", b"..")
        name = request.name.decode() if dots else wire.decode_name(request.name)
        inode = self._engine.run(namespace.lookup, InodeId(request.parent), name, _who(request))
        return _inode_reply(inode)

    def resolve(self, request: pb.ResolveRequest) -> pb.ResolveReply:
        found = self._engine.run(
            namespace.resolve,
            wire.decode_path(request.path),
            _who(request),
            follow=request.follow,
            want_parent=request.want_parent,
        )
        reply = pb.ResolveReply(parent=found.parent, name=os.fsencode(found.name))
        if found.inode is not None:
            reply.inode.CopyFrom(wire.encode_inode(found.inode))
        return reply

    def read_directory(self, request: pb.ReadDirectoryRequest) -> pb.ReadDirectoryReply:
        """At most PAGE_ENTRIES_MAX at a time, whatever is asked for."""
        page = self._engine.run(
            namespace.read_directory,
            InodeId(request.inode),
            _who(request),
            after=os.fsdecode(request.after),
            limit=min(request.limit or PAGE_ENTRIES, PAGE_ENTRIES_MAX),
            attributes=request.attributes,
        )
        return pb.ReadDirectoryReply(entries=map(wire.encode_dentry, page.entries), more=page.more)

    def make_directory(self, request: pb.MakeDirectoryRequest) -> pb.InodeReply:
        name = wire.decode_name(request.name)
        new = self._new(request, wire.decode_permissions(request.permissions))
        return self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(namespace.mkdir(txn, InodeId(request.parent), name, new)),
        )

    def make_symlink(self, request: pb.MakeSymlinkRequest) -> pb.InodeReply:
        name, target = wire.decode_name(request.name), wire.decode_path(request.target)
        new = self._new(request)
        return self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(
                namespace.symlink(txn, InodeId(request.parent), name, target, new)
            ),
        )

    def make_node(self, request: pb.MakeNodeRequest) -> pb.InodeReply:
        name, kind = wire.decode_name(request.name), namespace.kind_of(request.mode)
        new = self._new(request, request.mode & wire.PERMISSIONS_MAX)
        tables = self._chain_tables()
        return self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(
                namespace.mknod(
                    txn,
                    InodeId(request.parent),
                    name,
                    new,
                    tables,
                    kind=kind,
                    device=request.device,
                )
            ),
        )

    def link(self, request: pb.LinkRequest) -> pb.InodeReply:
        name, who, now_ns = wire.decode_name(request.name), _who(request), self._clock.wall_ns()
        inode, parent = InodeId(request.inode), InodeId(request.parent)
        return self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(namespace.link(txn, inode, parent, name, who, now_ns)),
        )

    def unlink(self, request: pb.UnlinkRequest) -> common_pb2.Empty:
        name, who, now_ns = wire.decode_name(request.name), _who(request), self._clock.wall_ns()

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.unlink(txn, InodeId(request.parent), name, who, now_ns)
            return common_pb2.Empty()

        return self._change(request, common_pb2.Empty, act)

    def remove_directory(self, request: pb.UnlinkRequest) -> common_pb2.Empty:
        name, who, now_ns = wire.decode_name(request.name), _who(request), self._clock.wall_ns()

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.rmdir(txn, InodeId(request.parent), name, who, now_ns)
            return common_pb2.Empty()

        return self._change(request, common_pb2.Empty, act)

    def rename(self, request: pb.RenameRequest) -> common_pb2.Empty:
        name, new_name = wire.decode_name(request.name), wire.decode_name(request.new_name)
        who, now_ns = _who(request), self._clock.wall_ns()

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.rename(
                txn,
                InodeId(request.parent),
                name,
                InodeId(request.new_parent),
                new_name,
                who,
                now_ns,
                no_replace=request.no_replace,
                exchange=request.exchange,
            )
            return common_pb2.Empty()

        return self._change(request, common_pb2.Empty, act)

    # Attributes.

    def get_attributes(self, request: pb.GetAttributesRequest) -> pb.GetAttributesReply:
        if len(request.inodes) > INODES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE,
                f"attributes of {len(request.inodes)} inodes; at most {INODES_MAX} at a time",
            )
        inodes = [InodeId(inode) for inode in request.inodes]
        found = self._engine.run(namespace.get_attributes_of, inodes)
        return _attributes_reply(found)

    def set_attributes(self, request: pb.SetAttributesRequest) -> pb.InodeReply:
        change, who, now_ns = (
            wire.decode_set_attributes(request),
            _who(request),
            self._clock.wall_ns(),
        )
        inode, handle = InodeId(request.inode), _handle(request, request.session)
        reply = self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(
                namespace.set_attributes(txn, inode, change, who, now_ns, handle).inode
            ),
        )
        if change.length_bytes is not None:
            self._truncations.finish(inode)
        return reply

    def set_layout(self, request: pb.SetLayoutRequest) -> pb.InodeReply:
        who, now_ns, layout = _who(request), self._clock.wall_ns(), _wished(request.layout)
        return self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(
                namespace.set_layout(txn, InodeId(request.inode), layout, who, now_ns)
            ),
        )

    def stat_fs(self, request: pb.StatFsRequest) -> pb.StatFsReply:
        capacity, free = space(self._manager.feed.current, self._manager.reports)
        return wire.encode_stat_fs(self._engine.run(namespace.statfs, capacity, free))

    def get_xattr(self, request: pb.XattrRequest) -> pb.XattrReply:
        name, who = os.fsdecode(request.name), _who(request)
        value = self._engine.run(namespace.get_xattr, InodeId(request.inode), name, who)
        return pb.XattrReply(value=value)

    def list_xattrs(self, request: pb.XattrRequest) -> pb.XattrReply:
        names = self._engine.run(namespace.list_xattrs, InodeId(request.inode), _who(request))
        return pb.XattrReply(names=map(os.fsencode, names))

    def set_xattr(self, request: pb.XattrRequest) -> common_pb2.Empty:
        name, who, now_ns = os.fsdecode(request.name), _who(request), self._clock.wall_ns()

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.set_xattr(
                txn,
                InodeId(request.inode),
                name,
                request.value,
                who,
                now_ns,
                create=request.create,
                replace_only=request.replace,
            )
            return common_pb2.Empty()

        return self._change(request, common_pb2.Empty, act)

    def remove_xattr(self, request: pb.XattrRequest) -> common_pb2.Empty:
        name, who, now_ns = os.fsdecode(request.name), _who(request), self._clock.wall_ns()

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.remove_xattr(txn, InodeId(request.inode), name, who, now_ns)
            return common_pb2.Empty()

        return self._change(request, common_pb2.Empty, act)

    # Open files.

    def create(self, request: pb.CreateRequest) -> pb.OpenReply:
        name, mode = wire.decode_name(request.name), _open_mode(request)
        new = self._new(request, wire.decode_permissions(request.permissions))
        layout = _wished(request.layout) if request.HasField("layout") else None
        tables = self._chain_tables()

        def act(txn: Transaction) -> pb.OpenReply:
            opened = namespace.create(
                txn,
                InodeId(request.parent),
                name,
                new,
                tables,
                mode=mode,
                exclusive=request.exclusive,
                layout=layout,
            )
            return _open_reply(opened, request.session)

        return self._opened(self._change(request, pb.OpenReply, act), request, mode)

    def open(self, request: pb.OpenRequest) -> pb.OpenReply:
        mode, who, now_ns = _open_mode(request), _who(request), self._clock.wall_ns()

        def act(txn: Transaction) -> pb.OpenReply:
            opened = namespace.open_file(txn, InodeId(request.inode), who, mode, now_ns)
            return _open_reply(opened, request.session)

        return self._opened(self._change(request, pb.OpenReply, act), request, mode)

    def close(self, request: pb.CloseRequest) -> pb.GetAttributesReply:
        """Replies with the inodes in the order of the items; one that is gone has number 0."""
        if len(request.items) > CLOSES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE, f"{len(request.items)} sessions; at most {CLOSES_MAX} at a time"
            )
        now_ns = self._clock.wall_ns()
        for item in request.items:
            if item.wrote:
                self._settle_first(InodeId(item.inode), item.truncate_version, item.mtime_ns)

        def act(txn: Transaction) -> pb.GetAttributesReply:
            return _attributes_reply(
                [
                    namespace.close_file(
                        txn,
                        InodeId(item.inode),
                        _handle(request, item.session),
                        now_ns,
                        _wrote(item) if item.wrote else None,
                    )
                    for item in request.items
                ]
            )

        return self._change(request, pb.GetAttributesReply, act)

    def settle_length(self, request: pb.SettleLengthRequest) -> pb.InodeReply:
        inode, now_ns, wrote = InodeId(request.inode), self._clock.wall_ns(), _wrote(request)
        wire.decode_length(request.length_bytes)
        self._settle_first(inode, request.truncate_version, request.mtime_ns)
        return self._change(
            request,
            pb.InodeReply,
            lambda txn: _inode_reply(namespace.settle_length(txn, inode, wrote, now_ns)),
        )

    def reserve_append(self, request: pb.ReserveAppendRequest) -> pb.ReserveAppendReply:
        inode, now_ns = InodeId(request.inode), self._clock.wall_ns()
        length_bytes = wire.decode_length(request.length_bytes)
        self._truncations.finish(inode)

        def act(txn: Transaction) -> pb.ReserveAppendReply:
            offset, record = namespace.reserve_append(txn, inode, length_bytes, now_ns)
            return pb.ReserveAppendReply(offset_bytes=offset, inode=wire.encode_inode(record))

        return self._change(request, pb.ReserveAppendReply, act)

    def extend_session(self, request: pb.ExtendSessionRequest) -> pb.ExtendSessionReply:
        self._clients.heard(_client(request))
        return pb.ExtendSessionReply(lease_ms=self._clients.lease_ms)

    # What they have in common.

    def _change(
        self, request: _Request, reply: type[_Reply], act: Callable[[Transaction], _Reply]
    ) -> _Reply:
        """``act``'s answer, or the answer that this request got before."""
        client, request_id = _client(request), request.header.request_id
        now_ns = self._clock.wall_ns()
        answer = self._engine.run(
            lambda txn: namespace.once(
                txn, client, request_id, now_ns, lambda: act(txn).SerializeToString()
            )
        )
        return reply.FromString(answer)

    def _opened(
        self, reply: pb.OpenReply, request: pb.CreateRequest | pb.OpenRequest, mode: OpenMode
    ) -> pb.OpenReply:
        if mode.handle is not None:
            self._clients.heard(mode.handle.client)
        if (mode.write or mode.truncate) and not reply.created:
            self._truncations.finish(InodeId(reply.inode.inode))
        return reply

    def _settle_first(self, inode: InodeId, truncate_version: int, mtime_ns: int) -> None:
        """Before a writer's length is settled: no trim may be left that could take its bytes.

        A writer that has not heard of a cut cannot say whether its bytes came after it; what is
        stored can.
        """
        self._truncations.finish(inode)
        (record,) = self._engine.run(namespace.get_attributes_of, [inode])
        if record is not None and record.truncate_version != truncate_version:
            self._lengths.settle_as_written(inode, mtime_ns)

    def _new(self, request: _Request, permissions: int = 0o777) -> NewInode:
        return NewInode(
            inode=self._inodes.take(),
            who=_who(request),
            now_ns=self._clock.wall_ns(),
            permissions=permissions,
        )

    def _chain_tables(self) -> namespace.ChainTables:
        tables = self._manager.feed.current.tables
        return {number: table.chains for number, table in tables.items()}


def _client(request: _Request) -> int:
    client = request.header.client_id
    if not client:
        raise Fs3Error(Code.INVALID, "client_id 0 is not allowed: each client draws its own")
    return client


def _who(request: _Request) -> Credentials:
    if not request.header.HasField("who"):
        raise Fs3Error(Code.INVALID, "a request without credentials: say for whom it is (who)")
    return wire.decode_credentials(request.header.who)


def _handle(request: _Request, session: int) -> Handle | None:
    return Handle(_client(request), session) if session else None


def _open_mode(request: pb.CreateRequest | pb.OpenRequest) -> OpenMode:
    return OpenMode(
        read=request.read,
        write=request.write,
        truncate=request.truncate,
        handle=_handle(request, request.session),
    )


def _wrote(message: pb.CloseItem | pb.SettleLengthRequest) -> Wrote:
    return Wrote(message.length_bytes, message.truncate_version, message.mtime_ns)


def _wished(message: common_pb2.Layout) -> Layout:
    """A layout with fields unset; the namespace checks it when it has filled them in."""
    return Layout(message.chunk_bytes, message.stripe, message.chain_table)


def _inode_reply(inode: Inode) -> pb.InodeReply:
    return pb.InodeReply(inode=wire.encode_inode(inode))


def _open_reply(opened: namespace.Opened, session: int) -> pb.OpenReply:
    inode = wire.encode_inode(opened.inode)
    return pb.OpenReply(inode=inode, session=session, created=opened.created)


def _attributes_reply(found: list[Inode | None]) -> pb.GetAttributesReply:
    return pb.GetAttributesReply(
        inodes=[
            common_pb2.Inode() if inode is None else wire.encode_inode(inode) for inode in found
        ]
    )
