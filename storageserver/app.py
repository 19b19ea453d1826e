"""fs3-storageserver: settings to objects, serve, drain. The only place where objects are wired."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fs3 import __version__, dataplane
from fs3.buffers import BufferPool
from fs3.clock import Clock, SystemClock
from fs3.core import messages as m
from fs3.core.replica import Limits
from fs3.core.types import Chain, ChainId, ChainVersion, NodeId, TargetId
from fs3.errors import Code, Fs3Error
from fs3.log import configure_logging, get_logger
from fs3.proto import cluster_pb2, storage_pb2
from fs3.reactor import Reactor
from fs3.routing import Routing
from fs3.rpc import Handlers
from fs3.rpc_grpc import serve_grpc
from fs3.settings import add_flags, flags_of, load
from fs3.transport.local import boot_id
from fs3.transport.rdma.choosing import Rdma
from fs3.transport.rdma.ports import open_ports
from fs3.transport.rdma.serving import RdmaLimits, RdmaServer
from fs3.transport.tcp import FrameServer, serve_handlers
from fs3.transport.tcp import Limits as PortLimits
from fs3.wire import encode_rdma_endpoint

from .checking import check_targets
from .chunkstore.interface import BadChunk
from .dataserver import DataServer
from .eviction_snapshot import FILE as RECENCY_FILE
from .jobs import Payload
from .localport import LocalPort
from .member import Member
from .neighbours import Neighbours
from .opening import open_target
from .reaching import Reaching
from .scrub import Scrubber
from .service import StorageControl
from .settings import StorageSettings
from .target import Target

_log = get_logger(__name__)
_BACKGROUND_S = 1.0
_CONTROL_WORKERS = 4
_DRAIN_S = 2.0


class StorageServer:
    """One process: a reactor, its targets, two ports, one membership."""

    def __init__(self, settings: StorageSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self.reactor = Reactor()
        self._pool = BufferPool(settings.buffer_bytes)
        self._neighbours = Neighbours(
            self.reactor,
            settings.cluster_id,
            self._on_neighbour_up,
            Rdma(settings.rdma.devices) if settings.rdma.enabled else None,
        )
        self._opened = {
            TargetId(said.id): open_target(said, settings.cluster_id, settings.boot_id_file)
            for said in settings.targets
        }
        self._targets = self._make_targets()
        self._routing = Routing()
        self._server = FrameServer(
            self.reactor,
            settings.cluster_id,
            address=settings.listen,
            limits=PortLimits(connections=settings.connections_max),
            pool=self._pool,
        )
        self._rdma = self._make_rdma()
        self._data = DataServer(self._server, self._targets, self._pool)
        self._reaching = Reaching(
            NodeId(settings.node_id),
            settings.unreachable_ms,
            self._neighbours,
            clock,
            self.state_changed,
        )
        self._server.take([dataplane.PROBE], self._reaching.on_frame)
        self._local = self._make_local()
        self._paths = paths = {TargetId(t.id): t.path for t in settings.targets}
        self._scrubbers = {t: self._make_scrubber(self._targets[t], paths[t]) for t in paths}
        self._control = StorageControl(
            self.reactor,
            self._targets,
            {target: str(path) for target, path in paths.items()},
            self._scrubbers,
            self._rdma,
        )
        handlers = Handlers(settings.cluster_id)
        handlers.add(storage_pb2.DESCRIPTOR.services_by_name["StorageControl"], self._control)
        self._handler_threads = serve_handlers(self._server, handlers, _CONTROL_WORKERS)
        self._grpc, port = serve_grpc(handlers, settings.grpc_listen, max_workers=_CONTROL_WORKERS)
        host = settings.grpc_listen.rpartition(":")[0]
        self.control_address = f"{host}:{port}"
        self._member = self._make_member()

    @property
    def data_address(self) -> str:
        """Where the data port listens."""
        return self._server.address

    def _make_rdma(self) -> RdmaServer | None:
        """None if there is no device, or none is wanted: everything goes over TCP then."""
        said = self._settings.rdma
        ports = open_ports(said.devices)[0] if said.enabled else []
        if not ports:
            return None
        limits = RdmaLimits(links=said.links_max, pulled_bytes=said.pulled_bytes)
        return RdmaServer(self._server, ports, limits)

    def _make_targets(self) -> dict[TargetId, Target]:
        limits = Limits(
            resync_bytes_per_s=self._settings.resync.bytes_per_s,
            resync_window=self._settings.resync.window,
        )
        return {
            target: Target(
                target,
                opened.store,
                limits,
                reactor=self.reactor,
                pool=self._pool,
                clock=self._clock,
                surroundings=self,
                cluster_id=self._settings.cluster_id,
                repair=self._settings.repair,
                eviction=self._settings.eviction,
                identity=opened.identity,
            )
            for target, opened in self._opened.items()
        }

    def _make_scrubber(self, target: Target, path: Path) -> Scrubber:
        def on_bad(bad: BadChunk) -> None:
            self.reactor.call_soon(target.repairs.suspect, bad.chunk, bad.detail)

        return Scrubber(
            target.target,
            target.store,
            path,
            self._settings.scrub,
            clock=self._clock,
            on_bad=on_bad,
            fail=lambda reason: self.reactor.call_soon(target.fail, reason),
        )

    def _make_local(self) -> LocalPort | None:
        if not self._settings.local.enabled or not boot_id():
            return None
        return LocalPort(
            self.reactor,
            self._settings.cluster_id,
            self._settings.local,
            self._data,
            self._targets,
            pool=self._pool,
            clock=self._clock,
            connections_max=self._settings.connections_max,
        )

    def _make_member(self) -> Member:
        settings = self._settings
        node = cluster_pb2.Node(
            node=settings.node_id,
            host=settings.host or socket.gethostname(),
            data_address=self.data_address,
            control_address=self.control_address,
            incarnation=secrets.randbits(63) + 1,
            rdma=map(encode_rdma_endpoint, self._rdma.endpoints if self._rdma else ()),
        )
        if self._local is not None:
            node.local.address, node.local.boot_id = self._local.address, boot_id()
        return Member(
            node,
            settings.metaservers,
            settings.cluster_id,
            reactor=self.reactor,
            clock=self._clock,
            reports=self._reports,
            on_routing=self._on_routing,
            on_lease=self._on_lease,
            unreachable=lambda: self._reaching.unreachable,
        )

    # --- what targets need (surroundings.py) -------------------------------------------------

    def send(self, message: m.Message, payload: Payload | None) -> None:
        """See :class:`surroundings.Surroundings`."""
        self._neighbours.send(message, payload)

    def flush(self) -> None:
        """See :class:`surroundings.Surroundings`."""
        self._neighbours.flush()

    def state_changed(self) -> None:
        """See :class:`surroundings.Surroundings`."""
        self._member.beat_soon()

    def refresh_routing(self) -> None:
        """See :class:`surroundings.Surroundings`."""
        self._member.refresh()

    def accuse(self, target: TargetId, reason: str) -> None:
        """See :class:`surroundings.Surroundings`."""
        self._member.accuse(target, reason)

    def address_of(self, target: TargetId) -> str | None:
        """See :class:`surroundings.Surroundings`."""
        return self._neighbours.address_of(target)

    # --- membership, in the reactor's thread -----------------------------------------------------

    def _reports(self) -> list[cluster_pb2.TargetReport]:
        made = []
        for target in self._targets.values():
            report, usage = target.report, target.usage()
            made.append(
                cluster_pb2.TargetReport(
                    target=report.target,
                    local_state=report.state,
                    chain_version=report.chain_version,
                    capacity_bytes=usage.capacity_bytes,
                    used_bytes=usage.used_bytes,
                    free_bytes=usage.free_bytes,
                    chunks=usage.chunks,
                    problem=report.problem,
                    sync_done_chunks=report.sync_done,
                    sync_total_chunks=report.sync_total,
                    resync_bytes_per_s=report.resync_bytes_per_s,
                )
            )
        return made

    def _on_lease(self, target: TargetId, version: ChainVersion, until_ms: int) -> None:
        if target in self._targets:
            self._targets[target].grant(version, until_ms)

    def _on_routing(self, routing: Routing) -> None:
        self._routing = routing
        chain_of: dict[TargetId, Chain] = {}
        mine: dict[ChainId, Target] = {}
        wanted: set[TargetId] = set()
        for target_id in self._targets:
            info = routing.targets.get(target_id)
            chain = routing.chains.get(info.chain) if info is not None else None
            if chain is not None and chain.replica(target_id) is not None:
                chain_of[target_id] = chain
                wanted |= {r.target for r in chain.replicas if r.target != target_id}
                # Of two, one of which takes the other's place, the one nearer to the head.
                here = [r.target for r in chain.replicas if r.target in self._targets]
                mine[chain.chain] = self._targets[here[0]]
        address_of = {
            t: routing.nodes[info.node].data_address
            for t, info in routing.targets.items()
            if info.node in routing.nodes
        }
        self._neighbours.route(address_of, wanted, routing.nodes.values())
        nodes = {routing.targets[t].node for t in wanted if t in routing.targets}
        self._reaching.route(
            {n: routing.nodes[n].data_address for n in nodes if n in routing.nodes}
        )
        self._data.set_chains(mine)
        self._control.set_chains(mine)
        for target_id, target in self._targets.items():
            target.values.know(routing.namespaces, routing.namespaces_end)
            target.on_chain(chain_of.get(target_id))

    def _on_neighbour_up(self, there: frozenset[TargetId]) -> None:
        for target in self._targets.values():
            target.feed([m.PeerUp(neighbour) for neighbour in sorted(there)])

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        for target in self._targets.values():
            target.values.load(self._paths[target.target] / RECENCY_FILE)
        self._tick()
        self._background()
        self._member.start()
        for scrubber in self._scrubbers.values():
            scrubber.start()
        self.reactor.run()

    def _tick(self) -> None:
        for target in self._targets.values():
            target.tick()
        self._reaching.tick()
        if self._local is not None:
            self._local.tick()
        self.reactor.call_later(self._settings.tick_ms / 1000, self._tick)

    def _background(self) -> None:
        for target in self._targets.values():
            target.background()
        self.reactor.call_later(_BACKGROUND_S, self._background)

    def stop(self) -> None:
        """Any thread: tell the manager that the targets go, then end :meth:`run`."""

        def leave() -> None:
            for target in self._targets.values():
                target.leave()

        self.reactor.call_soon(leave)
        self._member.stop()
        self.reactor.stop()

    def close(self) -> None:
        """After :meth:`run`: close what is open."""
        self._grpc.stop(_DRAIN_S).wait()
        self._handler_threads.close()
        if self._rdma is not None:
            self._rdma.close()
        self._server.close()
        if self._local is not None:
            self._local.close()
        self._neighbours.close()
        for scrubber in self._scrubbers.values():
            scrubber.close()
        for target in self._targets.values():
            target.close()
        for opened in self._opened.values():
            opened.close()
        self.reactor.close()


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[StorageSettings, bool]:
    """The settings from flags, environment and file, and whether to check instead of to serve.

    Raises Fs3Error; exits for --help.
    """
    parser = argparse.ArgumentParser(
        prog="fs3-storageserver",
        description="The fs3 storage daemon: stores and replicates chunks.",
    )
    parser.add_argument("--version", action="version", version=f"fs3 {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, as TOML")
    parser.add_argument(
        "--check",
        action="store_true",
        help="examine all that is stored, while no server runs, and exit: 1 if anything is wrong",
    )
    add_flags(parser, StorageSettings)
    said = parser.parse_args(arguments)
    return load(StorageSettings, said.config, flags_of(said), environ), said.check


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Exit status 0 after SIGTERM, 2 for settings that make no sense.

    With --check 0 if all is well, 1 if anything is wrong.
    """
    if not __debug__:
        print("fs3-storageserver: python -O is refused: its assertions guard data", file=sys.stderr)
        return 2
    try:
        settings, check = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
        configure_logging(settings.log_level, file=settings.log_file)
        if check:
            targets, boot_id_file = settings.targets, settings.boot_id_file
            return 0 if check_targets(targets, settings.cluster_id, print, boot_id_file) else 1
        server = StorageServer(settings, SystemClock())
    except Fs3Error as error:
        print(f"fs3-storageserver: {error.detail}", file=sys.stderr)
        return 2 if error.code is Code.INVALID else 1
    _serve(server, settings)
    return 0


def _serve(server: StorageServer, settings: StorageSettings) -> None:
    def leave(signum: int) -> None:
        _log.info("stopping", signal=signal.Signals(signum).name)
        threading.Thread(target=server.stop, name="stop").start()

    # Not at once: the signal may come while this thread has a lock that logging or a start needs.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: server.reactor.call_from_signal(leave, number))
    addresses = {"data": server.data_address, "control": server.control_address}
    if settings.port_file is not None:
        scratch = settings.port_file.with_suffix(".new")
        scratch.write_text(json.dumps(addresses))
        scratch.rename(settings.port_file)
    _log.info("ready", node=settings.node_id, cluster=settings.cluster_id, **addresses)
    try:
        server.run()
    finally:
        server.close()
    _log.info("stopped")
