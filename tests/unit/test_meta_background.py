"""What a metaserver does on the side: trims after a crash, garbage, files of dead clients.

On the memory engine, a clock that a test moves, and storageservers that are a dict of lengths.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from fs3.core.layout import Layout
from fs3.core.types import ChainId
from fs3.errors import Code, Fs3Error
from fs3.metaserver.chunk_control import TrimItem
from fs3.metaserver.clients import Clients
from fs3.metaserver.gc import GarbageCollector
from fs3.metaserver.kv.memory import MemoryEngine
from fs3.metaserver.lengths import Lengths
from fs3.metaserver.namespace import (
    Handle,
    InodeAllocator,
    NewInode,
    OpenMode,
    Wrote,
    close_file,
    create,
    get_attributes,
    make_root,
    once,
    set_attributes,
    settle_length,
    trims_next,
    unlink,
)
from fs3.metaserver.periodic import Periodic
from fs3.metaserver.pruner import ANSWERS_KEPT_NS, Pruner, forget_answers
from fs3.metaserver.settings import GcSettings
from fs3.metaserver.truncations import Truncations
from fs3.types import ROOT_INODE, Credentials, Inode, SetAttributes

ROOT = Credentials(uid=0, gid=0)
CHUNK = 64 << 10
TABLES = {1: tuple(map(ChainId, (1, 2)))}
LEASE_MS = 60_000


class HandClock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ns(self) -> int:
        return self.now_ms * 1_000_000


class DictControl:
    """ChunkControl's two calls on ``{(owner, slot): length}``; chains in ``down`` refuse."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int], int] = {}
        self.inodes: dict[int, Inode] = {}
        self.down: set[int] = set()
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def put(self, inode: Inode, slot: int, length: int = CHUNK) -> None:
        self.inodes[inode.inode] = inode
        self.chunks[inode.inode, slot] = length

    def trim(
        self, chain: ChainId, items: Sequence[TrimItem], chunks_max: int, wait_s: float
    ) -> int:
        self.calls.append((chain, tuple(item.owner for item in items)))
        self._check(chain)
        removed = 0
        for item in items:
            for owner, slot in list(self.chunks):
                on_chain = owner == item.owner and self._chain(owner, slot) == chain
                if on_chain and slot >= item.keep_slots:
                    del self.chunks[owner, slot]
                    removed += 1
            if item.cut and (item.owner, item.cut[0]) in self.chunks:
                slot, length = item.cut
                self.chunks[item.owner, slot] = min(length, self.chunks[item.owner, slot])
        return removed

    def written_length(self, inode: Inode, wait_s: float) -> int:
        for chain in inode.layout.chains:
            self._check(chain)
        ends = [
            slot * CHUNK + n for (owner, slot), n in self.chunks.items() if owner == inode.inode
        ]
        return max(ends, default=0)

    def of(self, inode: Inode) -> dict[int, int]:
        return {slot: n for (owner, slot), n in self.chunks.items() if owner == inode.inode}

    def _chain(self, owner: int, slot: int) -> int:
        chains = self.inodes[owner].layout.chains
        return chains[slot % len(chains)]

    def _check(self, chain: int) -> None:
        if chain in self.down:
            raise Fs3Error(Code.NOT_SERVING, f"chain {chain} is down")


class World:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.engine = MemoryEngine()
        self.control = DictControl()
        self.engine.run(make_root, Layout(CHUNK, 2), self.clock.wall_ns())
        self.ids = InodeAllocator(self.engine)
        self.truncations = Truncations(self.engine, self.control, 100, 1.0, at_once=2)
        self.lengths = Lengths(self.engine, self.control, self.truncations, self.clock, 1.0)
        self.clients = Clients(self.clock, LEASE_MS)
        self.pruner = Pruner(self.engine, self.clients, self.lengths, self.clock)
        settings = GcSettings(interval_ms=1000, files=3, chunks=100, retry_ms_max=4000)
        self.gc = GarbageCollector(self.engine, self.control, self.clock, settings)

    def create(self, name: str, *, client: int = 7, session: int = 1, stripe: int = 2) -> Inode:
        new = NewInode(inode=self.ids.take(), who=ROOT, now_ns=self.clock.wall_ns())
        mode = OpenMode(write=True, handle=Handle(client, session))
        return self.engine.run(
            create, ROOT_INODE, name, new, TABLES, mode=mode, layout=Layout(0, stripe, 0)
        ).inode

    def remove(self, inode: Inode, name: str, *, client: int = 7, session: int = 1) -> None:
        now_ns = self.clock.wall_ns()
        self.engine.run(close_file, inode.inode, Handle(client, session), now_ns)
        self.engine.run(unlink, ROOT_INODE, name, ROOT, now_ns)

    def fill(self, inode: Inode, chunks: int) -> None:
        """``chunks`` whole chunks, settled."""
        for slot in range(chunks):
            self.control.put(inode, slot)
        wrote = Wrote(chunks * CHUNK, inode.truncate_version)
        self.engine.run(settle_length, inode.inode, wrote, self.clock.wall_ns())

    def cut(self, inode: Inode, length: int) -> None:
        """The transaction of a truncation, without what follows it: as a crash leaves it."""
        change = SetAttributes(length_bytes=length)
        self.engine.run(set_attributes, inode.inode, change, ROOT, self.clock.wall_ns())

    def inode(self, inode: Inode) -> Inode:
        return self.engine.run(get_attributes, inode.inode)


@pytest.fixture
def world() -> World:
    return World()


# Trims.


def test_trim_that_a_crash_left_is_done_by_the_background(world):
    file = world.create("f")
    world.fill(file, 5)
    world.cut(file, CHUNK + 10)
    world.truncations.resume()
    assert world.control.of(file) == {0: CHUNK, 1: 10}
    assert world.engine.run(trims_next, 10) == []


def test_trim_that_fails_stays_and_does_not_keep_others_from_theirs(world):
    first, second = world.create("a", stripe=1), world.create("b", stripe=1)
    while second.layout.chains == first.layout.chains:
        second = world.create(f"b{second.inode}", stripe=1)
    for file in (first, second):
        world.control.put(file, 0)
        world.cut(file, 0)
    world.control.down = set(first.layout.chains)
    with pytest.raises(Fs3Error, match="did not trim"):
        world.truncations.resume()
    assert world.control.of(second) == {}
    assert [trim.inode.inode for trim in world.engine.run(trims_next, 10)] == [first.inode]


def test_second_cut_while_the_first_is_carried_out_is_done_too(world):
    file = world.create("f")
    world.fill(file, 6)
    world.cut(file, 4 * CHUNK)
    trim = world.control.trim

    def cut_again_first(*arguments: object) -> int:
        world.control.trim = trim
        world.cut(file, CHUNK)
        return trim(*arguments)

    world.control.trim = cut_again_first
    world.truncations.finish(file.inode)
    assert set(world.control.of(file)) == {0}
    assert world.engine.run(trims_next, 10) == []


def test_too_many_truncations_that_wait_are_told_to_ask_again(world):
    files = [world.create(f"f{i}") for i in range(3)]
    entered, leave = threading.Semaphore(0), threading.Event()
    trim = world.control.trim

    def wait(*arguments: object) -> int:
        entered.release()
        assert leave.wait(60)
        return trim(*arguments)

    world.control.trim = wait
    for file in files:
        world.control.put(file, 0)
        world.cut(file, 0)
    busy = [
        threading.Thread(target=world.truncations.finish, args=(file.inode,)) for file in files[:2]
    ]
    for thread in busy:
        thread.start()
        assert entered.acquire(timeout=60)
    with pytest.raises(Fs3Error, match="too many truncations") as caught:
        world.truncations.finish(files[2].inode)
    assert caught.value.code is Code.MAYBE_APPLIED
    leave.set()
    for thread in busy:
        thread.join()
    world.truncations.finish(files[2].inode)
    assert not world.control.chunks


# Garbage.


def test_removed_files_are_freed_many_in_one_call(world):
    files = [world.create(f"f{i}") for i in range(3)]
    for i, file in enumerate(files):
        world.control.put(file, 0)
        world.remove(file, f"f{i}")
    assert world.gc.round() == 3
    assert not world.control.chunks
    ids = tuple(file.inode for file in files)
    assert sorted(world.control.calls) == [(1, ids), (2, ids)]
    assert world.gc.round() == 0


def test_chain_that_is_down_keeps_only_its_own_files(world):
    """More files wait for it than a round takes up, and others still come to their turn."""
    waiting = [world.create(f"w{i}", stripe=1) for i in range(12)]
    down = waiting[0].layout.chains[0]
    for i, file in enumerate(waiting):
        world.control.put(file, 0)
        world.remove(file, f"w{i}")
    world.control.down = {down}
    world.gc.round()
    for _ in range(5):
        world.clock.now_ms += 10
        world.gc.round()
    left = {world.control.inodes[owner].layout.chains[0] for owner, _ in world.control.chunks}
    assert left == {down}


def test_chain_that_is_down_is_asked_less_and_less_often(world):
    file = world.create("f", stripe=1)
    world.remove(file, "f")
    world.control.down = set(file.layout.chains)
    start_ms, asked = world.clock.now_ms, []
    for _ in range(200):
        before = len(world.control.calls)
        world.gc.round()
        asked += [world.clock.now_ms - start_ms] * (len(world.control.calls) - before)
        world.clock.now_ms += 100
    assert asked == [0, 1000, 3000, 7000, 11_000, 15_000, 19_000]
    world.control.down.clear()
    world.clock.now_ms += 4000
    assert world.gc.round() == 1


# Dead clients.


def test_client_that_is_silent_for_a_lease_loses_its_sessions(world):
    file = world.create("f", client=7)
    world.clients.heard(7)
    world.clock.now_ms += LEASE_MS - 1
    assert world.pruner.round() == 0
    world.clock.now_ms += 1
    assert world.pruner.round() == 1
    assert world.inode(file).length_bytes == 0


def test_what_a_dead_writer_wrote_counts_to_its_last_chunk(world):
    file = world.create("f", client=7)
    world.control.put(file, 0)
    world.control.put(file, 3, 77)
    world.clock.now_ms += LEASE_MS
    world.pruner.round()
    assert world.inode(file).length_bytes == 3 * CHUNK + 77


def test_file_that_a_dead_client_had_unlinked_becomes_garbage(world):
    file = world.create("f", client=7)
    world.control.put(file, 0)
    world.engine.run(unlink, ROOT_INODE, "f", ROOT, world.clock.wall_ns())
    assert world.gc.round() == 0
    world.clock.now_ms += LEASE_MS
    world.pruner.round()
    assert world.gc.round() == 1
    assert not world.control.chunks


def test_living_client_keeps_its_files(world):
    world.create("f", client=7)
    for _ in range(5):
        world.clock.now_ms += LEASE_MS // 2
        world.clients.heard(7)
        assert world.pruner.round() == 0


def test_client_unknown_to_a_restarted_metaserver_has_a_whole_lease_to_speak_up(world):
    world.create("f", client=7)
    world.clock.now_ms += 10 * LEASE_MS
    clients = Clients(world.clock, LEASE_MS)
    pruner = Pruner(world.engine, clients, world.lengths, world.clock)
    world.clock.now_ms += LEASE_MS - 1
    assert pruner.round() == 0
    world.clock.now_ms += 1
    assert pruner.round() == 1


def test_client_whose_chains_are_down_waits_and_others_do_not(world):
    first, second = world.create("a", client=7, stripe=1), world.create("b", client=8, stripe=1)
    while second.layout.chains == first.layout.chains:
        second = world.create(f"b{second.inode}", client=8, stripe=1, session=second.inode)
    world.control.put(first, 0)
    world.control.down = set(first.layout.chains)
    world.clock.now_ms += LEASE_MS
    with pytest.raises(Fs3Error, match="is down"):
        world.pruner.round()
    world.control.down.clear()
    assert world.pruner.round() == 1
    assert world.inode(first).length_bytes == CHUNK


def test_client_that_speaks_up_while_its_files_are_measured_keeps_them(world):
    world.create("f", client=7)
    measured = world.control.written_length

    def back_meanwhile(inode: Inode, wait_s: float) -> int:
        world.clients.heard(7)
        return measured(inode, wait_s)

    world.control.written_length = back_meanwhile
    world.clock.now_ms += LEASE_MS
    assert world.pruner.round() == 0
    world.control.written_length = measured
    world.clock.now_ms += LEASE_MS
    assert world.pruner.round() == 1


def test_metaserver_that_was_stopped_itself_blames_no_client_for_its_silence(world):
    world.create("f", client=7)
    world.clients.heard(7)
    world.clients.awake()
    world.clock.now_ms += 2 * LEASE_MS  # SIGSTOP
    assert world.pruner.round() == 0
    for _ in range(4):
        world.clock.now_ms += LEASE_MS // 4
        world.clients.awake()
    assert world.pruner.round() == 1


def test_clients_that_are_gone_are_not_counted(world):
    world.clients.heard(1)
    world.clock.now_ms += LEASE_MS // 2
    world.clients.heard(2)
    world.clock.now_ms += LEASE_MS // 2
    assert len(world.clients) == 1
    world.clients.forget_gone()
    assert len(world.clients) == 1
    assert world.clients.is_gone(1)


def test_answers_are_kept_for_half_an_hour(world):
    def ask(now_ns: int, answer: bytes) -> bytes:
        return world.engine.run(lambda txn: once(txn, 1, 2, now_ns, lambda: answer))

    ask(world.clock.wall_ns(), b"first")
    world.clock.now_ms += ANSWERS_KEPT_NS // 1_000_000
    forget_answers(world.engine, world.clock)
    assert ask(world.clock.wall_ns(), b"second") == b"first"
    world.clock.now_ms += 1
    forget_answers(world.engine, world.clock)
    assert ask(world.clock.wall_ns(), b"third") == b"third"


# The threads that do all this.


def test_duty_goes_on_after_a_failure_with_a_code():
    rounds, third = [], threading.Event()

    def work() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 3:
            third.set()
        raise Fs3Error(Code.NOT_SERVING, "chain 1 is down")

    duty = Periodic("work", work, 0.001, 0.002, on_death=lambda name: pytest.fail(name))
    duty.start()
    assert third.wait(60)
    duty.stop()
    assert duty.join(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_duty_that_has_a_bug_says_so_and_ends():
    died: list[str] = []
    duty = Periodic("work", lambda: {}["missing"], 0.001, 0.002, died.append)
    duty.start()
    assert duty.join(60)
    assert died == ["work"]
