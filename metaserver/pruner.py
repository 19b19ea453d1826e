"""Closing the files of clients that are gone.

What a dead writer wrote counts up to its last chunk: lengths are settled by asking the chains
before its sessions end. If a chain does not answer the client stays for the next round.
"""

from __future__ import annotations

from fs3.clock import Clock
from fs3.core.types import InodeId
from fs3.errors import Fs3Error
from fs3.log import get_logger

from . import keys
from .clients import Clients
from .kv.interface import Engine, Transaction
from .lengths import Lengths
from .once import prune_requests
from .sessions import PRUNE_SESSIONS_MAX, Handle, has_write_session, prune_sessions

ANSWERS_KEPT_NS = 30 * 60 * 1_000_000_000  # a request is not repeated after so long
_log = get_logger(__name__)


class Pruner:
    """One thread calls :meth:`round`."""

    def __init__(self, engine: Engine, clients: Clients, lengths: Lengths, clock: Clock) -> None:
        self._engine = engine
        self._clients = clients
        self._lengths = lengths
        self._clock = clock

    def round(self) -> int:
        """Prune every client that is gone; how many sessions ended.

        Raises what a client failed with when all others are done.
        """
        self._clients.forget_gone()
        ended = 0
        failed: Fs3Error | None = None
        for client in self._engine.run(clients_with_sessions):
            if self._clients.is_gone(client):
                try:
                    ended += self._prune(client)
                except Fs3Error as error:
                    failed = error
        if failed is not None:
            raise failed
        return ended

    def _prune(self, client: int) -> int:
        ended = 0
        while True:
            for inode in self._engine.run(_written_files, client):
                self._lengths.settle_as_written(inode)
            if not self._clients.is_gone(client):
                break  # it has spoken up while its chains were asked
            count = self._engine.run(prune_sessions, client, self._clock.wall_ns())
            ended += count
            if count < PRUNE_SESSIONS_MAX:
                break
        _log.info("client_pruned", client=f"{client:016x}", sessions=ended)
        return ended


def forget_answers(engine: Engine, clock: Clock) -> None:
    """Drop the answers kept for requests that nobody will repeat any more."""
    before_ns = clock.wall_ns() - ANSWERS_KEPT_NS
    after = engine.run(prune_requests, before_ns)
    while after:
        after = engine.run(prune_requests, before_ns, after)


def clients_with_sessions(txn: Transaction) -> list[int]:
    """Every client that holds a file open."""
    begin, end = keys.range_of(keys.CLIENT_SESSION)
    clients = []
    while rows := txn.range(begin, end, 1, snapshot=True):
        clients.append(keys.number_at(rows[0][0], 0))
        begin = keys.prefix_end(keys.of(keys.CLIENT_SESSION, clients[-1]))
    return clients


def _written_files(txn: Transaction, client: int) -> list[InodeId]:
    """Of the sessions that :func:`prune_sessions` will end next, the files open for writing."""
    found = []
    for key, _ in txn.range(*keys.range_of(keys.CLIENT_SESSION, client), PRUNE_SESSIONS_MAX):
        inode, session = InodeId(keys.number_at(key, 1)), keys.number_at(key, 2)
        if has_write_session(txn, inode, Handle(client, session)):
            found.append(inode)
    return list(dict.fromkeys(found))
