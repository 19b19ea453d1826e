"""The port for clients of the same machine: a unix socket on which reads are answered with places.

A LOCATE passes the same checks as a READ_BATCH (dataserver.py, target.py). What is clean is
answered with where it lies, under a grant (fs3/core/grants.py) that holds the stores' readers, so
that no block is reused; what is not is read here, as for everybody, and sent along. The data files'
descriptors are opened anew for each connection, read-only, when it first needs them.

Who gets descriptors can read everything in the files they stand for. So a peer must be root, or of
the user that runs this process, or of one that the settings name.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence

from fs3 import dataplane
from fs3.buffers import BufferPool
from fs3.clock import Clock, boot_clock_id
from fs3.core.grants import Grants
from fs3.core.types import TargetId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import Reactor
from fs3.transport.address import UNIX, peer_credentials
from fs3.transport.local import RIGHTS_MAX
from fs3.transport.tcp import Caller, Connection, FrameServer, Limits, Request

from .chunkstore.interface import LocatingStore
from .dataserver import DataServer
from .jobs import BufferOwner, Located, LocateJob, Payload
from .reads import Files
from .settings import LocalSettings
from .target import Target
from .windows import Windows

_CLASSES = 32  # more than there are size classes: a file's number is target's place * this + class
_STAMPS = _CLASSES - 1  # in the place of a class: the target's stamps
_log = get_logger(__name__)

_PREFIX = struct.Struct("<QII")  # dataplane.LOCATE_PREFIX
_START = struct.Struct("<QIIQII")  # dataplane.LOCATE_REPLY
Hold = tuple[LocatingStore, int]


class LocalPort:
    """Listens from construction on. Reactor thread only."""

    def __init__(
        self,
        reactor: Reactor,
        cluster_id: str,
        settings: LocalSettings,
        data: DataServer,
        targets: Mapping[TargetId, Target],
        *,
        pool: BufferPool,
        clock: Clock,
        connections_max: int,
    ) -> None:
        self._uids = {0, os.geteuid(), *settings.uids}
        self._data = data
        self._targets = [targets[target] for target in sorted(targets)]
        self._stores = {
            target.target: target.store if isinstance(target.store, LocatingStore) else None
            for target in self._targets
        }
        self._place = {target.target: place for place, target in enumerate(self._targets)}
        self._pool = pool
        self._clock = clock
        self._clock_id = boot_clock_id()
        self._grants: Grants[Hold] = Grants(settings.lease_ms)
        self._passed: dict[Connection, set[int]] = {}  # numbers of the files that it has
        self._server = FrameServer(
            reactor,
            cluster_id,
            address=settings.listen or f"{UNIX}@fs3-{secrets.token_hex(16)}",
            limits=Limits(connections=connections_max),
            pool=pool,
            admit=self._refusal,
        )
        data.serve(self._server)
        self._windows = Windows(self._server, data.on_write)
        self._server.take([dataplane.LOCATE], data.guarded(self._on_locate))

    @property
    def address(self) -> str:
        """Where it listens: unix:..."""
        return self._server.address

    @property
    def granted(self) -> int:
        """Grants that stand."""
        return len(self._grants)

    def tick(self) -> None:
        """Every few tens of milliseconds."""
        self._let_go(self._grants.expire(self._clock.monotonic_ms()))

    def close(self) -> None:
        """Before the targets are closed."""
        self._server.close()

    def _refusal(self, accepted: socket.socket) -> Fs3Error | None:
        peer = peer_credentials(accepted)
        if peer.uid in self._uids:
            return None
        allowed = ", ".join(map(str, sorted(self._uids)))
        return Fs3Error(
            Code.ACCESS, f"uid {peer.uid} may not read data files; local.uids allows {allowed}"
        )

    def _on_closed(self, connection: Connection) -> None:
        self._passed.pop(connection, None)
        self._let_go(self._grants.drop(connection))

    @staticmethod
    def _let_go(holds: Iterable[Hold]) -> None:
        for store, token in holds:
            store.let_go(token)

    # -- requests --------------------------------------------------------------------------------

    def _on_locate(self, connection: Caller, request: Request, body: BufferOwner | None) -> None:
        if body is not None:
            raise Fs3Error(Code.PROTOCOL, "a LOCATE has no body")
        assert isinstance(connection, Connection), "taken from the unix socket's server only"
        if connection not in self._passed:
            self._passed[connection] = set()
            connection.closers.append(lambda: self._on_closed(connection))
        released, wanted, items = _decode(request.head)
        self._let_go(self._grants.release(connection, released))
        holds: list[Hold] = []
        grant = 0
        if self._grants.room(connection):
            grant = self._grants.give(connection, holds, self._clock.monotonic_ms())

        def reply(located: Located, payloads: Sequence[Payload]) -> None:
            self._reply(connection, request, grant, located, payloads)

        job = LocateJob(items, wanted, self._pool, reply)
        self._data.locate(
            job, lambda target, indexes: self._locate(job, target, indexes, holds, grant)
        )

    def _locate(
        self, job: LocateJob, target: Target, indexes: list[int], holds: list[Hold], grant: int
    ) -> None:
        store = self._stores[target.target]
        if not grant or store is None or store.failed is not None:
            target.reads.read(job, indexes)
            return
        holds.append((store, store.hold()))
        first = self._place[target.target] * _CLASSES
        target.reads.locate(job, indexes, store, Files(first, first + _STAMPS))

    def _reply(
        self,
        connection: Connection,
        request: Request,
        grant: int,
        located: Located,
        payloads: Sequence[Payload],
    ) -> None:
        """Places and bytes, and the descriptors that the peer needs for them and does not have."""
        if connection.closed:
            return
        passed = self._passed[connection]
        new = sorted(located.files - passed)
        try:
            rights = self._open(new)
        except OSError as error:
            _log.warning("local_reads_given_up", peer=connection.peer, reason=str(error))
            connection.close()  # the client goes on over TCP
            return
        passed.update(new)
        _, places, crcs, results = located
        count = len(places) // dataplane.CHUNK_PLACE.itemsize
        lease_ms, crc_count = self._grants.lease_ms, len(crcs) // 4
        start = _START.pack(grant, lease_ms, len(new), self._clock_id, count, crc_count)
        numbers = struct.pack(f"<{len(new)}I", *new)
        keep = list(payloads)  # held until they are sent

        def on_sent() -> None:
            keep.clear()
            for descriptor in rights:
                os.close(descriptor)

        connection.reply(
            request.request_id,
            request.method,
            b"".join((start, numbers, places, crcs, results)),
            [payload.view for payload in keep],
            on_sent,
            rights=rights,
        )

    def _open(self, numbers: Sequence[int]) -> list[int]:
        """New descriptors, of which nothing but reading is possible."""
        opened: list[int] = []
        if len(numbers) > RIGHTS_MAX:
            raise OSError(f"{len(numbers)} files at once; {RIGHTS_MAX} can be passed")
        try:
            for number in numbers:
                place, size_class = divmod(number, _CLASSES)
                store = self._stores[self._targets[place].target]
                assert store is not None, "nothing was located in it"
                shown = size_class == _STAMPS
                passed = store.stamps.descriptor if shown else store.data_file(size_class)
                path = f"/proc/self/fd/{passed}"
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened


def _decode(head: bytes) -> tuple[int, Sequence[int], list[dataplane.ReadItem]]:
    """A LOCATE: what is released, which items' chunks are wanted, the items. Fs3Error PROTOCOL."""
    start = _PREFIX.size
    if len(head) < start:
        raise Fs3Error(
            Code.PROTOCOL, f"a LOCATE's head of {len(head)} bytes; {start} are the least"
        )
    released, count, _ = _PREFIX.unpack_from(head)
    items_at = start + 4 * count
    if count > dataplane.BATCH_ITEMS_MAX or len(head) < items_at:
        raise Fs3Error(Code.PROTOCOL, f"a LOCATE's head of {len(head)} bytes wants {count} places")
    wanted = struct.unpack_from(f"<{count}I", head, start)
    return released, wanted, dataplane.decode_read_items(head[items_at:])
