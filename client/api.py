"""The public face of the native client: :func:`connect`, :class:`Client`, :class:`File`.

    import fs3
    with fs3.connect("127.0.0.1:7000") as client:
        client.makedirs("/data", exist_ok=True)
        client.write("/data/tokens.bin", tokens)
        with client.open("/data/tokens.bin", "rb") as file:
            file.readinto(buffer)
        parts = client.read_batch([("/data/tokens.bin", offset, 4096) for offset in offsets])

Sizes and offsets are bytes. Failures are ``fs3.Fs3Error``, an OSError with its usual subclasses.
A client may be used by many threads and survives ``fork()``; files are close-to-open: what was
written before ``close``, ``flush`` or ``fsync`` returned is seen by every later ``open`` anywhere.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path as LocalPath
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from fs3.core.request import Limits
from fs3.errors import Code, Fs3Error
from fs3.rpc import Channel, FrameChannel
from fs3.types import Credentials, FileKind

from .batch import ReadRequest, WriteRequest, read_batch, write_batch
from .context import ClientContext, Handle
from .file import File, OpenMode, buffered
from .metadata import RETRY_S
from .paths import DirEntry, Path, PathOperations, plain
from .pipeline import Pipeline

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Client", "DirEntry", "File", "connect"]

CLUSTER_ID_DEFAULT = "default"
_CONNECT_PAUSE_S = 0.1
_TRY_GRPC = frozenset((Code.UNREACHABLE, Code.MAYBE_APPLIED, Code.PROTOCOL))


def connect(
    address: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    cluster_id: str | None = None,
    credentials: Credentials | None = None,
    timeout_s: float = 30.0,
    metadata_timeout_s: float = RETRY_S,
    connect_timeout_s: float = 5.0,
) -> Client:
    """A client of the cluster at ``address``.

    ``address`` is ``host:port`` of a metaserver's frame port, several of them, or the directory of
    a local cluster made by ``fs3 up``; by default what the environment says in ``FS3_ADDRESS``.
    ``cluster_id`` is by default that of the local cluster's directory, or ``FS3_CLUSTER_ID``, or
    "default"; a wrong one is refused by name. ``credentials`` say on whose behalf (default: this
    process). ``timeout_s``: how long a read or write waits for storageservers that are away, and
    ``metadata_timeout_s`` the same for metaservers; ``connect_timeout_s``: for the first answer.

    A metaserver that does not speak frames at that address is called over gRPC, which is slower,
    and not to be used in forked children. Raises Fs3Error: UNREACHABLE, WRONG_CLUSTER and others.
    """
    place = _locate(address)
    name = cluster_id or place.cluster_id or os.environ.get("FS3_CLUSTER_ID") or CLUSTER_ID_DEFAULT
    limits = Limits(deadline_ms=int(timeout_s * 1000))

    def context(channel: Channel, pipeline: Pipeline | None) -> ClientContext:
        return ClientContext(
            channel,
            name,
            credentials,
            limits=limits,
            retry_s=metadata_timeout_s,
            pipeline=pipeline,
            addresses=place.addresses,
        )

    frames = context(FrameChannel(place.addresses, name), Pipeline(place.addresses, name))
    deadline_s = time.monotonic() + connect_timeout_s
    while True:
        try:
            frames.routing.get()
            return Client(frames)
        except Fs3Error as error:
            if error.code not in _TRY_GRPC:
                raise
            failure = error
        try:
            grpc = context(_grpc_channel(place.grpc_addresses, name), None)
            grpc.routing.get()
            return Client(grpc)
        except Fs3Error:
            grpc.close()
            if time.monotonic() >= deadline_s or failure.code is Code.PROTOCOL:
                raise failure from None  # what was tried first says more
        time.sleep(_CONNECT_PAUSE_S)


def _grpc_channel(addresses: Sequence[str], cluster_id: str) -> Channel:
    from fs3.rpc_grpc import GrpcChannel  # grpc is slow to import and seldom needed

    return GrpcChannel(addresses, cluster_id)


class _Place(NamedTuple):
    """Where metaservers are, and the cluster's name if it is known."""

    addresses: list[str]
    grpc_addresses: list[str]
    cluster_id: str | None


def _locate(address: str | os.PathLike[str] | Sequence[str] | None) -> _Place:
    if address is None:
        address = os.environ.get("FS3_ADDRESS", "")
    if not isinstance(address, str | os.PathLike):
        return _Place(list(address), list(address), None)
    text = os.fspath(address)
    if not text:
        raise Fs3Error(Code.INVALID, "no address: give one, or set FS3_ADDRESS")
    description = LocalPath(text) / "cluster.json"
    if "/" not in text and ":" in text and not description.exists():
        addresses = [part.strip() for part in text.split(",")]
        return _Place(addresses, addresses, None)
    try:
        cluster = json.loads(description.read_text())
        frames, grpc = cluster["metaserver_frame_address"], cluster["metaserver_grpc_address"]
        return _Place([frames], [grpc], cluster["cluster_id"])
    except FileNotFoundError as error:
        raise Fs3Error(
            Code.INVALID,
            f"address {text!r} is neither host:port nor the directory of a local cluster"
            f" ({description} does not exist)",
        ) from error
    except (KeyError, ValueError) as error:
        raise Fs3Error(Code.INVALID, f"{description}: {error!r}") from error


class Client(PathOperations):
    """A connection to one cluster. Also a context manager; :meth:`close` it when done."""

    def __init__(self, context: ClientContext) -> None:
        """For :func:`connect`."""
        self._context = context

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is left in files that are still open, and disconnect; idempotent."""
        self._context.close()

    @property
    def context(self) -> ClientContext:
        """For parts of fs3 that build on a client, such as the mount."""
        return self._context

    @property
    def cluster_id(self) -> str:
        """The name of the cluster."""
        return self._context.cluster_id

    # -- files -----------------------------------------------------------------------------------

    def open(
        self,
        path: Path,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        permissions: int = 0o644,
    ) -> IO[Any]:
        """Open a file like the builtin ``open``; with ``buffering=0`` it is a raw :class:`File`.

        ``permissions`` are those of a file that is made; no umask is applied. Text is UTF-8 unless
        ``encoding`` says otherwise.
        """
        parsed = OpenMode(mode)
        text = plain(path)
        raw = File(self._context, self._open(text, parsed, permissions), text, parsed)
        try:
            if not parsed.binary and encoding is None:
                encoding = "utf-8"
            opened: Any = buffered(raw, parsed, buffering, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise
        if parsed.append and opened is not raw:
            opened.seek(0, io.SEEK_END)
        return opened  # type: ignore[no-any-return]  # io's classes are not declared as IO[Any]

    def open_file(self, path: Path, mode: str = "rb", *, permissions: int = 0o644) -> File:
        """The raw file, for pread, pwrite, readinto_at and batches."""
        parsed = OpenMode(mode if "b" in mode else mode + "b")
        text = plain(path)
        return File(self._context, self._open(text, parsed, permissions), text, parsed)

    def _open(self, path: str, mode: OpenMode, permissions: int) -> Handle:
        metadata = self._context.metadata
        session = self._context.new_session()
        truncate = mode.kind == "w"
        if mode.kind == "r":
            inode = self._find(path)
        else:
            parent, name, found = self._place(path, follow=mode.kind != "x")
            if found is None or mode.kind == "x":
                inode, _ = metadata.create(
                    parent,
                    name,
                    permissions,
                    exclusive=mode.kind == "x",
                    truncate=truncate,
                    read=mode.read,
                    write=True,
                    session=session,
                )
                return self._context.hold(inode, session, writer=True)
            inode = found
        if inode.kind is FileKind.DIRECTORY:
            raise Fs3Error(Code.IS_DIRECTORY, f"{path}: is a directory")
        opened = self._context.files.find(inode.inode)
        if truncate and opened is not None:
            opened.settle()  # what was gathered for it must not follow
        inode = metadata.open(
            inode.inode, read=mode.read, write=mode.write, truncate=truncate, session=session
        )
        return self._context.hold(inode, session, writer=mode.write)

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        with self.open_file(path) as file:
            return file.readall()

    def write(self, path: Path, data: ReadableBuffer, *, permissions: int = 0o644) -> int:
        """Make ``data`` the whole content of a file; returns its length."""
        with self.open_file(path, "wb", permissions=permissions) as file:
            return file.write(data)

    # -- batches ---------------------------------------------------------------------------------

    def read_batch(self, requests: Iterable[ReadRequest]) -> list[memoryview]:
        """Read many ranges of many files at once: ``(path or File, offset, length or buffer)``.

        Returns one view per request, in order: of fresh memory for a length, of the buffer for a
        buffer; shorter than asked only at the end of its file. All pieces of all files that one
        storageserver holds travel in a few requests. Raises the first failure.
        """
        return read_batch(self._context, requests)

    def write_batch(self, requests: Iterable[WriteRequest], *, sync: bool = False) -> None:
        """Write many ranges of many files at once: ``(path or File, offset, data)``.

        Files must exist. When it returns the data is at the storageservers and visible to all;
        with ``sync`` on stable storage. Ranges of one batch must not overlap.
        """
        write_batch(self._context, requests, sync=sync)
