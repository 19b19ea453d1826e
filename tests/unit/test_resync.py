"""Resync: which chunks differ, and that two replicas end equal whatever they held."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from replica_rig import OFF, Rig, S, Y, chain, write

from fs3.core import messages as m
from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag
from fs3.core.limits import Limits
from fs3.core.resync import Resync, differing
from fs3.core.types import TargetId, chunk_id

_metas = st.builds(
    ChunkMeta,
    version=st.integers(0, 3),
    length=st.integers(0, 2),
    checksum=st.integers(0, 2),
    pending_version=st.sampled_from([0, 0, 0, 4]),
)
_tables = st.dictionaries(st.integers(0, 12).map(lambda slot: chunk_id(1, slot)), _metas)
_contents = st.dictionaries(
    st.integers(0, 9), st.tuples(st.integers(1, 3), st.binary(min_size=1, max_size=3))
)


@given(_tables, _tables)
def test_differing_is_what_a_plain_comparison_finds(mine, theirs):
    def state(meta: ChunkMeta | None) -> object:
        if meta is None or not meta.version:
            return None
        return meta.version, meta.length, meta.checksum

    expected = set()
    for chunk in {*mine, *theirs}:
        junk = chunk in theirs and state(mine.get(chunk)) is None
        pending = chunk in theirs and theirs[chunk].pending_version
        other = state(mine.get(chunk)) != state(theirs.get(chunk))
        if junk or pending or other:
            expected.add(chunk)
    found = differing(sorted(mine.items()), sorted(theirs.items()))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_removals_come_before_copies():
    a, b = chunk_id(1, 1), chunk_id(1, 2)
    assert differing([(a, ChunkMeta(version=1))], [(b, ChunkMeta(version=1))]) == [b, a]


def run(source: Rig, sink: Rig, effects: list[m.Effect], steps: int = 400) -> None:
    """Carry messages between the two until the sink is up to date."""
    rigs = {1: source, 2: sink}
    queue = [(1, e) for e in effects]
    for _ in range(steps):
        if sink.core.uptodate:
            return
        if not queue:
            for rig in rigs.values():
                rig.now_ms += 1000
            queue += [(1, e) for e in source.settle(m.Tick())]
        _, effect = queue.pop(0)
        if not isinstance(effect, m.Send):
            continue
        message = effect.message
        if isinstance(message, m.Forward) and message.data is None and message.length:
            message = message._replace(data=source.content(message.chunk))
        to = int(message.route.destination)
        queue += [(to, e) for e in rigs[to].settle(message)]
    raise AssertionError("the resync did not end")


def content(rig: Rig) -> dict[bytes, tuple[int, bytes | None]]:
    return {c: (meta.version, rig.content(c)) for c, meta in rig.table.scan(None, 100)}


@settings(max_examples=60, deadline=None)
@given(_contents, _contents, st.integers(1, 4), st.integers(1, 3))
def test_a_syncing_replica_ends_equal_whatever_it_held(mine, theirs, page, window):
    limits = Limits(resync_page=page, resync_window=window)
    pair = chain(2, (1, S), (2, Y))
    source, sink = Rig(1, chain(1, (1, S), (2, OFF))), Rig(2, pair, limits=limits)
    source.core.limits = limits
    for rig, held in ((source, mine), (sink, theirs)):
        for slot, (version, data) in held.items():
            rig.put(version, data, chunk_id(1, slot))
    run(source, sink, source.settle(m.ChainChanged(pair)))
    assert content(sink) == content(source)


def test_exactly_once_records_are_brought_too():
    pair = chain(2, (1, S), (2, Y))
    source, sink = Rig(1, chain(1, (1, S), (2, OFF))), Rig(2, pair)
    source.settle(write("a", b"x", tag=Tag(9, 1, 5)), write("b", b"y", tag=Tag(9, 2, 7)))
    run(source, sink, source.settle(m.ChainChanged(pair)))
    assert sink.table.channel(9, 1) == source.table.channel(9, 1)
    assert sink.table.channel(9, 2).sequence == 7


def test_a_broken_off_resync_starts_over_with_what_is_there_already():
    pair = chain(2, (1, S), (2, Y))
    source, sink = Rig(1, chain(1, (1, S), (2, OFF))), Rig(2, pair)
    for slot in range(5):
        source.put(1, b"x", chunk_id(1, slot))
        if slot < 3:
            sink.put(1, b"x", chunk_id(1, slot))
    effects = source.settle(m.ChainChanged(pair))
    page = sink.settle(effects[0].message)[0].message
    copies = [e.message.chunk for e in source.settle(page) if isinstance(e.message, m.Forward)]
    assert copies == [chunk_id(1, 3), chunk_id(1, 4)]


def _page(records=(), *, round=1, last=True):
    route = m.Route(TargetId(2), TargetId(1), 1, 2)
    return m.SyncPage(route, round, b"", tuple(records), last)


class _Table:
    """A table of one page."""

    def __init__(self, rows: dict[bytes, ChunkMeta]) -> None:
        self.rows = rows

    def scan(self, after, limit):
        return [r for r in sorted(self.rows.items()) if after is None or r[0] > after][:limit]

    def scan_channels(self, after, limit):
        return [] if after else [(9, 1, ChannelRecord(5, chunk_id(1, 1), 1, 0, 0))]


ROUTE = m.Route(TargetId(1), TargetId(2), 1, 2)
K1, K2 = chunk_id(1, 1), chunk_id(1, 2)


def test_a_chunk_that_a_write_reached_meanwhile_is_not_different():
    """Otherwise a chain that is written all the time would never be found equal."""
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10, window=1)
    resync.messages(ROUTE, table, 0)
    resync.reached(K1)
    resync.on_page(_page([(K1, ChunkMeta(version=4))]), table, lambda _: False)
    assert resync.next_chunk(0, 0) is None
    assert isinstance(resync.messages(ROUTE, table, 0)[0], m.SyncChannels)


def test_a_chunk_that_is_being_forwarded_is_not_copied_but_waited_for():
    """The forward may be lost and sent again: before it arrives the two are not equal."""
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10, window=1)
    resync.on_page(_page(), table, lambda chunk: chunk == K1)
    assert resync.next_chunk(0, 0) is None
    assert resync.messages(ROUTE, table, 0) == []
    resync.reached(K1)
    assert isinstance(resync.messages(ROUTE, table, 0)[0], m.SyncChannels)


def test_comparing_waits_for_updates_that_passed_before_the_successor_came():
    """Committed nowhere yet and no more forwarded: both tables look equal, and are not for long."""
    rig = Rig(1, chain(1, (1, S), (2, OFF)))
    stage = rig.step(write("a", b"x"))
    commit = rig.step(rig.store(stage)[0])
    assert rig.settle(m.ChainChanged(chain(2, (1, S), (2, Y)))) == []
    rig.settle(*rig.store(commit))
    rig.now_ms = 20
    (request,) = rig.settle(m.Tick())
    assert isinstance(request.message, m.SyncRequest)


def test_a_round_that_found_differences_is_followed_by_another():
    table = _Table({K1: ChunkMeta(version=5), K2: ChunkMeta(version=5)})
    resync = Resync(page=10, window=1)
    resync.on_page(_page(), table, lambda _: False)
    assert resync.next_chunk(0, 0) == K1
    assert resync.next_chunk(0, 0) is None  # the window
    resync.finished(K1)
    assert resync.next_chunk(0, 0) == K2
    resync.finished(K2)
    (request,) = resync.messages(ROUTE, table, 0)
    assert (request.round, request.after, request.done, request.total) == (2, b"", 0, 2)


def test_a_second_answer_to_the_same_question_is_ignored():
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10, window=1)
    resync.on_page(_page(), table, lambda _: False)
    resync.on_page(_page(), table, lambda _: False)
    assert resync.next_chunk(0, 0) == K1
    resync.finished(K1)
    assert resync.next_chunk(0, 0) is None


def test_an_unanswered_request_is_asked_again_after_a_while():
    table = _Table({})
    resync = Resync(page=10, window=1)
    assert resync.messages(ROUTE, table, 0)
    assert resync.messages(ROUTE, table, 999) == []
    assert resync.messages(ROUTE, table, 1000)


def test_copies_keep_to_the_rate():
    table = _Table({chunk_id(1, slot): ChunkMeta(version=1, length=100) for slot in range(3)})
    resync = Resync(page=10, window=8)
    resync.on_page(_page(), table, lambda _: False)
    brought = []
    for now_ms in range(0, 3000, 100):
        if (chunk := resync.next_chunk(now_ms, 100)) is not None:
            resync.charge(100)
            resync.finished(chunk)
            brought.append(now_ms)
    assert brought == [0, 1000, 2000]


def test_the_end_is_said_again_until_it_is_heard():
    table = _Table({})
    resync = Resync(page=10, window=1)
    resync.on_page(_page(), table, lambda _: False)
    resync.messages(ROUTE, table, 0)
    resync.on_channels(m.SyncChannels(ROUTE, (9, 1), ()))
    assert resync.messages(ROUTE, table, 0) == [m.SyncDone(ROUTE)]
    assert resync.done
    assert resync.messages(ROUTE, table, 500) == []
    assert resync.messages(ROUTE, table, 1000) == [m.SyncDone(ROUTE)]
