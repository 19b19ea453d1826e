"""What one client of one cluster shares among all its files: stubs, routing, data, upkeep.

Two upkeep threads, started with the first open file, work in the background only: nothing that a
caller waits for passes through them. One keeps the client's sessions alive and ends those of
handles that are closed, many in one call. The other sends gathered writes that have waited long
enough, and tells what a close could not; it may have to wait for storageservers, and must not hold
up the first.

A fork leaves the child with handles that work, under a new client id, without connections and
without what the parent had gathered; sessions opened before the fork remain the parent's.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fs3.core.request import Limits
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.proto import cluster_pb2, metadata_pb2
from fs3.rpc import Channel, Stub
from fs3.types import Credentials, Inode

from .data import DataClient
from .metadata import RETRIED, RETRY_S, Closing, Metadata
from .open_inodes import OpenInode
from .open_table import OpenInodes
from .pipeline import Pipeline
from .routing import RoutingCache

_UPKEEP_S = 0.25
_UPKEEP_MAX_S = 4.0  # between two attempts, after failures
_CLOSINGS_MAX = 256  # in one call; a thread that closes more sends them itself
_EXTEND_AGAIN_S = 5.0  # after a failure
_CLOSE_RETRY_S = 5.0  # to end sessions that end by themselves when they are not extended
_EXIT_RETRY_S = 2.0  # an exiting process does not wait long for a metaserver that is away
_log = get_logger(__name__)


def own_credentials() -> Credentials:
    """Those of this process."""
    return Credentials(uid=os.geteuid(), gid=os.getegid(), gids=tuple(os.getgroups()))


class Handle(NamedTuple):
    """One open file: the shared inode and the session that keeps it from being removed."""

    opened: OpenInode
    session: int
    client: int  # whose session it is: a forked child may use the handle, not end the session
    writer: bool


class ClientContext:
    """Any thread may use it. :meth:`close` ends it."""

    def __init__(
        self,
        channel: Channel,
        cluster_id: str,
        who: Credentials | None = None,
        *,
        limits: Limits | None = None,
        retry_s: float = RETRY_S,
        pipeline: Pipeline | None = None,
        description: str = "",
        addresses: Sequence[str] = (),
    ) -> None:
        """``channel`` leads to the metaserver and belongs to the context from now on.

        ``addresses`` are what to give to ``connect`` to get there.
        """
        self.addresses = tuple(addresses)
        self.cluster_id = cluster_id
        self._channel = channel
        self._description = description or f"{socket.gethostname()} pid {os.getpid()}"
        self.client_id = secrets.randbits(64) or 1
        self.metadata = Metadata(self._metadata_stub(), who or own_credentials(), retry_s, pipeline)
        self.routing = RoutingCache(self._manager_stub())
        self.data = DataClient(self.routing, cluster_id, limits)
        self.files = OpenInodes(self.metadata, self.data)
        self.closed = False
        self._start_over()
        _contexts.add(self)

    def _start_over(self) -> None:
        self._closings: list[Closing] = []  # that need nothing but the metaserver
        self._settlings: list[Closing] = []  # that may wait for storageservers too
        self._lock = threading.RLock()  # guards these and _upkeep; see ChunkBuffers
        self._extend_at_s = 0.0
        self._sessions: dict[int, InodeId] = {}  # that are open, and this client's
        self._upkeep: tuple[threading.Thread, ...] = ()
        self._wake = threading.Event()

    def _metadata_stub(self) -> Stub:
        service = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
        return Stub(self._channel, service, self.cluster_id, self.client_id)

    def _manager_stub(self) -> Stub:
        service = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
        return Stub(self._channel, service, self.cluster_id, self.client_id)

    def after_fork(self) -> None:
        """In the child, before any other thread is there."""
        self.client_id = secrets.randbits(64) or 1
        self.metadata.replace_stub(self._metadata_stub())
        self.routing.reset(self._manager_stub())
        self.data.after_fork()
        self.files.after_fork()
        self._start_over()

    # -- handles ---------------------------------------------------------------------------------

    def new_session(self) -> int:
        """An id for a session that is about to be opened; the upkeep keeps it alive."""
        if self.closed:
            raise Fs3Error(Code.INVALID, "this client is closed; connect again")
        self._start_upkeep()
        return secrets.randbits(64) or 1

    def hold(self, inode: Inode, session: int, *, writer: bool) -> Handle:
        """The handle of a session that the metaserver has opened."""
        self._sessions[session] = inode.inode
        opened = self.files.acquire(inode, session, writer=writer)
        return Handle(opened, session, self.client_id, writer)

    def abandon(self, sessions: Sequence[tuple[InodeId, int]]) -> None:
        """Opening these has failed: nobody knows which of them the metaserver has."""
        with self._lock:
            self._closings += [Closing(inode, session) for inode, session in sessions]

    def drop(self, handle: Handle) -> None:
        """Settle what was written, then end the session soon. Raises what could not be written."""
        if handle.writer and handle.opened.dirty:
            self.drop_many([handle])
            return
        try:
            if handle.writer:
                handle.opened.flush(handle.session)
        finally:
            inode = handle.opened.view().inode
            self.files.release(handle.opened, handle.session)
            if handle.client == self.client_id:
                self._sessions.pop(handle.session, None)
                self._close_later(Closing(inode, handle.session))

    def drop_many(self, handles: Sequence[Handle]) -> None:
        """The same for many writers, in one call; sessions of a forked parent are left alone."""
        own = [handle for handle in handles if handle.client == self.client_id]
        for handle in own:
            self._sessions.pop(handle.session, None)
        untold = [Closing(handle.opened.view().inode, handle.session) for handle in own]
        try:
            untold = closings = [handle.opened.closing(handle.session) for handle in own]
            inodes = self.metadata.close(closings)
            untold = []
            for handle, closing, inode in zip(own, closings, inodes, strict=True):
                handle.opened.closed(closing, inode)
            self._flush_all(handles)
        finally:
            with self._lock:
                self._settlings += untold  # the upkeep will tell it
            for handle in handles:
                self.files.release(handle.opened, handle.session)

    @staticmethod
    def _flush_all(handles: Sequence[Handle]) -> None:
        failure: Fs3Error | None = None
        for handle in handles:
            try:
                handle.opened.flush(handle.session)
            except Fs3Error as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _close_later(self, closing: Closing) -> None:
        with self._lock:
            self._closings.append(closing)
            if len(self._closings) < _CLOSINGS_MAX:
                return
        self._send_closings()

    def _send_closings(self, *, repeat: bool = True) -> None:
        with self._lock:
            untold, self._closings = self._closings, []
        try:
            if untold:
                self.metadata.close(untold, repeat=repeat)
            untold = []
        finally:
            with self._lock:
                self._closings += untold  # or files would be kept as long as this client lives

    def _send_settlings(self, *, repeat: bool = True) -> None:
        """One by one, each in its turn: one that cannot be told must not keep the others."""
        for _ in range(len(self._settlings)):
            with self._lock:
                closing = self._settlings.pop(0)
            try:
                self.metadata.close([closing], repeat=repeat)
            except BaseException:
                with self._lock:
                    self._settlings.append(closing)
                raise

    def _end_sessions(self) -> None:
        """Nothing that was written depends on it, so a metaserver that is away fails no close."""
        self.metadata.retry_s = min(self.metadata.retry_s, _CLOSE_RETRY_S)
        try:
            self._send_closings()
        except Fs3Error as error:
            if error.code not in RETRIED:
                raise
            _log.warning("sessions_left_to_end", sessions=len(self._closings), error=str(error))

    # -- upkeep ----------------------------------------------------------------------------------

    def _start_upkeep(self) -> None:
        if self._upkeep:
            return
        with self._lock:
            if not self._upkeep:
                self._upkeep = tuple(
                    threading.Thread(
                        target=_run_upkeep,
                        args=(weakref.ref(self), self._wake, task),
                        name=f"fs3-{task.__name__.strip('_')}",
                        daemon=True,
                    )
                    for task in (ClientContext._keep_sessions, ClientContext._keep_files)
                )
                for thread in self._upkeep:
                    thread.start()

    def _keep_sessions(self) -> None:
        if time.monotonic() >= self._extend_at_s:
            self._extend_at_s = time.monotonic() + _EXTEND_AGAIN_S
            lease_ms = self.metadata.extend_session(self._description)
            self._extend_at_s = time.monotonic() + lease_ms / 1000 / 3
        # Once: it comes again in a moment, and the lease must not wait for it.
        self._send_closings(repeat=False)

    def _keep_files(self) -> None:
        try:
            self._send_settlings(repeat=False)
        finally:
            self.files.upkeep(time.monotonic())

    def close(self) -> None:
        """Send everything, end all sessions, close all connections; idempotent.

        Raises the first failure of a write that nobody was told of.
        """
        if self.closed:
            return
        self.closed = True
        self._wake.set()
        for thread in self._upkeep:
            if thread is not threading.current_thread():  # the collector runs in any
                thread.join()
        with contextlib.ExitStack() as stack:
            stack.callback(self._channel.close)
            stack.callback(self.metadata.disconnect)
            stack.callback(self.data.close)
            stack.callback(self._end_sessions)
            stack.callback(self._send_settlings)
            left = [Closing(inode, session) for session, inode in self._sessions.items()]
            self._closings += left
            for opened in self.files:
                stack.callback(opened.finish)


def _run_upkeep(
    reference: weakref.ref[ClientContext],
    wake: threading.Event,
    task: Callable[[ClientContext], None],
) -> None:
    """Until the context is closed or forgotten: no reference to it is held while waiting.

    What fails is tried again after growing pauses, and told when that begins and ends. So is a bug:
    it belongs to one file, and without this thread the sessions of all would end.
    """
    pause_s = _UPKEEP_S
    while not wake.wait(pause_s):
        context = reference()
        if context is None:
            return
        try:
            task(context)
        except Exception as error:  # noqa: BLE001 - there is nobody whom it could be raised to
            # Fs3Error is an OSError; so is having no descriptor left.
            if not isinstance(error, OSError):
                _log.exception("upkeep_failed", task=task.__name__)
            elif pause_s == _UPKEEP_S:
                _log.warning("upkeep_failed", task=task.__name__, error=str(error))
            pause_s = min(2 * pause_s, _UPKEEP_MAX_S)
        else:
            if pause_s > _UPKEEP_S:
                _log.info("upkeep_goes_on", task=task.__name__)
            pause_s = _UPKEEP_S
        del context


_contexts: weakref.WeakSet[ClientContext] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_contexts):
        context.after_fork()


def close_all(contexts: Iterable[ClientContext]) -> None:
    """At the end of a process: each, whatever becomes of the others; raises a failure."""
    with contextlib.ExitStack() as stack:
        for context in contexts:
            context.metadata.retry_s = min(context.metadata.retry_s, _EXIT_RETRY_S)
            stack.callback(context.close)


atexit.register(lambda: close_all(list(_contexts)))


os.register_at_fork(after_in_child=_after_fork_in_child)
