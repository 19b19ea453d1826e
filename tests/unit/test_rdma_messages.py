"""What is in a message, and how parts are mapped to the peer's memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3 import frames
from fs3.errors import Code, Fs3Error
from fs3.transport.rdma import messages
from fs3.transport.rdma.messages import MessageKind, Prefix, Segment


@given(
    st.sampled_from(list(MessageKind)),
    st.integers(0, 7),
    st.tuples(*[st.integers(0, 0xFFFF)] * 3),
    st.tuples(*[st.integers(0, (1 << 64) - 1)] * 2),
)
def test_a_prefix_survives_the_round_trip(kind, flags, shorts, longs):
    prefix = Prefix(kind, flags, *shorts, *longs)
    encoded = messages.encode_prefix(prefix)
    assert len(encoded) == messages.PREFIX_BYTES
    assert messages.decode_prefix(memoryview(encoded)) == prefix


@pytest.mark.parametrize("data", [b"", bytes(23), bytes(24), b"\xff" * 24])
def test_what_is_no_prefix_is_refused(data):
    with pytest.raises(Fs3Error) as raised:
        messages.decode_prefix(memoryview(data))
    assert raised.value.code is Code.PROTOCOL


def test_segments_stand_before_the_frame_bodies_first():
    body, room = [Segment(1, 2, 3)], [Segment(1 << 63, (1 << 32) - 1, 5), Segment(6, 7, 8)]
    content = messages.encode_segments(body + room) + b"frame"
    prefix = Prefix(MessageKind.FRAME, body_segments=1, room_segments=2)
    found_body, found_room, start = messages.decode_segments(prefix, memoryview(content))
    assert (found_body, found_room, content[start:]) == (body, room, b"frame")
    with pytest.raises(Fs3Error, match="3 segments announced"):
        messages.decode_segments(prefix, memoryview(content)[:47])


@given(st.data())
def test_every_byte_of_every_part_goes_where_it_belongs(data):
    lengths = data.draw(st.lists(st.integers(1, 50), max_size=8))
    gaps = data.draw(st.lists(st.integers(0, 20), min_size=len(lengths), max_size=len(lengths)))
    places, at = [], 0
    for length, gap in zip(lengths, gaps, strict=True):
        places.append(at)
        at += length + gap
    segments, covered = [], 0
    while covered < at:
        length = data.draw(st.integers(1, 40))
        segments.append(Segment(1000 * len(segments), length, len(segments)))
        covered += length
    room = [s.address + i for s in segments for i in range(s.length)]
    pieces = messages.map_parts(lengths, places, segments)
    moved = {
        (piece.part, piece.offset + i): piece.address + i
        for piece in pieces
        for i in range(piece.length)
    }
    expected = {
        (part, i): room[place + i]
        for part, (length, place) in enumerate(zip(lengths, places, strict=True))
        for i in range(length)
    }
    assert moved == expected
    assert all(piece.key == piece.address // 1000 for piece in pieces)


def test_what_does_not_fit_into_the_room_is_refused():
    with pytest.raises(Fs3Error, match="100 bytes do not fit"):
        messages.map_parts([100], [0], [Segment(0, 99, 1)])


def test_a_frame_that_is_cut_off_is_refused():
    tag = frames.cluster_tag("c")
    frame = frames.encode(frames.FrameKind.REPLY, 1, tag, 9, b"head", 3) + b"head" + b"abc"
    header, head, rest = messages.split_frame(memoryview(frame))
    assert (header.request_id, head, bytes(rest)) == (9, b"head", b"abc")
    for length in (0, 39, 43):
        with pytest.raises(Fs3Error):
            messages.split_frame(memoryview(frame)[:length])
