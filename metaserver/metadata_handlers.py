"""What the handlers of the Metadata service share: one way to change things, decoding, encoding.

A change goes through :meth:`MetadataHandlers.change`, which stores the answer in the transaction
that does the work: a repeated request id gets the first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from fs3 import wire
from fs3.clock import Clock
from fs3.core.layout import Layout
from fs3.errors import Code, Fs3Error
from fs3.proto import common_pb2
from fs3.proto import metadata_pb2 as pb
from fs3.types import Credentials, Inode

from . import namespace
from .clients import Clients
from .kv.interface import Engine, Transaction
from .lengths import Lengths
from .manager import Manager
from .namespace import Handle, InodeAllocator, NewInode
from .truncations import Truncations

_Reply = TypeVar("_Reply", bound=Message)


class Request(Protocol):
    """Any request message."""

    @property
    def header(self) -> common_pb2.RequestHeader: ...


class MetadataHandlers:
    """What handlers work with. Any thread may call."""

    def __init__(
        self,
        engine: Engine,
        manager: Manager,
        clients: Clients,
        truncations: Truncations,
        lengths: Lengths,
        clock: Clock,
    ) -> None:
        self.engine = engine
        self.manager = manager
        self.clients = clients
        self.truncations = truncations
        self.lengths = lengths
        self.clock = clock
        self.inodes = InodeAllocator(engine)

    def change(
        self,
        request: Request,
        reply: type[_Reply],
        act: Callable[[Transaction], _Reply],
        *,
        durable: bool = True,
    ) -> _Reply:
        """``act``'s answer, or the answer that this request got before.

        ``durable`` False for what a power cut may take back: that a file is open for reading.
        """
        client, request_id = client_of(request), request.header.request_id
        now_ns = self.clock.wall_ns()
        answer = self.engine.run(
            lambda txn: namespace.once(
                txn, client, request_id, now_ns, lambda: act(txn).SerializeToString()
            ),
            durable=durable,
        )
        return reply.FromString(answer)

    def new(self, request: Request, permissions: int = 0o777) -> NewInode:
        """An id and everything else that a new inode needs."""
        return NewInode(
            inode=self.inodes.take(),
            who=credentials_of(request),
            now_ns=self.clock.wall_ns(),
            permissions=permissions,
        )

    def chain_tables(self) -> namespace.ChainTables:
        """The chains that new files are spread over."""
        tables = self.manager.feed.current.tables
        return {number: table.chains for number, table in tables.items()}


def client_of(request: Request) -> int:
    """Who asks: the number that the client drew."""
    client = request.header.client_id
    if not client:
        raise Fs3Error(Code.INVALID, "client_id 0 is not allowed: each client draws its own")
    return client


def credentials_of(request: Request) -> Credentials:
    """For whom."""
    if not request.header.HasField("who"):
        raise Fs3Error(Code.INVALID, "a request without credentials: say for whom it is (who)")
    return wire.decode_credentials(request.header.who)


def handle_of(request: Request, session: int) -> Handle | None:
    """One of the client's open files; None for session 0."""
    return Handle(client_of(request), session) if session else None


def wished_layout(message: common_pb2.Layout) -> Layout:
    """A layout with fields unset; the namespace checks it when it has filled them in."""
    return Layout(message.chunk_bytes, message.stripe, message.chain_table)


def inode_reply(inode: Inode) -> pb.InodeReply:
    """An inode as most methods answer it."""
    return pb.InodeReply(inode=wire.encode_inode(inode))


def attributes_reply(found: Sequence[Inode | None]) -> pb.GetAttributesReply:
    """In the order given; an inode that is gone has number 0."""
    return pb.GetAttributesReply(
        inodes=[
            common_pb2.Inode() if inode is None else wire.encode_inode(inode) for inode in found
        ]
    )
