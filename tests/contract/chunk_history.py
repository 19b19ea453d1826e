"""Random histories of updates on a chunk store, compared with a dictionary."""

from __future__ import annotations

from chunk_updates import PATTERN, A, B, C, get, put, remove, resize, write
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.errors import Code
from fs3.storageserver.chunkstore.interface import ChunkStore, Commit

CHUNKS = [A, B, C]
OFFSETS = st.one_of(
    st.integers(0, 300), st.integers(16_380, 16_390), st.integers(65_530, 65_540),
    st.integers(0, 150_000),
)  # fmt: skip


class HistoryMachine(RuleBasedStateMachine):
    """Random updates on three chunks, against a dictionary of bytes."""

    make = None  # set by run_machine

    @initialize()
    def start(self):
        self.store, self.reopened = type(self).make()
        for chunk, meta in self.store.scan(None, 100):  # from the machine's run before
            self.store.drop([chunk])
            if meta.version:
                put(self.store, remove(chunk, meta.version + 1))
        self.committed: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes | None] = {}

    def stage(self, update, content):
        [result] = self.store.stage([update])
        assert result.code is Code.OK, result
        assert (result.length, result.checksum) == (len(content or b""), crc32c(content or b""))
        self.pending[update.chunk] = content

    def next_version(self, chunk):
        meta = self.store.meta(chunk)
        return meta.version + 1 if meta else 1

    @rule(chunk=st.sampled_from(CHUNKS), offset=OFFSETS, length=OFFSETS, whole=st.booleans())
    def write(self, chunk, offset, length, whole):
        data = PATTERN[offset % 1000 : offset % 1000 + length]
        old = self.committed.get(chunk, b"")
        if whole:
            update = write(chunk, self.next_version(chunk), 0, data, kind=UpdateKind.REPLACE)
            self.stage(update, data)
        else:
            content = old[:offset].ljust(offset, b"\0") + data + old[offset + length :]
            content = content if data else old
            self.stage(write(chunk, self.next_version(chunk), offset, data), content)

    @rule(chunk=st.sampled_from(CHUNKS), length=st.integers(1, 40_000))
    def append(self, chunk, length):
        old = self.committed.get(chunk, b"")
        if len(old) < 500_000:
            data = PATTERN[3 : 3 + length]
            self.stage(write(chunk, self.next_version(chunk), len(old), data), old + data)

    @rule(chunk=st.sampled_from(CHUNKS), length=OFFSETS, exactly=st.booleans())
    def resize(self, chunk, length, exactly):
        old = self.committed.get(chunk, b"")
        kind = UpdateKind.TRUNCATE if exactly else UpdateKind.EXTEND
        content = (old[:length] if exactly else old).ljust(length, b"\0")
        self.stage(resize(chunk, self.next_version(chunk), kind, length), content)

    @rule(chunk=st.sampled_from(CHUNKS))
    def remove(self, chunk):
        self.stage(remove(chunk, self.next_version(chunk)), None)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def commit(self, data):
        chunk = data.draw(st.sampled_from(sorted(self.pending)))
        version = self.store.meta(chunk).pending_version
        assert self.store.commit([Commit(chunk, version, 1)]) == [Code.OK]
        content = self.pending.pop(chunk)
        if content is None:
            self.committed.pop(chunk, None)
        else:
            self.committed[chunk] = content

    @rule(chunk=st.sampled_from(CHUNKS))
    def drop(self, chunk):
        self.store.drop([chunk])
        self.pending.pop(chunk, None)

    @rule()
    def sync(self):
        self.store.sync()

    @rule()
    def tick(self):
        self.store.tick()

    @rule()
    def reopen(self):
        self.store = self.reopened(self.store)

    @rule(chunk=st.sampled_from(CHUNKS), offset=OFFSETS, length=OFFSETS, verify=st.booleans())
    def read(self, chunk, offset, length, verify):
        expected = self.committed.get(chunk)
        found = get(self.store, chunk, offset, length, verify=verify)
        if expected is None:
            assert found is Code.NO_CHUNK
        else:
            assert found == expected[offset : offset + length]

    @rule()
    def compare(self):
        for chunk in CHUNKS:
            expected = self.committed.get(chunk, Code.NO_CHUNK)
            assert get(self.store, chunk) == expected
            staged = self.pending.get(chunk, expected)
            assert get(self.store, chunk, pending=True) == (
                Code.NO_CHUNK if staged is None else staged
            )
        assert self.store.check() == []

    def teardown(self):
        self.compare()


def run_machine(make):
    """Run :class:`HistoryMachine` on the store of one test, again and again."""
    current: list[ChunkStore] = []

    def keep():
        store, reopened = make()
        current[:] = current or [store]

        def reopen(store):
            current[0] = reopened(store)
            return current[0]

        return current[0], reopen

    machine = type("Machine", (HistoryMachine,), {"make": staticmethod(keep)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
