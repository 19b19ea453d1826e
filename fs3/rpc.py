"""Control calls: one table of handlers, one way to call them, any binding.

A service is defined once, in proto/. Its handlers are plain functions of a request message. Two
bindings serve the same table: gRPC (:mod:`fs3.rpc_grpc`, the public contract) and protobuf in a
frame on the data port (:mod:`fs3.transport.tcp`), which costs a fraction of it. A :class:`Stub`
calls either through a :class:`Channel`; :class:`FrameChannel` is the frame binding's. This module
does not import grpc.

Every request's first field is its header. :class:`Handlers` refuses a wrong cluster or protocol
before a handler sees the request; :class:`Stub` fills the header in.

Failures are Fs3Error on both ends. What a channel adds: UNREACHABLE, nothing was sent and the call
may be repeated anywhere; MAYBE_APPLIED, the answer was lost or late: repeat it with the same id.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from fs3 import frames
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.proto import common_pb2
from fs3.transport.blocking import BlockingConnection, NotSent
from fs3.types import Credentials

CALL_TIMEOUT_S = 10.0
_ID_MASK = (1 << 64) - 1
_log = get_logger(__name__)


class Method(NamedTuple):
    """One method of a service, as proto/ declares it."""

    service: str  # full name, "fs3.Metadata"
    name: str  # "SetAttributes"
    number: int  # its name on the frame binding
    inline: bool  # the handler never blocks: an event loop may run it
    streaming: bool  # many replies; gRPC only
    request: type[Message]
    reply: type[Message]

    @property
    def python_name(self) -> str:
        """``set_attributes`` for SetAttributes: of the handler, and of the stub's attribute."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower()


def methods(service: ServiceDescriptor) -> tuple[Method, ...]:
    """The methods of ``service``, in the order of its declaration."""
    found = []
    for method in service.methods:
        options: Any = method.GetOptions().Extensions  # its stub does not know our extensions
        found.append(
            Method(
                service=service.full_name,
                name=method.name,
                number=options[common_pb2.number],
                inline=options[common_pb2.inline],
                streaming=method.server_streaming,
                request=GetMessageClass(method.input_type),
                reply=GetMessageClass(method.output_type),
            )
        )
    return tuple(found)


class StreamContext(Protocol):
    """What a streaming handler may ask about its caller (grpc.ServicerContext has it)."""

    def is_active(self) -> bool:
        """False once the caller is gone."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call when the caller goes; False if it has gone already."""


class Handlers:
    """The methods that one process serves. Filled at start, read by every binding's threads."""

    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self.services: list[ServiceDescriptor] = []
        self._table: dict[int, tuple[Method, Callable[..., Any]]] = {}

    def add(self, service: ServiceDescriptor, implementation: object) -> None:
        """Serve every method of ``service`` by the method of ``implementation`` named like it.

        TypeError if one is missing, ValueError if a number is 0 or taken: faults of the program.
        """
        added: dict[int, tuple[Method, Callable[..., Any]]] = {}
        for method in methods(service):
            function = getattr(implementation, method.python_name, None)
            if not callable(function):
                raise TypeError(
                    f"{type(implementation).__name__} has no method {method.python_name},"
                    f" which {service.full_name} declares"
                )
            if not method.number or method.number in self._table or method.number in added:
                raise ValueError(f"{service.full_name}.{method.name}: number {method.number}")
            added[method.number] = method, function
        self._table |= added
        self.services.append(service)

    @property
    def methods(self) -> Mapping[int, Method]:
        """What is served, by number."""
        return {number: method for number, (method, _) in self._table.items()}

    def is_inline(self, number: int) -> bool:
        """True if an event loop may run it; an unknown number is refused at once, so it may."""
        entry = self._table.get(number)
        return entry is None or entry[0].inline

    def dispatch(self, number: int, request_bytes: frames.Buffer) -> bytes:
        """Decode, check, call, encode. Raises nothing but Fs3Error."""
        method, function, request = self._accept(number, request_bytes)
        if method.streaming:
            raise Fs3Error(
                Code.UNSUPPORTED, f"{method.service}.{method.name} streams; ask for it over gRPC"
            )
        try:
            reply: Message = function(request)
            return reply.SerializeToString()
        except Fs3Error:
            raise
        except Exception as error:  # noqa: BLE001 - the one place where a bug becomes an answer
            _raise_bug(method, error)

    def stream(
        self, number: int, request_bytes: frames.Buffer, context: StreamContext
    ) -> Iterator[bytes]:
        """The same for a streaming method, which also gets its caller's context."""
        method, function, request = self._accept(number, request_bytes)
        try:
            for reply in function(request, context):
                yield reply.SerializeToString()
        except Fs3Error:
            raise
        except Exception as error:  # noqa: BLE001 - the one place where a bug becomes an answer
            _raise_bug(method, error)

    def _accept(
        self, number: int, request_bytes: frames.Buffer
    ) -> tuple[Method, Callable[..., Any], Message]:
        entry = self._table.get(number)
        if entry is None:
            raise Fs3Error(Code.UNSUPPORTED, f"method {number:#06x} is not served here")
        method, function = entry
        try:
            request = method.request.FromString(bytes(request_bytes))
        except DecodeError as error:
            raise Fs3Error(
                Code.PROTOCOL,
                f"{method.service}.{method.name}: {len(request_bytes)} bytes that are no"
                f" {method.request.DESCRIPTOR.name}",
            ) from error
        self._check_header(request.header)  # type: ignore[attr-defined]  # every request has one
        return method, function, request

    def _check_header(self, header: common_pb2.RequestHeader) -> None:
        if header.cluster_id != self.cluster_id:
            raise Fs3Error(
                Code.WRONG_CLUSTER,
                f"request is for cluster {header.cluster_id!r}; this is {self.cluster_id!r}",
            )
        if header.protocol_version != frames.PROTOCOL_VERSION:
            raise Fs3Error(
                Code.PROTOCOL,
                f"request is of protocol version {header.protocol_version};"
                f" this is version {frames.PROTOCOL_VERSION}",
            )


def _raise_bug(method: Method, error: Exception) -> NoReturn:
    name = f"{method.service}.{method.name}"
    _log.error("handler_failed", method=name, exc_info=error)
    raise Fs3Error(Code.BUG, f"{name}: {type(error).__name__}: {error}") from error


class Channel(Protocol):
    """A way to one peer, or to one of several equal ones. Any thread may call."""

    def call(self, method: Method, request: Message, timeout_s: float) -> Message:
        """Raises what the handler raised, or UNREACHABLE or MAYBE_APPLIED."""

    def close(self) -> None:
        """Idempotent; calls in progress fail."""


class StreamingChannel(Channel, Protocol):
    """A channel that streaming methods work over as well."""

    def stream(self, method: Method, request: Message) -> Iterator[Message]:
        """The replies, as they come. Closing the iterator ends the call."""


class RequestIds:
    """Ids that no other process of this client draws: from a random start, anew after a fork."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._numbers = itertools.count(secrets.randbits(63))

    def __next__(self) -> int:
        if os.getpid() != self._pid:
            self._start()
        return next(self._numbers) & _ID_MASK


class Stub:
    """Calls one service: ``stub.lookup(LookupRequest(parent=1, name=b"x")) -> InodeReply``.

    Every method takes ``(request, *, who=None, request_id=None, timeout_s=None)`` and fills in
    ``request.header``; a repeated call says the ``request_id`` of the first. A streaming method
    returns an iterator, and its channel must be a :class:`StreamingChannel`.
    """

    def __init__(
        self,
        channel: Channel,
        service: ServiceDescriptor,
        cluster_id: str,
        client_id: int,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._channel = channel
        self._cluster_id = cluster_id
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._request_ids = RequestIds()
        for method in methods(service):
            setattr(self, method.python_name, self._caller(method))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def next_request_id(self) -> int:
        """An id to pass as ``request_id``, for a call that may have to be repeated."""
        return next(self._request_ids)

    def _caller(self, method: Method) -> Callable[..., Any]:
        def call(
            request: Message,
            *,
            who: Credentials | None = None,
            request_id: int | None = None,
            timeout_s: float | None = None,
        ) -> Message | Iterator[Message]:
            self.fill_header(request, who, request_id)
            if method.streaming:
                return self._stream(method, request)
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            return self._channel.call(method, request, timeout_s)

        call.__name__ = method.python_name
        return call

    def _stream(self, method: Method, request: Message) -> Iterator[Message]:
        stream = getattr(self._channel, "stream", None)
        if stream is None:
            raise Fs3Error(
                Code.UNSUPPORTED, f"{method.service}.{method.name} streams; use a gRPC channel"
            )
        replies: Iterator[Message] = stream(method, request)
        return replies

    def fill_header(
        self, request: Message, who: Credentials | None, request_id: int | None = None
    ) -> None:
        """What every method does first; for callers that send the request themselves."""
        header: common_pb2.RequestHeader = request.header  # type: ignore[attr-defined]
        header.cluster_id = self._cluster_id
        header.protocol_version = frames.PROTOCOL_VERSION
        header.client_id = self._client_id
        header.request_id = next(self._request_ids) if request_id is None else request_id
        if who is not None:
            header.who.uid = who.uid
            header.who.gid = who.gid
            header.who.gids[:] = who.gids


class FrameChannel:
    """Control calls over blocking TCP sockets: each calling thread has a connection of its own.

    The addresses are equal peers: the one that answered last is tried first, after one that did not
    answer the next. A connection that
    the peer closed meanwhile is replaced before anything is sent on it. A forked child starts
    without connections; those of its parent stay the parent's.
    """

    def __init__(self, addresses: Sequence[str], cluster_id: str) -> None:
        if not addresses:
            raise Fs3Error(Code.INVALID, "no address to call; at least one host:port is needed")
        self._addresses = tuple(addresses)
        self._cluster_id = cluster_id
        self._preferred = 0
        self._call_ids = itertools.count(1)
        self._closed = False
        self._forget_connections()
        _channels.add(self)

    def _forget_connections(self) -> None:
        self._lock = threading.Lock()  # guards _connections
        self._local = threading.local()
        self._connections: weakref.WeakSet[BlockingConnection] = weakref.WeakSet()

    def call(self, method: Method, request: Message, timeout_s: float) -> Message:
        """See :class:`Channel`."""
        deadline_s = time.monotonic() + timeout_s
        head = request.SerializeToString()
        if len(head) > frames.HEAD_BYTES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE,
                f"{method.name} request of {len(head)} bytes; {frames.HEAD_BYTES_MAX} are allowed",
            )
        reply = self._exchange(method.number, head, deadline_s)
        try:
            return method.reply.FromString(reply)
        except DecodeError as error:
            raise Fs3Error(
                Code.PROTOCOL, f"{method.name}: {len(reply)} bytes that are no reply to it"
            ) from error

    def _exchange(self, number: int, head: bytes, deadline_s: float) -> bytes:
        """One round trip with the first address that takes the request."""
        reasons = []
        for turn in range(len(self._addresses)):
            index = (self._preferred + turn) % len(self._addresses)
            now_s = time.monotonic()
            # One that swallows packets must leave time for the others.
            share_s = (deadline_s - now_s) / (len(self._addresses) - turn)
            try:
                connection = self._connection(index, now_s + share_s)
                reply = connection.round_trip(
                    number, self._cluster_id, next(self._call_ids), head, deadline_s
                )
            except NotSent as reason:
                reasons.append(str(reason))
                continue
            except Fs3Error as error:
                self._preferred = index + (error.code is Code.MAYBE_APPLIED)  # it may be stuck
                raise
            self._preferred = index
            return reply
        raise Fs3Error(Code.UNREACHABLE, "; ".join(reasons))

    def _connection(self, index: int, deadline_s: float) -> BlockingConnection:
        address = self._addresses[index]
        if self._closed:
            raise Fs3Error(Code.CANCELLED, f"the channel to {address} is closed")
        mine: BlockingConnection | None = getattr(self._local, "connection", None)
        if mine is not None and mine.busy:  # the collector calls in the middle of another call
            return BlockingConnection(address, deadline_s)
        if mine is not None:
            if mine.address == address and not mine.closed and not mine.is_stale():
                return mine
            mine.close()
        made = BlockingConnection(address, deadline_s)
        self._local.connection = made
        with self._lock:
            self._connections.add(made)
        return made

    def close(self) -> None:
        """See :class:`Channel`."""
        self._closed = True
        with self._lock:
            for connection in self._connections:
                connection.interrupt()
        self._local = threading.local()  # each connection closes when its last user lets it go


_channels: weakref.WeakSet[FrameChannel] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The parent's connections would mix both processes' frames, and its lock may be held for ever.
    for channel in list(_channels):
        channel._forget_connections()


os.register_at_fork(after_in_child=_after_fork_in_child)
