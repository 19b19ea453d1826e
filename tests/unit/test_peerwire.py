"""Messages between neighbours survive the wire, and garbage is one clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.core import messages as m
from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag, UpdateKind
from fs3.core.types import ChainId, ChainVersion, ChunkId, ChunkVersion, TargetId
from fs3.errors import Code, Fs3Error
from fs3.storageserver import peerwire

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
chunks = st.binary(min_size=24, max_size=24).map(ChunkId)
versions = u64.map(ChunkVersion)
routes = st.builds(
    m.Route, u32.map(TargetId), u32.map(TargetId), u32.map(ChainId), u32.map(ChainVersion)
)
tags = st.none() | st.builds(Tag, u64, u32, u64)
metas = st.builds(
    ChunkMeta, versions, u32.map(ChainVersion), u32, u32, versions, u32, u32, st.booleans()
)
channels = st.builds(ChannelRecord, u64, chunks, versions, u32, u32, st.booleans())


@st.composite
def forwards(draw: st.DrawFn) -> m.Forward:
    number = draw(u64)
    settled = max(0, number - draw(u32))
    return m.Forward(
        draw(routes),
        number,
        settled,
        draw(chunks),
        draw(st.sampled_from(UpdateKind)),
        draw(versions),
        draw(u32),
        draw(u32),
        draw(u32),
        draw(tags),
        draw(st.booleans()),
        None,
    )


messages = st.one_of(
    forwards(),
    st.builds(
        m.Ack,
        routes,
        u64,
        chunks,
        versions,
        st.sampled_from(Code),
        u32,
        u32,
        st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
    ),
    st.builds(m.Query, routes, chunks, u64),
    st.builds(m.Answer, routes, chunks, u64, versions),
    st.builds(m.SyncRequest, routes, u64, st.just(b"") | chunks, u32, u64, u64),
    st.builds(
        m.SyncPage,
        routes,
        u64,
        st.just(b"") | chunks,
        st.lists(st.tuples(chunks, metas), max_size=4).map(tuple),
        st.booleans(),
    ),
    st.builds(
        m.SyncChannels,
        routes,
        st.tuples(u64, u32),
        st.lists(st.tuples(u64, u32, channels), max_size=4).map(tuple),
    ),
    st.builds(m.SyncDone, routes),
    st.builds(m.Join, routes),
    st.builds(m.Welcome, routes),
    st.builds(m.Used, routes, st.lists(chunks, max_size=4).map(tuple)),
)


@given(st.lists(messages, max_size=5))
def test_messages_survive_the_wire_in_order(sent: list[m.Message]) -> None:
    head = b"".join(peerwire.encode(message) for message in sent)
    assert list(peerwire.decode(memoryview(head))) == sent


@given(messages, st.data())
def test_a_cut_message_is_one_clear_error(message: m.Message, data: st.DataObject) -> None:
    head = peerwire.encode(message)
    cut = data.draw(st.integers(1, len(head) - 1))
    if isinstance(message, m.Ack) and cut > len(head) - len(message.detail.encode()):
        return  # the text of an Ack may be shortened unseen; the frame's own checksum covers it
    with pytest.raises(Fs3Error) as error:
        list(peerwire.decode(memoryview(head[:cut])))
    assert error.value.code is Code.PROTOCOL


def test_an_unknown_message_is_named() -> None:
    with pytest.raises(Fs3Error, match="type 99 is unknown"):
        list(peerwire.decode(memoryview(b"\x63" + bytes(120))))
