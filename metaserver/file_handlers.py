"""Handlers for open files and their lengths; each is described in proto/metadata.proto.

Whatever a shrink left to do at the storageservers is done after its transaction and before the
reply; if it cannot be done, the caller is told MAYBE_APPLIED and asks again with the same id. A
length grows, and a writer hears of a cut, only when nothing is left to trim: looked at again in the
transaction, and BUSY if somebody has cut the file in between.
"""

from __future__ import annotations

from fs3 import wire
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.proto import metadata_pb2 as pb

from . import namespace
from .garbage import check_trimmed
from .kv.interface import Transaction
from .metadata_handlers import (
    MetadataHandlers,
    attributes_reply,
    client_of,
    credentials_of,
    handle_of,
    inode_reply,
    wished_layout,
)
from .namespace import OpenMode, Wrote

CLOSES_MAX = 1_000  # sessions ended in one Close


class FileHandlers(MetadataHandlers):
    """Create, open, close; settle and reserve lengths; client leases."""

    def create(self, request: pb.CreateRequest) -> pb.OpenReply:
        name, mode = wire.decode_name(request.name), _open_mode(request)
        new = self.new(request, wire.decode_permissions(request.permissions))
        layout = wished_layout(request.layout) if request.HasField("layout") else None
        tables = self.chain_tables()

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

        return self._opened(self.change(request, pb.OpenReply, act), request, mode)

    def open(self, request: pb.OpenRequest) -> pb.OpenReply:
        mode, who, now_ns = _open_mode(request), credentials_of(request), self.clock.wall_ns()

        def act(txn: Transaction) -> pb.OpenReply:
            opened = namespace.open_file(txn, InodeId(request.inode), who, mode, now_ns)
            return _open_reply(opened, request.session)

        # A reader's session only keeps an unlinked file's chunks; it is not worth a sync.
        durable = mode.write or mode.truncate
        reply = self.change(request, pb.OpenReply, act, durable=durable)
        return self._opened(reply, request, mode)

    def close(self, request: pb.CloseRequest) -> pb.GetAttributesReply:
        """Replies with the inodes in the order of the items; one that is gone has number 0."""
        if len(request.items) > CLOSES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE, f"{len(request.items)} sessions; at most {CLOSES_MAX} at a time"
            )
        now_ns = self.clock.wall_ns()
        for item in request.items:
            if item.wrote:
                self._settle_first(InodeId(item.inode), item.truncate_version, item.mtime_ns)

        def act(txn: Transaction) -> pb.GetAttributesReply:
            for item in request.items:
                if item.wrote:
                    check_trimmed(txn, InodeId(item.inode))
            return attributes_reply(
                [
                    namespace.close_file(
                        txn,
                        InodeId(item.inode),
                        handle_of(request, item.session),
                        now_ns,
                        _wrote(item) if item.wrote else None,
                    )
                    for item in request.items
                ]
            )

        durable = any(item.wrote for item in request.items)
        return self.change(request, pb.GetAttributesReply, act, durable=durable)

    def settle_length(self, request: pb.SettleLengthRequest) -> pb.InodeReply:
        inode, now_ns, wrote = InodeId(request.inode), self.clock.wall_ns(), _wrote(request)
        wire.decode_length(request.length_bytes)
        self._settle_first(inode, request.truncate_version, request.mtime_ns)

        def act(txn: Transaction) -> pb.InodeReply:
            check_trimmed(txn, inode)
            return inode_reply(namespace.settle_length(txn, inode, wrote, now_ns))

        return self.change(request, pb.InodeReply, act)

    def reserve_append(self, request: pb.ReserveAppendRequest) -> pb.ReserveAppendReply:
        inode, now_ns = InodeId(request.inode), self.clock.wall_ns()
        length_bytes = wire.decode_length(request.length_bytes)
        self.truncations.finish(inode)

        def act(txn: Transaction) -> pb.ReserveAppendReply:
            check_trimmed(txn, inode)
            offset, record = namespace.reserve_append(txn, inode, length_bytes, now_ns)
            return pb.ReserveAppendReply(offset_bytes=offset, inode=wire.encode_inode(record))

        return self.change(request, pb.ReserveAppendReply, act)

    def extend_session(self, request: pb.ExtendSessionRequest) -> pb.ExtendSessionReply:
        self.clients.heard(client_of(request))
        return pb.ExtendSessionReply(lease_ms=self.clients.lease_ms)

    def _opened(
        self, reply: pb.OpenReply, request: pb.CreateRequest | pb.OpenRequest, mode: OpenMode
    ) -> pb.OpenReply:
        if mode.handle is not None:
            self.clients.heard(mode.handle.client)
        if (mode.write or mode.truncate) and not reply.created:
            self.truncations.finish(InodeId(reply.inode.inode))
        return reply

    def _settle_first(self, inode: InodeId, truncate_version: int, mtime_ns: int) -> None:
        """Before a writer's length is settled: no trim may be left that could take its bytes.

        A writer that has not heard of a cut cannot say whether its bytes came after it; what is
        stored can.
        """
        self.truncations.finish(inode)
        (record,) = self.engine.run(namespace.get_attributes_of, [inode])
        if record is not None and record.truncate_version != truncate_version:
            self.lengths.settle_as_written(inode, mtime_ns)


def _open_mode(request: pb.CreateRequest | pb.OpenRequest) -> OpenMode:
    return OpenMode(
        read=request.read,
        write=request.write,
        truncate=request.truncate,
        handle=handle_of(request, request.session),
    )


def _wrote(message: pb.CloseItem | pb.SettleLengthRequest) -> Wrote:
    return Wrote(message.length_bytes, message.truncate_version, message.mtime_ns)


def _open_reply(opened: namespace.Opened, session: int) -> pb.OpenReply:
    inode = wire.encode_inode(opened.inode)
    return pb.OpenReply(inode=inode, session=session, created=opened.created)
