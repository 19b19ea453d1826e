"""The gRPC binding of fs3/rpc.py: the public contract, for any language.

The same handler table is served as on the frame port. A failure travels as the gRPC status of its
row in the error table; that is lossy, so its number goes along in trailing metadata (``fs3-code``),
and the detail as the status message. grpc.health.v1 and server reflection are served beside it.

A :class:`GrpcChannel` does not survive a fork: a child makes its own. (A FrameChannel does.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from fs3.errors import TABLE, Code, Fs3Error, code_of
from fs3.frames import HEAD_BYTES_MAX
from fs3.rpc import Handlers, Method

CODE_KEY = "fs3-code"
MESSAGE_BYTES_MAX = HEAD_BYTES_MAX
STREAMS_MAX = 256  # each holds a thread of the server for as long as it lasts

_DETAIL_CHARACTERS_MAX = 2000  # metadata is limited to 8 KiB, and what is not ASCII takes 3 bytes
_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_LIMITS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A quiet stream must notice that the other host is gone.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_CHANNEL_OPTIONS = [
    *_LIMITS,
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would inherit an old one's back-off
]
_SERVER_OPTIONS = [
    *_LIMITS,
    ("grpc.so_reuseport", 0),  # or a second daemon would silently share the port
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]

# What gRPC itself says when no handler has spoken.
_WITHOUT_CODE = {
    grpc.StatusCode.CANCELLED: Code.MAYBE_APPLIED,  # by a server that stops, or by close()
    grpc.StatusCode.UNIMPLEMENTED: Code.UNSUPPORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.BUSY,
    grpc.StatusCode.UNAUTHENTICATED: Code.PERMISSION,
    grpc.StatusCode.PERMISSION_DENIED: Code.PERMISSION,
    grpc.StatusCode.UNAVAILABLE: Code.MAYBE_APPLIED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.MAYBE_APPLIED,
    grpc.StatusCode.INTERNAL: Code.PROTOCOL,
}


def serve_grpc(
    handlers: Handlers,
    address: str,
    *,
    reflection: bool = True,
    max_workers: int = 8,
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.Server, int]:
    """A started server and the port it was bound to. Fs3Error INVALID if it cannot listen."""
    executor = ThreadPoolExecutor(max_workers + STREAMS_MAX, thread_name_prefix="grpc")
    server = grpc.server(
        executor,
        handlers=_generic_handlers(handlers),
        options=_SERVER_OPTIONS,
        maximum_concurrent_rpcs=max_workers * 64 + STREAMS_MAX,
    )
    names = [service.full_name for service in handlers.services]
    _add_health(server, names)
    if reflection:
        names += [health.SERVICE_NAME, grpc_reflection.SERVICE_NAME]
        grpc_reflection.enable_server_reflection(names, server)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        executor.shutdown()
        raise Fs3Error(Code.INVALID, f"cannot listen on {address}: {error}") from error
    server.start()
    return server, port


def _add_health(server: grpc.Server, names: Sequence[str]) -> None:
    servicer = health.HealthServicer()
    for name in ("", *names):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def _generic_handlers(handlers: Handlers) -> list[grpc.GenericRpcHandler[Any, Any]]:
    streams = threading.BoundedSemaphore(STREAMS_MAX)
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method in handlers.methods.values():
        # No (de)serializers: the handler table decodes, on every binding alike.
        if method.streaming:
            served = grpc.unary_stream_rpc_method_handler(
                _streamer(handlers, method.number, streams)
            )
        else:
            served = grpc.unary_unary_rpc_method_handler(_caller(handlers, method.number))
        services.setdefault(method.service, {})[method.name] = served
    return [grpc.method_handlers_generic_handler(name, table) for name, table in services.items()]


def _caller(handlers: Handlers, number: int) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def call(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return handlers.dispatch(number, data)
        except Fs3Error as error:
            _abort(context, error)

    return call


def _streamer(
    handlers: Handlers, number: int, streams: threading.BoundedSemaphore
) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    def stream(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        if not streams.acquire(blocking=False):
            _abort(context, Fs3Error(Code.BUSY, f"{STREAMS_MAX} streams are open; no more allowed"))
        try:
            yield from handlers.stream(number, data, context)
        except Fs3Error as error:
            _abort(context, error)
        finally:
            streams.release()

    return stream


def _abort(context: grpc.ServicerContext, error: Fs3Error) -> NoReturn:
    context.set_trailing_metadata(((CODE_KEY, str(int(error.code))),))
    detail = error.detail[:_DETAIL_CHARACTERS_MAX].encode(errors="replace").decode()
    context.abort(_STATUS[TABLE[error.code].grpc_status], detail)
    raise AssertionError("abort raises")


class GrpcChannel:
    """The same interface as fs3.rpc.FrameChannel, and streams. Any thread may call.

    The addresses are equal peers: the one that answered last is tried first, after one that did not
    answer the next.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        cluster_id: str,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if not addresses:
            raise Fs3Error(Code.INVALID, "no address to call; at least one host:port is needed")
        self.cluster_id = cluster_id
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._preferred = 0
        self._lock = threading.Lock()  # guards _channels and _closed
        self._channels: dict[str, grpc.Channel] = {}
        self._closed = False

    def call(self, method: Method, request: Message, timeout_s: float) -> Message:
        """See fs3.rpc.Channel."""
        data = _serialize(method, request)
        reply: bytes = self._somewhere(
            lambda channel: channel.unary_unary(_path(method), _same, _same)(
                data, timeout=timeout_s
            )
        )
        return _parse(method, reply)

    def stream(self, method: Method, request: Message) -> Iterator[Message]:
        """See fs3.rpc.StreamingChannel."""
        data = _serialize(method, request)
        call, first = self._somewhere(
            lambda channel: _begin_stream(channel.unary_stream(_path(method), _same, _same)(data))
        )
        try:
            while first is not None:
                yield _parse(method, first)
                first = next(call, None)
        except grpc.RpcError as error:
            raise _error_of(error, "stream") from error
        finally:
            call.cancel()

    def close(self) -> None:
        """See fs3.rpc.Channel."""
        with self._lock:
            self._closed = True
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def _somewhere(self, ask: Callable[[grpc.Channel], Any]) -> Any:  # noqa: ANN401
        """What ``ask`` returns with the first address that can be reached."""
        reasons = []
        for turn in range(len(self._addresses)):
            index = (self._preferred + turn) % len(self._addresses)
            address = self._addresses[index]
            channel = self._channel(address)
            try:
                answer = ask(channel)
            except ValueError as failure:
                raise Fs3Error(Code.CANCELLED, f"the channel to {address} is closed") from failure
            except grpc.RpcError as failure:
                error = _error_of(failure, address)
                if error.code is not Code.UNREACHABLE or _has_code(failure):
                    self._preferred = index + (error.code is Code.MAYBE_APPLIED)  # may be stuck
                    raise error from failure
                reasons.append(error.detail)
                self._drop(address, channel)
                continue
            self._preferred = index
            return answer
        raise Fs3Error(Code.UNREACHABLE, "; ".join(reasons))

    def _channel(self, address: str) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise Fs3Error(Code.CANCELLED, f"the channel to {address} is closed")
            channel = self._channels.get(address)
            if channel is None:
                if self._credentials is None:
                    channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
                else:
                    channel = grpc.secure_channel(
                        address, self._credentials, options=_CHANNEL_OPTIONS
                    )
                self._channels[address] = channel
            return channel

    def _drop(self, address: str, channel: grpc.Channel) -> None:
        """A channel that failed to connect would refuse calls until its back-off is over."""
        with self._lock:
            if self._channels.get(address) is channel:
                del self._channels[address]


def _same(data: bytes) -> bytes:
    """Messages are (de)serialized outside gRPC, so that what fails there is told apart."""
    return data


def _path(method: Method) -> str:
    return f"/{method.service}/{method.name}"


def _serialize(method: Method, request: Message) -> bytes:
    data = request.SerializeToString()
    if len(data) > MESSAGE_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE,
            f"{method.name} request of {len(data)} bytes; {MESSAGE_BYTES_MAX} are allowed",
        )
    return data


def _parse(method: Method, reply: bytes) -> Message:
    try:
        return method.reply.FromString(reply)
    except DecodeError as error:
        raise Fs3Error(
            Code.PROTOCOL, f"{method.name}: {len(reply)} bytes that are no reply to it"
        ) from error


def _begin_stream(call: Any) -> tuple[Any, bytes | None]:  # noqa: ANN401 - grpc has no name for it
    """Wait for the first reply, so that an address that cannot be reached shows."""
    return call, next(call, None)


def _has_code(failure: Any) -> bool:  # noqa: ANN401 - an RpcError that is a Call, untyped
    return any(key == CODE_KEY for key, _ in failure.trailing_metadata() or ())


def _error_of(failure: Any, address: str) -> Fs3Error:  # noqa: ANN401 - as above
    detail = failure.details() or ""
    for key, value in failure.trailing_metadata() or ():
        if key == CODE_KEY and str(value).isdigit():
            return Fs3Error(code_of(int(value)) or Code.BUG, detail)
    status = failure.code()
    code = _WITHOUT_CODE.get(status, Code.BUG)
    if status is grpc.StatusCode.UNAVAILABLE and detail.startswith("failed to connect"):
        # gRPC says only in words that nothing was sent. In other words it counts as maybe applied.
        code = Code.UNREACHABLE
    elif status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in detail:
        code = Code.TOO_LARGE
    return Fs3Error(code, f"{address}: {status.name}: {detail}")
