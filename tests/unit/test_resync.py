"""Resync: which chunks differ, and that two replicas end equal whatever they held."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from replica_rig import OFF, Rig, S, Y, chain, forward, route, write

from fs3.core import messages as m
from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag, UpdateKind
from fs3.core.limits import Limits
from fs3.core.resync import Resync, differing
from fs3.core.types import LocalState, TargetId, chunk_id

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
        junk = state(theirs.get(chunk)) is not None and state(mine.get(chunk)) is None
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
    limits = Limits(resync_page=page, resync_window=window, resync_flush_bytes=2)
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


def test_a_pending_version_that_is_being_dropped_is_no_difference():
    """The disk is slow. Copies would change nothing, and be asked for again and again."""
    table = Rig(2, chain(1, (1, S), (2, S))).table
    dropped = Rig(2, chain(1, (1, S), (2, S)), table=table)
    dropped.put(3, b"x", K1)
    for number, (chunk, version) in enumerate(((K1, 4), (K2, 1)), 1):
        dropped.store(dropped.step(forward(route(1, 2), number, version, b"y", chunk=chunk)))
    source = Rig(1, chain(1, (1, S), (2, OFF)))
    source.put(3, b"x", K1)
    pair = chain(2, (1, S), (2, Y))
    sink = Rig(2, pair, table=table)
    assert set(sink.started) == {m.Drop(K1), m.Drop(K2)}
    (request,) = source.settle(m.ChainChanged(pair))
    (page,) = sink.step(request.message)
    assert _brought(source.settle(page.message)) == []


def test_a_pending_version_that_is_under_way_is_a_difference():
    pair = chain(2, (1, S), (2, Y))
    source, sink = Rig(1, chain(1, (1, S), (2, OFF))), Rig(2, pair)
    source.put(3, b"x", K1)
    sink.put(3, b"x", K1)
    link = route(1, 2, 2)
    sink.store(sink.step(forward(link, 1, 4, b"y", kind=UpdateKind.REPLACE, chunk=K1)))
    (request,) = source.settle(m.ChainChanged(pair))
    (page,) = sink.step(request.message)
    assert [copy.chunk for copy in _brought(source.settle(page.message))] == [K1]


def _page(records=(), *, round=1, last=True):
    route = m.Route(TargetId(2), TargetId(1), 1, 2)
    return m.SyncPage(route, round, b"", tuple(records), last)


class _Table:
    """A table of one page."""

    def __init__(self, rows: dict[bytes, ChunkMeta]) -> None:
        self.rows = rows

    def scan(self, after, limit):
        return [r for r in sorted(self.rows.items()) if after is None or r[0] > after][:limit]

    def count(self):
        return len(self.rows)

    def scan_channels(self, after, limit):
        return [] if after else [(9, 1, ChannelRecord(5, chunk_id(1, 1), 1, 0, 0))]


ROUTE = m.Route(TargetId(1), TargetId(2), 1, 2)
K1, K2 = chunk_id(1, 1), chunk_id(1, 2)


def test_a_chunk_that_a_write_reached_meanwhile_is_not_different():
    """Otherwise a chain that is written all the time would never be found equal."""
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10)
    resync.messages(ROUTE, table, 0)
    resync.reached(K1)
    resync.on_page(_page([(K1, ChunkMeta(version=4))]), table, lambda _: False)
    assert resync.next_chunk() is None
    assert isinstance(resync.messages(ROUTE, table, 0)[0], m.SyncChannels)


def test_a_chunk_that_is_being_forwarded_is_not_copied_but_waited_for():
    """The forward may be lost and sent again: before it arrives the two are not equal."""
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10)
    resync.on_page(_page(), table, lambda chunk: chunk == K1)
    assert resync.next_chunk() is None
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
    resync = Resync(page=10)
    resync.on_page(_page(), table, lambda _: False)
    assert [resync.next_chunk() for _ in range(3)] == [K1, K2, None]
    resync.finished(K1)
    assert resync.messages(ROUTE, table, 0) == []
    resync.finished(K2)
    (request,) = resync.messages(ROUTE, table, 0)
    assert (request.round, request.after, request.done, request.total) == (2, b"", 0, 2)


def test_a_second_answer_to_the_same_question_is_ignored():
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10)
    resync.on_page(_page(), table, lambda _: False)
    resync.on_page(_page(), table, lambda _: False)
    assert resync.next_chunk() == K1
    resync.finished(K1)
    assert resync.next_chunk() is None


def test_an_unanswered_request_is_asked_again_after_a_while():
    table = _Table({})
    resync = Resync(page=10)
    assert resync.messages(ROUTE, table, 0)
    assert resync.messages(ROUTE, table, 999) == []
    assert resync.messages(ROUTE, table, 1000)


def test_a_new_link_asks_at_once_for_what_the_old_one_may_have_lost():
    pair = chain(2, (1, S), (2, Y))
    source = Rig(1, chain(1, (1, S), (2, OFF)))
    (first,) = source.settle(m.ChainChanged(pair))
    assert source.settle(m.Tick()) == []
    assert source.settle(m.PeerUp(TargetId(2))) == [first]


def test_what_is_lost_of_an_answer_does_not_make_a_chunk_different_that_a_write_reached():
    """Asked again, the page may be the answer to the first question."""
    table = _Table({K1: ChunkMeta(version=5)})
    resync = Resync(page=10)
    resync.messages(ROUTE, table, 0)
    resync.reached(K1)
    resync.ask_again()
    assert resync.messages(ROUTE, table, 0)
    resync.on_page(_page([(K1, ChunkMeta(version=4))]), table, lambda _: False)
    assert resync.next_chunk() is None


def test_a_chunk_that_a_write_reached_before_its_turn_came_is_not_copied():
    table = _Table({K1: ChunkMeta(version=5), K2: ChunkMeta(version=5)})
    resync = Resync(page=10)
    resync.on_page(_page(), table, lambda _: False)
    resync.reached(K1)
    assert [resync.next_chunk(), resync.next_chunk()] == [K2, None]


def test_pages_grow_where_nothing_differs_and_progress_is_known_from_the_first():
    rows = {chunk_id(1, slot): ChunkMeta(version=1) for slot in range(5000)}
    table, resync = _Table(rows), Resync(page=2000)
    asked = []
    while isinstance(request := resync.messages(ROUTE, table, 0)[0], m.SyncRequest):
        asked.append((request.limit, request.done, request.total))
        page = table.scan(request.after or None, request.limit)
        last = len(page) < request.limit
        answer = m.SyncPage(ROUTE, 1, request.after, tuple(page), last)
        resync.on_page(answer, table, lambda _: False)
    assert asked == [
        (256, 0, 5000),
        (512, 256, 5000),
        (1024, 768, 5000),
        (2000, 1792, 5000),
        (2000, 3792, 5000),
    ]


def test_progress_is_told_after_a_few_hundred_copies():
    rows = {chunk_id(1, slot): ChunkMeta(version=1) for slot in range(1000)}
    table, resync = _Table(rows), Resync(page=2000)
    for compared in (0, 256, 512):
        (request,) = resync.messages(ROUTE, table, 0)
        assert (request.limit, request.done, request.total) == (256, compared, 1000)
        answer = m.SyncPage(ROUTE, 1, request.after, (), last=True)
        resync.on_page(answer, table, lambda _: False)
        while (chunk := resync.next_chunk()) is not None:
            resync.finished(chunk)


def _brought(effects: list[m.Effect]) -> list[m.Forward]:
    sent = [e.message for e in effects if isinstance(e, m.Send)]
    return [message for message in sent if isinstance(message, m.Forward)]


def test_while_clients_write_an_update_finds_at_most_one_copy_ahead_of_it():
    """The successor is slow: it answers one forward between two updates, in the order they came."""
    pair, spare = chain(2, (1, S), (2, Y)), chunk_id(2, 0)
    source, sink = Rig(1, chain(1, (1, S), (2, OFF))), Rig(2, pair)
    for slot in range(80):
        source.put(1, b"x" * 100, chunk_id(1, slot))
    (request,) = source.settle(m.ChainChanged(pair))
    arriving: list[m.Event] = [e.message for e in sink.settle(request.message)]
    on_the_link: list[m.Forward] = []
    ahead: list[int] = []  # copies, of each update
    for number in range(60):
        source.now_ms += 100
        if spare not in source.core.lanes:
            arriving.append(write(number, b"z", version=2, chunk=spare))
        for message in _brought(source.settle(*arriving)):
            if not message.copy:
                ahead.append(sum(other.copy for other in on_the_link))
            on_the_link.append(message)
        first = on_the_link.pop(0)
        data = source.content(first.chunk) if first.copy else b"z"
        arriving = [e.message for e in sink.settle(first._replace(data=data))]
    assert ahead[0] > 1, "nobody had written for a while"
    assert len(ahead) > 15
    assert max(ahead[1:]) == 1
    assert sum(sink.content(chunk_id(1, slot)) == b"x" * 100 for slot in range(80)) > 15


def test_what_is_brought_is_written_down_in_portions():
    pair = chain(2, (1, S), (2, Y))
    sink = Rig(2, pair, limits=Limits(resync_flush_bytes=250))
    flushes = []
    for number in range(1, 11):
        link = route(1, 2, 2)
        copy = forward(
            link, number, 1, b"x" * 100, kind=UpdateKind.REPLACE, chunk=chunk_id(1, number)
        )
        commit = sink.step(*sink.store(sink.step(copy)))
        effects = sink.step(*sink.store(commit))
        flushes += [(number, e) for e in effects if isinstance(e, m.Flush)]
        if number == 7:  # until then the disk was busy with the first one
            sink.step(m.Flushed(flushes[0][1].number))
    assert [number for number, _ in flushes] == [3, 8]
    assert not sink.core.uptodate


def test_the_end_waits_for_its_own_flush_not_for_that_of_a_portion():
    sink = Rig(2, chain(2, (1, S), (2, Y)), limits=Limits(resync_flush_bytes=1))
    link = route(1, 2, 2)
    copy = forward(link, 1, 1, b"x", kind=UpdateKind.REPLACE)
    committed = sink.store(sink.step(*sink.store(sink.step(copy))))
    (portion,) = [e for e in sink.step(*committed) if isinstance(e, m.Flush)]
    (last,) = sink.step(m.SyncDone(link))
    assert sink.step(m.Flushed(portion.number)) == []
    assert not sink.core.uptodate
    assert sink.step(m.Flushed(last.number)) == [m.StateChanged(LocalState.UPTODATE)]


def test_the_end_is_said_again_until_it_is_heard():
    table = _Table({})
    resync = Resync(page=10)
    resync.on_page(_page(), table, lambda _: False)
    resync.messages(ROUTE, table, 0)
    resync.on_channels(m.SyncChannels(ROUTE, (9, 1), ()))
    assert resync.messages(ROUTE, table, 0) == [m.SyncDone(ROUTE)]
    assert resync.done
    assert resync.messages(ROUTE, table, 500) == []
    assert resync.messages(ROUTE, table, 1000) == [m.SyncDone(ROUTE)]
