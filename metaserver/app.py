"""The metaserver process: settings in, objects wired, both ports served, drained at SIGTERM.

Threads: the reactor (all connections of the frame port, inline reads), workers for what blocks, on
each port; one thread per background duty. The main thread only waits for a signal. If the
reactor or a duty dies of a bug the process ends with status 1, for its supervisor to start anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from fs3.clock import Clock, SystemClock
from fs3.core.layout import Layout
from fs3.errors import Code, Fs3Error
from fs3.log import configure_logging, get_logger
from fs3.proto import cluster_pb2, metadata_pb2
from fs3.reactor import Reactor
from fs3.rpc import Handlers
from fs3.rpc_grpc import serve_grpc
from fs3.settings import add_flags, flags_of, load
from fs3.transport.address import parse, render
from fs3.transport.tcp import FrameServer, Limits, serve_handlers

from . import keys
from .chunk_control import ChunkControl
from .clients import Clients
from .cluster_service import TABLE_DEFAULT, ClusterService
from .gc import GarbageCollector
from .kv.interface import Engine, Transaction
from .kv.memory import MemoryEngine
from .kv.rocksdb import RocksEngine
from .lengths import Lengths
from .manager import Manager
from .manager_orders import Orders
from .manager_store import ClusterStore
from .namespace import make_root
from .periodic import Periodic
from .pruner import Pruner, forget_answers
from .service import MetadataService
from .settings import Settings
from .truncations import Truncations

_FORMAT = b"\x01"
_CLUSTER_ID = keys.CONFIG + b"cluster-id"
_RESUME_S = 1.0  # how often trims are looked for that nobody waits for
_FORGET_ANSWERS_S = 60.0
_TICK_PAUSE_S_MAX = 1.0
_BACKGROUND_PAUSE_S_MAX = 30.0
_JOIN_S = 1.0  # for background work to finish its round
_log = get_logger(__name__)


class Metaserver:
    """A whole metaserver in this process. :meth:`start`, later :meth:`stop`."""

    def __init__(self, settings: Settings, clock: Clock, on_death: Callable[[str], None]) -> None:
        """Open the data; nothing is served yet. ``on_death(thread)``: a bug, stop the process."""
        self._settings = settings
        self._clock = clock
        self._on_death = on_death
        self.engine = _open_engine(settings)
        try:
            self.engine.run(_check_cluster_id, settings.cluster_id)
            layout = Layout(settings.chunk_bytes, settings.stripe, TABLE_DEFAULT)
            self.engine.run(make_root, layout, clock.wall_ns())
            self._wire()
        except BaseException:
            self.engine.close()
            raise

    def _wire(self) -> None:
        settings, clock, engine = self._settings, self._clock, self.engine
        self.manager = Manager(ClusterStore(engine), clock, settings.manager)
        clients = Clients(clock, settings.sessions.lease_ms)
        self._control = ChunkControl(self.manager.feed, settings.cluster_id)
        wait_s = settings.trim_deadline_s
        # Half of the workers may wait for storageservers; the others go on with everything else.
        at_once = max(1, settings.workers // 2)
        truncations = Truncations(engine, self._control, settings.gc.chunks, wait_s, at_once)
        lengths = Lengths(engine, self._control, truncations, clock, wait_s)
        collector = GarbageCollector(engine, self._control, clock, settings.gc)
        pruner = Pruner(engine, clients, lengths, clock)
        self._handlers = Handlers(settings.cluster_id)
        self._handlers.add(
            metadata_pb2.DESCRIPTOR.services_by_name["Metadata"],
            MetadataService(engine, self.manager, clients, truncations, lengths, clock),
        )
        self._handlers.add(
            cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"],
            ClusterService(
                self.manager,
                Orders(self.manager, clock),
                clients,
                settings.manager,
                settings.cluster_id,
            ),
        )
        gc_pause_s = settings.gc.retry_ms_max / 1000

        def tick() -> None:
            clients.awake()
            self.manager.tick()

        self._duties = [
            self._duty("manager", tick, settings.manager.tick_ms, _TICK_PAUSE_S_MAX),
            self._duty("gc", collector.round, settings.gc.interval_ms, gc_pause_s),
            self._duty("prune", pruner.round, settings.sessions.prune_ms, _BACKGROUND_PAUSE_S_MAX),
            self._duty("trim", truncations.resume, _RESUME_S * 1000, _BACKGROUND_PAUSE_S_MAX),
            self._duty("forget", lambda: forget_answers(engine, clock), _FORGET_ANSWERS_S * 1000),
        ]

    def _duty(
        self,
        name: str,
        work: Callable[[], object],
        interval_ms: float,
        pause_s_max: float = _FORGET_ANSWERS_S,
    ) -> Periodic:
        return Periodic(name, work, interval_ms / 1000, pause_s_max, self._on_death)

    def start(self) -> None:
        """Serve. Fs3Error if a port cannot be had; then :meth:`stop` need not be called."""
        settings = self._settings
        self._reactor = Reactor()
        try:
            self._frames = FrameServer(
                self._reactor,
                settings.cluster_id,
                address=settings.listen,
                limits=Limits(connections=settings.connections_max),
            )
        except BaseException:
            self._reactor.close()
            self.engine.close()
            raise
        try:
            self._grpc, grpc_port = serve_grpc(
                self._handlers, settings.grpc_listen, max_workers=settings.grpc_workers
            )
        except BaseException:
            self._frames.close()
            self._reactor.close()
            self.engine.close()
            raise
        self.frame_address = self._frames.address
        self.grpc_address = render(parse(settings.grpc_listen)[0], grpc_port)
        self._threads = serve_handlers(self._frames, self._handlers, settings.workers)
        self._reactor_thread = threading.Thread(
            target=self._run_reactor, name="reactor", daemon=True
        )
        self._reactor_thread.start()
        for duty in self._duties:
            duty.start()

    def _run_reactor(self) -> None:
        died = True
        try:
            self._reactor.run()
            died = False
        finally:
            if died:
                self._on_death("reactor")

    def stop(self) -> None:
        """Take no new calls, let those in progress finish within ``drain_s``, close the data."""
        for duty in self._duties:
            duty.stop()
        self.manager.feed.close()  # streams end, and nobody waits for storageservers any more
        grpc_stopped = self._grpc.stop(self._settings.drain_s)
        # The workers' answers still leave through the reactor. A worker that does not come back
        # in time is left behind: its caller asks again, with the same request id.
        drain = threading.Thread(target=self._threads.close, name="drain", daemon=True)
        drain.start()
        drain.join(self._settings.drain_s)
        grpc_stopped.wait(self._settings.drain_s)
        self._reactor.call_soon(self._frames.close)
        self._reactor.stop()
        self._reactor_thread.join()
        self._reactor.close()
        self._control.close()
        for duty in self._duties:
            duty.join(_JOIN_S)
        self.engine.close()


def _open_engine(settings: Settings) -> Engine:
    if settings.engine == "memory":
        return MemoryEngine()
    return RocksEngine(settings.data_dir)


def _check_cluster_id(txn: Transaction, cluster_id: str) -> None:
    """The data of one cluster must not be served as another's."""
    value = txn.get(_CLUSTER_ID)
    if value is None:
        txn.set(_CLUSTER_ID, _FORMAT + cluster_id.encode())
    elif value[1:].decode() != cluster_id:
        raise Fs3Error(
            Code.WRONG_CLUSTER,
            f"this data belongs to cluster {value[1:].decode()!r}; the settings say {cluster_id!r}",
        )


def _write_port_file(path: Path, metaserver: Metaserver, cluster_id: str) -> None:
    """Appears whole or not at all: whoever waits for it may read it at once."""
    text = json.dumps(
        {
            "pid": os.getpid(),
            "cluster_id": cluster_id,
            "listen": metaserver.frame_address,
            "grpc_listen": metaserver.grpc_address,
        }
    )
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(text + "\n")
    scratch.replace(path)


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    # Not an Event: its lock is the main thread's while that begins to wait, and a signal's handler,
    # which runs in the main thread, would wait for it for ever.
    ends: SimpleQueue[str] = SimpleQueue()  # threads that died; "" for a signal
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.put(""))
    if settings.port_file is not None:
        settings.port_file.unlink(missing_ok=True)  # the last process's ports may be others' now
    metaserver = Metaserver(settings, SystemClock(), ends.put)
    metaserver.start()
    if settings.port_file is not None:
        _write_port_file(settings.port_file, metaserver, settings.cluster_id)
    _log.info(
        "ready",
        cluster=settings.cluster_id,
        listen=metaserver.frame_address,
        grpc_listen=metaserver.grpc_address,
        engine=settings.engine,
    )
    dead = ends.get()
    _log.info("draining", drain_s=settings.drain_s)
    metaserver.stop()
    if dead:
        _log.error("thread_died", thread=dead)
    _log.info("stopped")
    return 1 if dead else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``fs3-metaserver``."""
    parser = argparse.ArgumentParser(
        prog="fs3-metaserver",
        description="The metadata daemon of fs3: names, inodes, open files, and the cluster"
        " manager. Every setting may stand in the file, in the environment (FS3_...) or here.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings")
    add_flags(parser, Settings)
    parsed = parser.parse_args(arguments)
    if not __debug__:
        print("fs3-metaserver: python -O is not allowed: it removes assertions", file=sys.stderr)
        return 1
    try:
        settings = load(Settings, parsed.config, flags_of(parsed), os.environ)
        configure_logging(settings.log_level, file=settings.log_file)
        return serve(settings)
    except Fs3Error as error:
        print(f"fs3-metaserver: {error}", file=sys.stderr)
        return 1
