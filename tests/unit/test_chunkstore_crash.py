"""The chunk store stopped at every call it makes to the machine, then opened again.

A workload is scripted from a seed. A model keeps, for each chunk, every state it went through:
committed and pending. After the death of the process a chunk must be in the state before or after
the call that was cut; after a power cut in any state since the last completed sync, the committed
and the pending version each by itself, but what was pending then and was committed is there in one
way or the other. In every case all bytes match their checksums, no block is
used twice and none is lost, and the store works on.
"""

from pathlib import Path
from random import Random

import pytest
from faulty_files import FaultyFiles, Machine, Stopped

from fs3.checksum import crc32c
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.types import chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings, DataFiles
from fs3.storageserver.chunkstore.epochs import Epochs
from fs3.storageserver.chunkstore.interface import Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.publishing import Publisher
from fs3.storageserver.chunkstore.records import NO_VERSION
from fs3.storageserver.chunkstore.staging import Stager
from fs3.storageserver.chunkstore.store import DiskChunkStore

pytestmark = pytest.mark.usefixtures("no_clock_in_stores")  # seeds say at which call

ROOT = Path("/target")
SETTINGS = ChunkStoreSettings(
    reserve_bytes=0, growth_bytes_min=64 << 10, idle_bytes_max=0, idle_ticks=0, channels_max=64
)
CHUNKS = [chunk_id(1, 0), chunk_id(1, 1), chunk_id(2, 0)]
MUTANT_SEEDS = range(1000, 1040)
NOTHING = (None, None)  # neither committed nor pending


class Model:
    """What a workload has made of each chunk, state by state."""

    def __init__(self):
        self.states = {chunk: [NOTHING] for chunk in CHUNKS}
        self.synced = dict.fromkeys(CHUNKS, 0)  # index of the state that the last sync covered
        self.cut: dict[bytes, tuple] = {}  # what the call under way would make of its chunks
        self.tagged: dict[int, tuple] = {}  # sequence -> the (version, content) it makes

    def now(self, chunk):
        return self.states[chunk][-1]

    def begin(self, changes):
        self.cut = changes

    def done(self):
        for chunk, state in self.cut.items():
            self.states[chunk].append(state)
        self.cut = {}

    def sync_covers(self, marks):
        self.synced = marks


class Workload:
    """A scripted run of updates on a few chunks; the same for the same seed."""

    def __init__(self, seed, steps, model):
        self.random = Random(seed)
        self.steps = steps
        self.model = model
        self.creates = seed < MUTANT_SEEDS.start  # planted bugs were found without
        self.sequence = 0
        self.syncing = None  # the store, while it is in a sync
        self.concurrent = 0  # mutations in this sync

    def run(self, store):
        for _ in range(self.steps):
            draw = self.random.random()
            if draw < 0.86:
                self.mutate(store, draw)
            else:
                self.sync(store)

    def mutate(self, store, draw):
        if draw < 0.5:
            self.stage(store)
        elif draw < 0.78:
            self.commit(store)
        elif draw < 0.83:
            self.drop(store)
        elif draw < 0.845 or not self.creates:
            self.discard(store)
        else:
            self.create(store)

    def on_call(self, name):
        """What the owner thread does while another one waits for the disk."""
        if self.syncing and name in ("fdatasync", "records.sync") and self.concurrent < 4:
            self.concurrent += 1
            store, self.syncing = self.syncing, None
            self.mutate(store, self.random.random() * 0.86)
            self.syncing = store

    def stage(self, store):
        chunks = self.random.sample(CHUNKS, self.random.choice([1, 1, 2]))
        requests, changes = [], {}
        for chunk in chunks:
            committed, _ = self.model.now(chunk)
            request, content = self.update(chunk, committed)
            requests.append(request)
            self.model.tagged[self.sequence] = (request.version, content)
            changes[chunk] = (committed, (request.version, content))
        self.model.begin(changes)
        results = store.stage(requests)
        assert [result.code for result in results] == [Code.OK] * len(requests), results
        self.model.done()

    def update(self, chunk, committed):
        number, old = committed or (0, b"")
        random = self.random
        offset = random.choice([0, len(old), len(old), random.randint(0, 40_000)])
        data = random.randbytes(random.choice([1, 700, 16_384, 30_000]))
        kind = random.choice([UpdateKind.WRITE] * 6 + list(UpdateKind)[:5])
        self.sequence += 1
        tag = random.choice([None, Tag(7, CHUNKS.index(chunk), self.sequence)])
        request = StageRequest(
            chunk, kind, number + 1, offset, len(data), memoryview(data), crc32c(data), 1, tag
        )
        if kind is UpdateKind.WRITE:
            padded = old[:offset].ljust(offset, b"\0")
            return request, padded + data + old[offset + len(data) :]
        if kind is UpdateKind.REPLACE:
            return request._replace(offset=0), data
        if kind is UpdateKind.REMOVE:
            return request._replace(offset=0, length=0, data=None), None
        length = random.choice([0, len(old) // 2, len(old) + 100, 70_000])
        request = request._replace(offset=0, length=length, data=None)
        if kind is UpdateKind.EXTEND:
            return request, old.ljust(length, b"\0")
        return request, old[:length].ljust(length, b"\0")

    def commit(self, store):
        ready = [chunk for chunk in CHUNKS if self.model.now(chunk)[1]]
        commits, changes = [], {}
        for chunk in ready[: self.random.choice([1, 3])]:
            version, content = self.model.now(chunk)[1]
            commits.append(Commit(chunk, version, 1))
            changes[chunk] = committed_as((version, content))
        self.model.begin(changes)
        assert set(store.commit(commits)) <= {Code.OK}
        self.model.done()

    def drop(self, store):
        changes = {
            chunk: (self.model.now(chunk)[0], None)
            for chunk in CHUNKS
            if self.model.now(chunk)[1] and self.random.random() < 0.5
        }
        self.model.begin(changes)
        store.drop(list(changes))
        self.model.done()

    def discard(self, store):
        asked = [chunk for chunk in CHUNKS if self.random.random() < 0.5]
        idle = [c for c in asked if self.model.now(c)[0] and not self.model.now(c)[1]]
        self.model.begin(dict.fromkeys(idle, NOTHING))
        assert store.discard(asked) == idle
        self.model.done()

    def create(self, store):
        requests, changes, codes = [], {}, []
        for chunk in self.random.sample(CHUNKS, 2):
            committed, pending = self.model.now(chunk)
            content = self.random.randbytes(self.random.choice([1, 16_384, 30_000]))
            self.sequence += 1
            tag = self.random.choice([None, Tag(8, CHUNKS.index(chunk), self.sequence)])
            view = memoryview(content)
            requests.append(
                StageRequest(
                    chunk, UpdateKind.WRITE, 1, 0, len(content), view, crc32c(content), 1, tag
                )
            )
            codes.append(Code.EXISTS if committed or pending else Code.OK)
            if codes[-1] is Code.OK:
                self.model.tagged[self.sequence] = (1, content)
                changes[chunk] = ((1, content), None)
        self.model.begin(changes)
        assert [result.code for result in store.create(requests)] == codes
        self.model.done()

    def sync(self, store):
        marks = {chunk: len(states) - 1 for chunk, states in self.model.states.items()}
        self.syncing, self.concurrent = store, 0
        self.random.choice([store.sync, store.tick])()
        self.syncing = None
        self.model.sync_covers(marks)


def states_found(store):
    """Each chunk's state as read from the store, every byte checked."""
    found = {}
    for chunk in CHUNKS:
        meta = store.meta(chunk)
        if meta is None:
            found[chunk] = NOTHING
            continue
        committed = pending = None
        if meta.version:
            committed = (meta.version, content_of(store, chunk, meta.length, meta.checksum))
        if meta.pending_removed:
            pending = (meta.pending_version, None)
        elif meta.pending_version:
            size, crc = meta.pending_length, meta.pending_checksum
            pending = (meta.pending_version, content_of(store, chunk, size, crc, pending=True))
        found[chunk] = (committed, pending)
    return found


def content_of(store, chunk, length, checksum, *, pending=False):
    buffer = bytearray(length)
    piece = Piece(chunk, 0, length)
    [result] = store.read([piece], [memoryview(buffer)], pending=pending, verify=True)
    assert (result.code, result.length) == (Code.OK, length), result
    assert crc32c(buffer) == checksum
    return bytes(buffer)


def check_after_process_crash(store, model):
    found = states_found(store)
    whole_before = all(found[chunk] == model.now(chunk) for chunk in CHUNKS)
    after = {chunk: model.cut.get(chunk, model.now(chunk)) for chunk in CHUNKS}
    assert whole_before or found == after


def check_after_power_loss(store, model):
    for chunk, (committed, pending) in states_found(store).items():
        possible = model.states[chunk][model.synced[chunk] :]
        possible += [model.cut[chunk]] if chunk in model.cut else []
        assert committed in [state[0] for state in possible]
        lost = [None] if len(possible) > 1 else []
        assert pending in [state[1] for state in possible] + lost
        assert pending == possible[0][1] or not synced_is_lost(possible, committed)


def synced_is_lost(states, committed):
    """What was synced while it was pending, and then committed, is neither there nor replaced."""
    (_, pending), *later = states
    was_committed = later and pending and later[0] == committed_as(pending)
    return was_committed and committed not in [state[0] for state in later]


def committed_as(pending):
    version, content = pending
    return (None if content is None else (version, content), None)


def check_channels(store, model):
    """No channel says done for an update that is not: a client would believe it."""
    found = states_found(store)
    for _, _, record in store.scan_channels(None, 100):
        states = [*model.states[record.chunk], model.cut.get(record.chunk, NOTHING)]
        version, content = model.tagged[record.sequence]
        made = (version, content) if content is not None else None
        done_at = next(i for i, state in enumerate(states) if state[0] == made and i)
        now_at = max(i for i, state in enumerate(states) if state[0] == found[record.chunk][0])
        assert now_at >= done_at, f"{record} is done, but the chunk is older"


def check_works_on(store):
    for chunk in CHUNKS:
        meta = store.meta(chunk)
        version = meta.version + 1 if meta else 1
        data = chunk * 1000
        request = StageRequest(
            chunk, UpdateKind.WRITE, version, 5, len(data), memoryview(data), crc32c(data)
        )
        assert store.stage([request])[0].code is Code.OK
        assert store.commit([Commit(chunk, version, 1)]) == [Code.OK]
    store.sync()
    states_found(store)
    assert store.check() == []


def run_and_stop(seed, steps, stop_at):
    """Run a workload until call ``stop_at``; the machine, the model, whether it was reached."""
    machine, model = Machine(), Model()
    workload = Workload(seed, steps, model)
    random = Random(seed * 1000 + (stop_at or 0))
    files = FaultyFiles(machine, stop_at=stop_at, random=random, on_call=workload.on_call)
    try:
        store = DiskChunkStore(files, ROOT, SETTINGS)
        workload.run(store)
        store.close()
    except Stopped:
        return machine, model, files
    return machine, model, files


def cut_everywhere(seed, steps, powers):
    """Stop at each call of a workload in turn; ``powers``: power cuts to try at each."""
    total = run_and_stop(seed, steps, None)[2].calls
    assert total > steps
    for stop_at in range(1, total + 1):
        if not powers:
            machine, model, _ = run_and_stop(seed, steps, stop_at)
            store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
            check_after_process_crash(store, model)
            check_channels(store, model)
            assert store.check() == []
            check_works_on(store)
        for power in range(powers):
            machine, model, _ = run_and_stop(seed, steps, stop_at)
            random = Random(f"{seed} {stop_at} {power}")
            machine.lose_power(random)
            store = reopen_among_power_cuts(machine, random)
            check_after_power_loss(store, model)
            check_channels(store, model)
            assert store.check() == []
            check_works_on(store)


def reopen_among_power_cuts(machine, random):
    """Open the store; the power may fail in the middle of that, too."""
    while random.random() < 0.3:
        try:
            DiskChunkStore(
                FaultyFiles(machine, stop_at=random.randint(1, 8), random=random), ROOT, SETTINGS
            )
        except Stopped:
            machine.lose_power(random)
        else:
            break
    return DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)


def test_what_was_synced_before_its_commit_survives_what_came_after_it():
    """A client's synced write is staged, synced, committed, acknowledged; the commit is not synced.

    Whatever replaces it is not on stable storage yet, nor is what lies in a block that it left.
    """
    chunk, other, *_ = CHUNKS
    for seed in range(100):
        machine = Machine()
        store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
        store_version(store, chunk, 1, b"1" * 30_000)
        store.sync()
        store_version(store, chunk, 2, b"2" * 30_000, before_commit=store.sync)
        store_version(store, chunk, 3, b"3" * 30_000)
        store_version(store, other, 1, b"4" * 30_000)
        machine.lose_power(Random(seed))
        reopened = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
        found = [state for state in states_found(reopened)[chunk] if state]
        assert found[-1] in [(2, b"2" * 30_000), (3, b"3" * 30_000)], f"seed {seed}"


def store_version(store, chunk, version, data, before_commit=lambda: None):
    request = StageRequest(
        chunk, UpdateKind.WRITE, version, 0, len(data), memoryview(data), crc32c(data), 1
    )
    assert store.stage([request])[0].code is Code.OK
    before_commit()
    assert store.commit([Commit(chunk, version, 1)]) == [Code.OK]


@pytest.mark.parametrize("seed", [1, 2])
def test_process_stopped_at_every_call_keeps_old_or_new_state(seed):
    cut_everywhere(seed, steps=40, powers=0)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_power_cut_at_every_call_keeps_synced_state_and_never_a_mix(seed):
    cut_everywhere(seed, steps=40, powers=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_power_cuts_of_many_workloads_keep_synced_state(seed):
    cut_everywhere(seed, steps=60, powers=2)


def no_undo(monkeypatch):
    monkeypatch.setattr(Epochs, "new_undo", lambda self, chunk, old: ())


def undo_of_the_durable_version_only(monkeypatch):
    new_undo = Epochs.new_undo
    monkeypatch.setattr(
        Epochs, "new_undo", lambda self, chunk, old: new_undo(self, chunk, old)[-1:]
    )


def undo_of_the_last_version_only(monkeypatch):
    new_undo = Epochs.new_undo
    monkeypatch.setattr(Epochs, "new_undo", lambda self, chunk, old: new_undo(self, chunk, old)[:1])


def undo_blocks_are_not_held(monkeypatch):
    def replaced(self, chunk, old, new, undo):
        if new:
            self._undo.setdefault(new.epoch, {})[chunk] = undo
        self._allocator.release(old.size_class, old.block)

    monkeypatch.setattr(Epochs, "replaced", replaced)


def a_commit_makes_a_version_of_its_own_epoch(monkeypatch):
    publish = Publisher.publish_commits

    def publish_as_new(self, ready):
        epoch = self._epochs.current
        publish(self, {c: (v._replace(epoch=epoch), p) for c, (v, p) in ready.items()})

    monkeypatch.setattr(Publisher, "publish_commits", publish_as_new)


def discarded_blocks_are_not_held(monkeypatch):
    def discarded(self, chunks, versions):
        for chunk, version in zip(chunks, versions.tolist(), strict=True):
            self._forget(chunk)
            self._allocator.release(version[8], version[3])

    monkeypatch.setattr(Epochs, "discarded", discarded)


def data_is_not_synced(monkeypatch):
    monkeypatch.setattr(DataFiles, "sync", lambda self, classes: None)


def writes_during_a_sync_belong_to_its_epoch(monkeypatch):
    def end(self):
        return self.current

    def made_durable(self, epoch):
        finish(self, epoch)
        self.current = epoch + 1

    finish = Epochs.made_durable
    monkeypatch.setattr(Epochs, "end", end)
    monkeypatch.setattr(Epochs, "made_durable", made_durable)


def a_power_cut_goes_unnoticed(monkeypatch):
    monkeypatch.setattr(FaultyFiles, "boot_id", lambda self: "boot")


def cut_bytes_are_written_again_in_place(monkeypatch):
    share = Stager._share

    def forgetful(self, base, change):
        version = share(self, base, change)
        return version._replace(high=version.length)

    monkeypatch.setattr(Stager, "_share", forgetful)


def a_pending_append_is_written_again_in_place(monkeypatch):
    stage = Stager.stage
    monkeypatch.setattr(
        Stager, "stage", lambda self, base, _, update: stage(self, base, NO_VERSION, update)
    )


FOUND_BY = {  # others are found by the first few
    undo_of_the_last_version_only: 1029,
    cut_bytes_are_written_again_in_place: 1021,
    a_commit_makes_a_version_of_its_own_epoch: 1004,
}


@pytest.mark.parametrize(
    ("mutant", "powers"),
    [
        (no_undo, 3),
        pytest.param(undo_of_the_durable_version_only, 3, marks=pytest.mark.long),
        pytest.param(undo_of_the_last_version_only, 3, marks=pytest.mark.long),
        (undo_blocks_are_not_held, 3),
        (a_commit_makes_a_version_of_its_own_epoch, 3),
        (data_is_not_synced, 3),
        (writes_during_a_sync_belong_to_its_epoch, 3),
        (a_power_cut_goes_unnoticed, 3),
        pytest.param(cut_bytes_are_written_again_in_place, 3, marks=pytest.mark.long),
        (a_pending_append_is_written_again_in_place, 0),
    ],
)
def test_seeded_bug_is_seen(mutant, powers, monkeypatch):
    """With the seed that found it last time first."""
    mutant(monkeypatch)
    seeds = MUTANT_SEEDS
    with pytest.raises((AssertionError, Fs3Error)):
        cut_many([FOUND_BY.get(mutant, seeds.start), *seeds], powers)


def cut_many(seeds, powers):
    for seed in seeds:
        cut_everywhere(seed, steps=40, powers=powers)
