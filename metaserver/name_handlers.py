"""Handlers for names and attributes; each is described in proto/metadata.proto.

Methods that are marked inline there only read, from memory or the page cache, and take no lock that
is held during I/O.
"""

from __future__ import annotations

import os

from fs3 import wire
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.proto import common_pb2
from fs3.proto import metadata_pb2 as pb
from fs3.types import ROOT_INODE

from . import namespace
from .directories import PAGE_ENTRIES, PAGE_ENTRIES_MAX
from .kv.interface import Transaction
from .manager_members import space
from .metadata_handlers import (
    MetadataHandlers,
    attributes_reply,
    credentials_of,
    handle_of,
    inode_reply,
    wished_layout,
)

INODES_MAX = 10_000  # asked for in one GetAttributes


class NameHandlers(MetadataHandlers):
    """Look-up to rename, attributes, extended attributes, space."""

    def lookup(self, request: pb.LookupRequest) -> pb.InodeReply:
        dots = request.name in (b".", b"..")
        name = request.name.decode() if dots else wire.decode_name(request.name)
        inode = self.engine.run(
            namespace.lookup, InodeId(request.parent), name, credentials_of(request)
        )
        return inode_reply(inode)

    def resolve(self, request: pb.ResolveRequest) -> pb.ResolveReply:
        found = self.engine.run(
            namespace.resolve,
            wire.decode_path(request.path),
            credentials_of(request),
            follow=request.follow,
            want_parent=request.want_parent,
        )
        reply = pb.ResolveReply(parent=found.parent, name=os.fsencode(found.name))
        if found.inode is not None:
            reply.inode.CopyFrom(wire.encode_inode(found.inode))
        return reply

    def read_directory(self, request: pb.ReadDirectoryRequest) -> pb.ReadDirectoryReply:
        """At most PAGE_ENTRIES_MAX at a time, whatever is asked for."""
        page = self.engine.run(
            namespace.read_directory,
            InodeId(request.inode),
            credentials_of(request),
            after=os.fsdecode(request.after),
            limit=min(request.limit or PAGE_ENTRIES, PAGE_ENTRIES_MAX),
            attributes=request.attributes,
        )
        return pb.ReadDirectoryReply(entries=map(wire.encode_dentry, page.entries), more=page.more)

    def make_directory(self, request: pb.MakeDirectoryRequest) -> pb.InodeReply:
        name = wire.decode_name(request.name)
        new = self.new(request, wire.decode_permissions(request.permissions))
        return self.change(
            request,
            pb.InodeReply,
            lambda txn: inode_reply(namespace.mkdir(txn, InodeId(request.parent), name, new)),
        )

    def make_symlink(self, request: pb.MakeSymlinkRequest) -> pb.InodeReply:
        name, target = wire.decode_name(request.name), wire.decode_path(request.target)
        new = self.new(request)
        return self.change(
            request,
            pb.InodeReply,
            lambda txn: inode_reply(
                namespace.symlink(txn, InodeId(request.parent), name, target, new)
            ),
        )

    def make_node(self, request: pb.MakeNodeRequest) -> pb.InodeReply:
        name, kind = wire.decode_name(request.name), namespace.kind_of(request.mode)
        new = self.new(request, request.mode & wire.PERMISSIONS_MAX)
        tables = self.chain_tables()
        return self.change(
            request,
            pb.InodeReply,
            lambda txn: inode_reply(
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
        name, who, now_ns = (
            wire.decode_name(request.name),
            credentials_of(request),
            self.clock.wall_ns(),
        )
        inode, parent = InodeId(request.inode), InodeId(request.parent)
        return self.change(
            request,
            pb.InodeReply,
            lambda txn: inode_reply(namespace.link(txn, inode, parent, name, who, now_ns)),
        )

    def unlink(self, request: pb.UnlinkRequest) -> common_pb2.Empty:
        name, who, now_ns = (
            wire.decode_name(request.name),
            credentials_of(request),
            self.clock.wall_ns(),
        )

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.unlink(txn, InodeId(request.parent), name, who, now_ns)
            return common_pb2.Empty()

        return self.change(request, common_pb2.Empty, act)

    def remove_directory(self, request: pb.UnlinkRequest) -> common_pb2.Empty:
        name, who, now_ns = (
            wire.decode_name(request.name),
            credentials_of(request),
            self.clock.wall_ns(),
        )

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.rmdir(txn, InodeId(request.parent), name, who, now_ns)
            return common_pb2.Empty()

        return self.change(request, common_pb2.Empty, act)

    def rename(self, request: pb.RenameRequest) -> common_pb2.Empty:
        name, new_name = wire.decode_name(request.name), wire.decode_name(request.new_name)
        who, now_ns = credentials_of(request), self.clock.wall_ns()

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

        return self.change(request, common_pb2.Empty, act)

    # Attributes.

    def get_attributes(self, request: pb.GetAttributesRequest) -> pb.GetAttributesReply:
        if len(request.inodes) > INODES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE,
                f"attributes of {len(request.inodes)} inodes; at most {INODES_MAX} at a time",
            )
        inodes = [InodeId(inode) for inode in request.inodes]
        found = self.engine.run(namespace.get_attributes_of, inodes)
        return attributes_reply(found)

    def set_attributes(self, request: pb.SetAttributesRequest) -> pb.InodeReply:
        change, who, now_ns = (
            wire.decode_set_attributes(request),
            credentials_of(request),
            self.clock.wall_ns(),
        )
        inode, handle = InodeId(request.inode), handle_of(request, request.session)
        reply = self.change(
            request,
            pb.InodeReply,
            lambda txn: inode_reply(
                namespace.set_attributes(txn, inode, change, who, now_ns, handle).inode
            ),
        )
        if change.length_bytes is not None:
            self.truncations.finish(inode)
        return reply

    def set_layout(self, request: pb.SetLayoutRequest) -> pb.InodeReply:
        who, now_ns, layout = (
            credentials_of(request),
            self.clock.wall_ns(),
            wished_layout(request.layout),
        )
        return self.change(
            request,
            pb.InodeReply,
            lambda txn: inode_reply(
                namespace.set_layout(txn, InodeId(request.inode), layout, who, now_ns)
            ),
        )

    def stat_fs(self, request: pb.StatFsRequest) -> pb.StatFsReply:
        # Of the table that files get from the root on: what others hold, values of the KV cache for
        # example, is no room for them.
        table = self.engine.run(namespace.get_attributes, ROOT_INODE).layout.chain_table
        capacity, free = space(self.manager.feed.current, table, self.manager.reports)
        return wire.encode_stat_fs(self.engine.run(namespace.statfs, capacity, free))

    def get_xattr(self, request: pb.XattrRequest) -> pb.XattrReply:
        name, who = os.fsdecode(request.name), credentials_of(request)
        value = self.engine.run(namespace.get_xattr, InodeId(request.inode), name, who)
        return pb.XattrReply(value=value)

    def list_xattrs(self, request: pb.XattrRequest) -> pb.XattrReply:
        names = self.engine.run(
            namespace.list_xattrs, InodeId(request.inode), credentials_of(request)
        )
        return pb.XattrReply(names=map(os.fsencode, names))

    def set_xattr(self, request: pb.XattrRequest) -> common_pb2.Empty:
        name, who, now_ns = os.fsdecode(request.name), credentials_of(request), self.clock.wall_ns()

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

        return self.change(request, common_pb2.Empty, act)

    def remove_xattr(self, request: pb.XattrRequest) -> common_pb2.Empty:
        name, who, now_ns = os.fsdecode(request.name), credentials_of(request), self.clock.wall_ns()

        def act(txn: Transaction) -> common_pb2.Empty:
            namespace.remove_xattr(txn, InodeId(request.inode), name, who, now_ns)
            return common_pb2.Empty()

        return self.change(request, common_pb2.Empty, act)
