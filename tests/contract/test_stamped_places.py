"""A place that is remembered and whose stamp stands shows the committed bytes, whatever was done.

Random operations on a disk store, beside a model of what is committed and what is pending. Whole
chunks' places are noted now and then, and all that were ever noted are looked at after each step.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fs3.checksum import CHECKSUM_BLOCK_BYTES, crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.stamps import StampView
from fs3.core.types import ChainVersion, ChunkId, ChunkVersion, chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import ChunkPlace, Commit, StageRequest
from fs3.storageserver.chunkstore.store import DiskChunkStore

SETTINGS = ChunkStoreSettings(reserve_bytes=0, growth_bytes_min=64 << 10, idle_bytes_max=0)
PATTERN = bytes((i * 7 + i // 251) % 256 for i in range(300_000))
CHUNKS = [chunk_id(1, slot) for slot in range(2)]
SIZES = st.sampled_from([1, 100, 16_384, 20_000, 65_536, 70_000, 131_072])
chunks = st.sampled_from(CHUNKS)
ends = st.sampled_from(["commit", "commit", "drop", "leave"])


class Stamped(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())

    @initialize()
    def open(self) -> None:
        self.store: Any = DiskChunkStore(Files(), self.directory / "target", SETTINGS)
        self.view = StampView(self.store.stamps._words.cast("B"))
        self.committed: dict[ChunkId, tuple[int, bytes]] = {}
        self.pending: dict[ChunkId, tuple[int, bytes | None]] = {}
        self.noted: list[tuple[ChunkId, ChunkPlace]] = []
        self.filled = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert self.store.check() == []
            self.store.close()
        shutil.rmtree(self.directory)

    def update(
        self, chunk: ChunkId, kind: UpdateKind, content: bytes | None, end: str, **fields: Any
    ) -> None:
        version = max(self.committed.get(chunk, (0, b""))[0], 0) + 1
        request = StageRequest(
            chunk, kind, ChunkVersion(version), chain_version=ChainVersion(1), **fields
        )
        [result] = self.store.stage([request])
        assert result.code is Code.OK, result
        self.pending[chunk] = version, content
        if end == "commit":
            self.commit(chunk)
        elif end == "drop":
            self.drop(chunk)

    # -- mutations -------------------------------------------------------------------------------

    @rule(chunk=chunks, offset=SIZES, size=SIZES, seed=st.integers(0, 1000), end=ends)
    def write(self, chunk: ChunkId, offset: int, size: int, seed: int, end: str) -> None:
        old = self.committed.get(chunk, (0, b""))[1]
        data = PATTERN[seed : seed + size]
        offset = min(offset - 1, 150_000)
        content = old[:offset].ljust(offset, b"\0") + data + old[offset + size :]
        fields: Any = {"offset": offset, "length": size, "data": memoryview(data)}
        self.update(chunk, UpdateKind.WRITE, content, end, checksum=crc32c(data), **fields)

    @rule(chunk=chunks, size=SIZES, seed=st.integers(0, 1000), end=ends)
    def replace(self, chunk: ChunkId, size: int, seed: int, end: str) -> None:
        data = PATTERN[seed : seed + size]
        fields: Any = {"length": size, "data": memoryview(data), "checksum": crc32c(data)}
        self.update(chunk, UpdateKind.REPLACE, data, end, **fields)

    @rule(chunk=chunks, length=st.one_of(st.just(0), SIZES), end=ends)
    def cut(self, chunk: ChunkId, length: int, end: str) -> None:
        old = self.committed.get(chunk, (0, b""))[1]
        content = old[:length].ljust(length, b"\0")
        self.update(chunk, UpdateKind.TRUNCATE, content, end, length=length)

    @rule(chunk=chunks, end=ends)
    def remove(self, chunk: ChunkId, end: str) -> None:
        self.update(chunk, UpdateKind.REMOVE, None, end)

    @rule(chunk=chunks)
    def commit(self, chunk: ChunkId) -> None:
        if chunk not in self.pending:
            return
        version, content = self.pending.pop(chunk)
        commit = Commit(chunk, ChunkVersion(version), ChainVersion(1))
        assert self.store.commit([commit]) == [Code.OK]
        if content is None:
            self.committed.pop(chunk, None)
        else:
            self.committed[chunk] = version, content
        self.note(chunk)

    @rule(chunk=chunks)
    def drop(self, chunk: ChunkId) -> None:
        self.store.drop([chunk])
        self.pending.pop(chunk, None)

    @rule(chunk=chunks)
    def discard(self, chunk: ChunkId) -> None:
        gone = self.store.discard([chunk])
        assert gone == ([chunk] if chunk in self.committed and chunk not in self.pending else [])
        for each in gone:
            del self.committed[each]

    @rule(chunk=chunks)
    def restore(self, chunk: ChunkId) -> None:
        if chunk in self.committed and self.committed[chunk][1]:
            version, content = self.committed[chunk]
            assert self.store.restore(chunk, ChunkVersion(version), memoryview(content)) is Code.OK

    @rule()
    def settle(self) -> None:
        self.store.sync()
        self.store.tick()

    @precondition(lambda self: self.filled < 30)
    @rule(size=SIZES)
    def fill(self, size: int) -> None:
        """What is free is used, by others."""
        self.filled += 1
        data = bytes([self.filled]) * size
        chunk = chunk_id(2, self.filled)
        fields: Any = {"length": size, "data": memoryview(data), "checksum": crc32c(data)}
        update = StageRequest(chunk, UpdateKind.WRITE, ChunkVersion(1), **fields)
        assert self.store.stage([update])[0].code is Code.OK
        self.store.commit([Commit(chunk, ChunkVersion(1), ChainVersion(1))])

    # -- places ----------------------------------------------------------------------------------

    @rule(chunk=chunks)
    def note(self, chunk: ChunkId) -> None:
        place = self.store.place(chunk, 0)
        clean = chunk in self.committed and chunk not in self.pending
        assert (place is not None) == (clean and bool(self.committed[chunk][1]))
        if place is not None:
            self.noted.append((chunk, place))

    @invariant()
    def what_stands_is_committed(self) -> None:
        for chunk, place in list(getattr(self, "noted", ())):
            if not self.view.stands(place.row, place.stamp):
                self.noted.remove((chunk, place))
                continue
            assert chunk not in self.pending
            assert (place.version, place.length) == (
                self.committed[chunk][0],
                len(self.committed[chunk][1]),
            )
            found = os.pread(self.store.data_file(place.file), place.length, place.position)
            assert found == self.committed[chunk][1]
            blocks = range(0, place.length, CHECKSUM_BLOCK_BYTES)
            crcs = [crc32c(found[at : at + CHECKSUM_BLOCK_BYTES]) for at in blocks]
            assert place.crcs == b"".join(crc.to_bytes(4, "little") for crc in crcs)
            assert place.checksum == crc32c(found)


TestStamped = Stamped.TestCase
TestStamped.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
