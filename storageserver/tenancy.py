"""A target and the chain whose chunks it holds: joined with nothing, left with everything.

A target that leaves a chain keeps its chunks until it joins another: then they are removed before
it says that it is ready to sync. So it never takes part in a chain with chunks of an older one, and
what an operator removed by mistake can be put back.

A target that is shown as the last that served a chain, and knows nothing of that chain, has lost
what everybody waits for: its disk was exchanged. It says so, and serves nothing in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fs3.core.chunks import UpdateKind
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    ChunkId,
    ChunkVersion,
    PublicState,
    TargetId,
)
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import Reactor

from .chunkstore.interface import ChunkStore, Commit, StageRequest
from .identity import Identity

_log = get_logger(__name__)
_CHUNKS_A_TURN = 256  # removed before the reactor may do something else


class Tenancy:
    """The reactor's thread only. ``on_ready()`` when it is empty, ``fail(reason)`` if it cannot be.

    ``identity`` is None of a target that was lost before it was known; it never enters a chain.
    """

    def __init__(
        self,
        target: TargetId,
        identity: Identity | None,
        store: ChunkStore,
        reactor: Reactor,
        on_ready: Callable[[], None],
        fail: Callable[[str], None],
    ) -> None:
        self.complaint = ""  # why it cannot take part in its chain
        self._target = target
        self._identity = identity
        self._store = store
        self._reactor = reactor
        self._on_ready = on_ready
        self._fail = fail
        self._emptying = False  # chunks of an older chain are being removed

    @property
    def ready(self) -> bool:
        """Nothing keeps it from taking part in its chain."""
        return not self._emptying and not self.complaint

    def enter(self, chain: Chain | None) -> bool:
        """May the target take part in ``chain`` now?"""
        self.complaint = ""
        if chain is None or chain.replica(self._target) is None:
            self._emptying = False  # what is left goes when it joins the next
            return False
        try:
            return self._enter(chain)
        except Fs3Error as error:
            self._reactor.call_soon(self._fail, error.detail)
            return False

    def _enter(self, chain: Chain) -> bool:
        identity, place = self._identity, chain.replica(self._target)
        assert identity is not None, f"target {self._target} is nobody's"
        if chain.chain != identity.chain:
            last = place is not None and place.state is PublicState.LASTSRV
            if last and not identity.chain:
                self.complaint = (
                    f"it shall be the last that served chain {chain.chain}, but its directory"
                    " holds nothing of that chain"
                )
                return False
            if self._store.scan(None, 1):
                self._begin_emptying(identity, chain)
                return False
            identity.bind(chain.chain)
            _log.info("chain_joined", target=self._target, chain=chain.chain)
        self._emptying = False
        return True

    def _begin_emptying(self, identity: Identity, chain: Chain) -> None:
        if self._emptying:
            return
        _log.info("emptying", target=self._target, of=identity.chain, to_join=chain.chain)
        # What is left if this is interrupted must not be taken for all of that chain.
        identity.bind(ChainId(0))
        self._emptying = True
        self._reactor.call_soon(self._remove_some)

    def _remove_some(self) -> None:
        """A turn's part of emptying the store."""
        if not self._emptying:
            return
        try:
            page = self._store.scan(None, _CHUNKS_A_TURN)
            self._store.drop([chunk for chunk, meta in page if meta.pending_version])
            self._remove([(c, ChunkVersion(meta.version + 1)) for c, meta in page if meta.version])
        except Fs3Error as error:
            self._fail(error.detail)
            return
        if len(page) == _CHUNKS_A_TURN:
            self._reactor.call_soon(self._remove_some)
        else:
            self._emptying = False
            self._on_ready()

    def _remove(self, gone: Sequence[tuple[ChunkId, ChunkVersion]]) -> None:
        self._store.stage([StageRequest(c, UpdateKind.REMOVE, version) for c, version in gone])
        codes = self._store.commit([Commit(c, version, ChainVersion(0)) for c, version in gone])
        for (chunk, _), code in zip(gone, codes, strict=True):
            if code is not Code.OK:
                why = self._store.failed or code.name
                raise Fs3Error(Code.DISK, f"chunk {chunk.hex()} could not be removed: {why}")
