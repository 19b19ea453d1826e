"""Dataclasses on one side, protobuf on the other: the only place that knows both.

``encode_x`` makes a message, ``decode_x`` a record. Decoding validates: what comes out can be
relied on, and what cannot be is refused with an Fs3Error that names the field and its value.

Names and symlink targets are bytes on the wire, as in the kernel, and ``str`` inside, as
``os.fsdecode`` makes them: every byte string survives the round trip.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import TypeVar

from fs3.core.kv import NamespaceId
from fs3.core.layout import Layout, check_chunk_bytes
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    InodeId,
    NodeId,
    PublicState,
    Replica,
    TargetId,
)
from fs3.errors import Code, Fs3Error
from fs3.jobs import Job, JobKind, JobProgress, JobState, Move
from fs3.proto import cluster_pb2, common_pb2, metadata_pb2
from fs3.routing import (
    ChainTable,
    NodeInfo,
    RdmaEndpoint,
    Routing,
    RoutingDelta,
    TargetInfo,
    difference,
)
from fs3.types import (
    FILE_BYTES_MAX,
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    Credentials,
    Dentry,
    FileKind,
    Inode,
    SetAttributes,
    StatFs,
)
from fs3.wire_kv import decode_namespace, encode_namespace

GIDS_MAX = 65_536  # the kernel's NGROUPS_MAX
PERMISSIONS_MAX = 0o7777
GID_BYTES = 16  # of an RDMA endpoint
_LAID_OUT = (FileKind.FILE, FileKind.DIRECTORY)  # only these have, or hand down, a layout
_NO_LAYOUT = Layout(0, 0, 0)
_Enum = TypeVar("_Enum", bound=IntEnum)


def encode_name(name: str) -> bytes:
    """A name as the wire has it."""
    return os.fsencode(name)


def decode_name(name: bytes) -> str:
    """One path component, refused if it names nothing: empty, dots, with "/" or NUL, too long."""
    if len(name) > NAME_BYTES_MAX:
        raise Fs3Error(
            Code.NAME_TOO_LONG,
            f"name {name[:32]!r}... of {len(name)} bytes; at most {NAME_BYTES_MAX} are allowed",
        )
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Fs3Error(
            Code.INVALID,
            f"name {name!r} is not allowed: any but '', '.', '..' and without '/' and NUL is",
        )
    return os.fsdecode(name)


def decode_path(path: bytes) -> str:
    """A path or a symlink's target: not empty, no NUL, at most PATH_BYTES_MAX bytes."""
    if len(path) > PATH_BYTES_MAX:
        raise Fs3Error(
            Code.NAME_TOO_LONG,
            f"path {path[:32]!r}... of {len(path)} bytes; at most {PATH_BYTES_MAX} are allowed",
        )
    if not path or b"\0" in path:
        raise Fs3Error(Code.INVALID, f"path {path!r} is not allowed: not empty, without NUL is")
    return os.fsdecode(path)


def decode_enum(enum: type[_Enum], number: int, field: str) -> _Enum:
    """A member of ``enum``, or Fs3Error INVALID naming the field."""
    try:
        return enum(number)
    except ValueError:
        allowed = ", ".join(f"{member.value} {member.name}" for member in enum)
        raise Fs3Error(Code.INVALID, f"{field} {number} is not allowed: {allowed} are") from None


def _at_most(number: int, limit: int, field: str) -> int:
    if number > limit:
        raise Fs3Error(Code.INVALID, f"{field} {number} is not allowed: at most {limit} is")
    return number


def decode_permissions(permissions: int) -> int:
    """The low 12 bits of st_mode."""
    if permissions > PERMISSIONS_MAX:
        raise Fs3Error(
            Code.INVALID, f"permissions {permissions:#o} are not allowed: 0 to 0o7777 are"
        )
    return permissions


def decode_length(length_bytes: int) -> int:
    """A file's length."""
    if length_bytes > FILE_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE,
            f"a length of {length_bytes} bytes is not allowed: at most {FILE_BYTES_MAX} is",
        )
    return length_bytes


def encode_credentials(who: Credentials) -> common_pb2.Credentials:
    """See the module."""
    return common_pb2.Credentials(uid=who.uid, gid=who.gid, gids=who.gids)


def decode_credentials(message: common_pb2.Credentials) -> Credentials:
    """See the module."""
    _at_most(len(message.gids), GIDS_MAX, "number of supplementary groups")
    return Credentials(uid=message.uid, gid=message.gid, gids=tuple(message.gids))


def encode_layout(layout: Layout) -> common_pb2.Layout:
    """See the module."""
    return common_pb2.Layout(
        chunk_bytes=layout.chunk_bytes,
        stripe=layout.stripe,
        chain_table=layout.chain_table,
        chains=layout.chains,
    )


def decode_layout(message: common_pb2.Layout) -> Layout:
    """A whole layout. A wish with unset fields (of a CreateRequest) is the metaserver's to fill."""
    problem = check_chunk_bytes(message.chunk_bytes)
    if problem is not None:
        raise Fs3Error(Code.INVALID, problem)
    if not message.stripe:
        raise Fs3Error(Code.INVALID, "stripe 0 is not allowed: at least 1 is")
    return Layout(
        chunk_bytes=message.chunk_bytes,
        stripe=message.stripe,
        chain_table=message.chain_table,
        chains=tuple(map(ChainId, message.chains)),
    )


def encode_inode(inode: Inode) -> common_pb2.Inode:
    """See the module."""
    return common_pb2.Inode(
        inode=inode.inode,
        kind=inode.kind,
        permissions=inode.permissions,
        uid=inode.uid,
        gid=inode.gid,
        links=inode.links,
        length_bytes=inode.length_bytes,
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
        layout=encode_layout(inode.layout),
        version=inode.version,
        truncate_version=inode.truncate_version,
        symlink=os.fsencode(inode.symlink),
        device=inode.device,
        parent=inode.parent,
    )


def decode_inode(message: common_pb2.Inode) -> Inode:
    """See the module."""
    if not message.inode:
        raise Fs3Error(Code.INVALID, "inode 0 is not allowed: it stands for none")
    kind = decode_enum(FileKind, message.kind, f"kind of inode {message.inode}")
    return Inode(
        inode=InodeId(message.inode),
        kind=kind,
        permissions=decode_permissions(message.permissions),
        uid=message.uid,
        gid=message.gid,
        links=message.links,
        length_bytes=decode_length(message.length_bytes),
        atime_ns=message.atime_ns,
        mtime_ns=message.mtime_ns,
        ctime_ns=message.ctime_ns,
        layout=decode_layout(message.layout) if kind in _LAID_OUT else _NO_LAYOUT,
        version=message.version,
        truncate_version=message.truncate_version,
        symlink=decode_path(message.symlink) if message.symlink else "",
        device=message.device,
        parent=InodeId(message.parent),
    )


def encode_dentry(dentry: Dentry) -> metadata_pb2.DentryRecord:
    """See the module."""
    record = metadata_pb2.DentryRecord(
        name=os.fsencode(dentry.name), inode=dentry.inode, kind=dentry.kind
    )
    if dentry.attributes is not None:
        record.attributes.CopyFrom(encode_inode(dentry.attributes))
    return record


def decode_dentry(message: metadata_pb2.DentryRecord) -> Dentry:
    """See the module."""
    attributes = decode_inode(message.attributes) if message.HasField("attributes") else None
    return Dentry(
        name=decode_name(message.name),
        inode=InodeId(message.inode),
        kind=decode_enum(FileKind, message.kind, f"kind of entry {message.name!r}"),
        attributes=attributes,
    )


_OPTIONAL = ("permissions", "uid", "gid", "length_bytes", "atime_ns", "mtime_ns")


def encode_set_attributes(
    inode: InodeId, change: SetAttributes, session: int = 0
) -> metadata_pb2.SetAttributesRequest:
    """A request without its header, which the stub fills in."""
    message = metadata_pb2.SetAttributesRequest(
        inode=inode, atime_now=change.atime_now, mtime_now=change.mtime_now, session=session
    )
    for name in _OPTIONAL:
        value = getattr(change, name)
        if value is not None:
            setattr(message, name, value)
    return message


def decode_set_attributes(message: metadata_pb2.SetAttributesRequest) -> SetAttributes:
    """What to change; ``message.inode`` and ``message.session`` are the caller's to read."""
    said = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    if "permissions" in said:
        decode_permissions(said["permissions"])
    if "length_bytes" in said:
        decode_length(said["length_bytes"])
    return SetAttributes(**said, atime_now=message.atime_now, mtime_now=message.mtime_now)


def encode_stat_fs(space: StatFs) -> metadata_pb2.StatFsReply:
    """See the module."""
    return metadata_pb2.StatFsReply(
        capacity_bytes=space.capacity_bytes, free_bytes=space.free_bytes, inodes=space.inodes
    )


def decode_stat_fs(message: metadata_pb2.StatFsReply) -> StatFs:
    """See the module."""
    _at_most(message.free_bytes, message.capacity_bytes, "free bytes")
    return StatFs(
        capacity_bytes=message.capacity_bytes,
        free_bytes=message.free_bytes,
        inodes=message.inodes,
    )


def encode_node(node: NodeInfo) -> cluster_pb2.Node:
    """See the module."""
    return cluster_pb2.Node(
        node=node.node,
        host=node.host,
        data_address=node.data_address,
        control_address=node.control_address,
        incarnation=node.incarnation,
        alive=node.alive,
        rdma=map(encode_rdma_endpoint, node.rdma),
        local=cluster_pb2.LocalEndpoint(address=node.local_address, boot_id=node.boot_id)
        if node.local_address
        else None,
    )


def decode_node(message: cluster_pb2.Node) -> NodeInfo:
    """See the module."""
    return NodeInfo(
        node=NodeId(_id(message.node, "node")),
        host=message.host,
        data_address=message.data_address,
        control_address=message.control_address,
        incarnation=message.incarnation,
        alive=message.alive,
        rdma=tuple(map(decode_rdma_endpoint, message.rdma)),
        local_address=message.local.address,
        boot_id=message.local.boot_id,
    )


def encode_rdma_endpoint(endpoint: RdmaEndpoint) -> common_pb2.RdmaEndpoint:
    """See the module."""
    return common_pb2.RdmaEndpoint(
        gid=endpoint.gid,
        lid=endpoint.lid,
        mtu_bytes=endpoint.mtu_bytes,
        infiniband=endpoint.infiniband,
        roce_v2=endpoint.roce_v2,
        name=endpoint.name,
        iwarp=endpoint.iwarp,
    )


def decode_rdma_endpoint(message: common_pb2.RdmaEndpoint) -> RdmaEndpoint:
    """See the module."""
    if len(message.gid) != GID_BYTES:
        raise Fs3Error(
            Code.INVALID, f"a GID of {len(message.gid)} bytes is not allowed: {GID_BYTES} are"
        )
    return RdmaEndpoint(
        gid=message.gid,
        lid=message.lid,
        mtu_bytes=message.mtu_bytes,
        infiniband=message.infiniband,
        roce_v2=message.roce_v2,
        name=message.name,
        iwarp=message.iwarp,
    )


def _id(number: int, field: str) -> int:
    if not number:
        raise Fs3Error(Code.INVALID, f"{field} id 0 is not allowed: it stands for none")
    return number


def encode_chain(chain: Chain) -> cluster_pb2.ChainRecord:
    """See the module."""
    return cluster_pb2.ChainRecord(
        chain=chain.chain,
        version=chain.version,
        replicas=[
            cluster_pb2.ReplicaRecord(target=r.target, node=r.node, state=r.state)
            for r in chain.replicas
        ],
        preferred=chain.preferred,
    )


def decode_chain(message: cluster_pb2.ChainRecord) -> Chain:
    """See the module."""
    state_of = f"state of a replica of chain {message.chain}"
    return Chain(
        chain=ChainId(_id(message.chain, "chain")),
        version=ChainVersion(message.version),
        replicas=tuple(
            Replica(
                TargetId(_id(r.target, "target")),
                NodeId(_id(r.node, "node")),
                decode_enum(PublicState, r.state, state_of),
            )
            for r in message.replicas
        ),
        preferred=tuple(map(TargetId, message.preferred)),
    )


def encode_update(old: Routing | None, new: Routing) -> cluster_pb2.RoutingUpdate:
    """What changed from ``old`` to ``new``; everything if ``old`` is None."""
    delta = difference(old, new)
    return cluster_pb2.RoutingUpdate(
        from_version=delta.from_version,
        version=delta.version,
        nodes=map(encode_node, delta.nodes),
        targets=[
            cluster_pb2.Target(target=t.target, node=t.node, chain=t.chain) for t in delta.targets
        ],
        chains=map(encode_chain, delta.chains),
        tables=[
            cluster_pb2.ChainTable(table=t.table, version=t.version, chains=t.chains)
            for t in delta.tables
        ],
        removed_chains=delta.removed_chains,
        removed_targets=delta.removed_targets,
        removed_nodes=delta.removed_nodes,
        namespaces=map(encode_namespace, delta.namespaces),
        removed_namespaces=delta.removed_namespaces,
        namespaces_end=delta.namespaces_end,
    )


def decode_update(message: cluster_pb2.RoutingUpdate) -> RoutingDelta:
    """What :meth:`fs3.routing.Routing.apply` takes."""
    return RoutingDelta(
        from_version=message.from_version,
        version=message.version,
        nodes=tuple(map(decode_node, message.nodes)),
        targets=tuple(
            TargetInfo(
                target=TargetId(_id(t.target, "target")),
                node=NodeId(_id(t.node, "node")),
                chain=ChainId(t.chain),
            )
            for t in message.targets
        ),
        chains=tuple(map(decode_chain, message.chains)),
        tables=tuple(
            ChainTable(
                table=_id(t.table, "chain table"),
                version=t.version,
                chains=tuple(map(ChainId, t.chains)),
            )
            for t in message.tables
        ),
        removed_nodes=tuple(map(NodeId, message.removed_nodes)),
        removed_targets=tuple(map(TargetId, message.removed_targets)),
        removed_chains=tuple(map(ChainId, message.removed_chains)),
        namespaces=tuple(map(decode_namespace, message.namespaces)),
        removed_namespaces=tuple(map(NamespaceId, message.removed_namespaces)),
        namespaces_end=message.namespaces_end,
    )


def encode_job(job: Job) -> cluster_pb2.Job:
    """See the module."""
    return cluster_pb2.Job(
        job=job.number,
        kind=job.kind,
        subject=job.subject,
        state=job.state,
        moves=[
            cluster_pb2.Move(chain=m.chain, old_target=m.old, new_target=m.new) for m in job.moves
        ],
        moves_done=job.moves_done,
        bytes_done=job.bytes_done,
        started_ns=job.started_ns,
    )


def decode_job(message: cluster_pb2.Job) -> Job:
    """See the module."""
    number = _id(message.job, "job")
    return Job(
        number=number,
        kind=decode_enum(JobKind, message.kind, f"kind of job {number}"),
        subject=message.subject,
        state=decode_enum(JobState, message.state, f"state of job {number}"),
        moves=tuple(
            Move(
                chain=ChainId(_id(m.chain, "chain")),
                old=TargetId(m.old_target),
                new=TargetId(m.new_target),
            )
            for m in message.moves
        ),
        moves_done=message.moves_done,
        bytes_done=message.bytes_done,
        started_ns=message.started_ns,
    )


def encode_progress(progress: JobProgress) -> cluster_pb2.JobProgress:
    """See the module."""
    return cluster_pb2.JobProgress(
        job=encode_job(progress.job),
        moves_total=progress.moves_total,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        remaining_ms=progress.remaining_ms,
        waits_for=progress.waits_for,
    )


def decode_progress(message: cluster_pb2.JobProgress) -> JobProgress:
    """See the module."""
    return JobProgress(
        job=decode_job(message.job),
        moves_total=message.moves_total,
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
        remaining_ms=message.remaining_ms if message.HasField("remaining_ms") else None,
        waits_for=message.waits_for,
    )
