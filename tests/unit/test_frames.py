"""The frame codec: what goes in comes out, and what was damaged or cut is told."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fs3 import frames
from fs3.errors import TABLE, Code, Fs3Error

KINDS = st.sampled_from(list(frames.FrameKind))
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)


def frame(head: bytes = b"a head of some bytes", body_bytes: int = 4096) -> bytes:
    tag = frames.cluster_tag("c")
    return frames.encode(frames.FrameKind.REQUEST, 0x1001, tag, 42, head, body_bytes) + head


@given(KINDS, U32, U32, U64, st.binary(max_size=2000), st.integers(0, frames.BODY_BYTES_MAX))
def test_a_frame_says_what_was_encoded(kind, method, tag, request_id, head, body_bytes):
    data = frames.encode(kind, method, tag, request_id, head, body_bytes)
    assert len(data) == frames.HEADER_BYTES
    header = frames.decode(data + head)
    frames.check_head(header, head)
    assert header[:7] == (
        frames.PROTOCOL_VERSION,
        kind,
        method,
        tag,
        request_id,
        len(head),
        body_bytes,
    )


@given(st.sampled_from([bytes, bytearray, memoryview]), st.binary(max_size=100))
def test_any_buffer_will_do(buffer, head):
    data = frame(head)
    header = frames.decode(buffer(data))
    frames.check_head(header, buffer(data)[frames.HEADER_BYTES :])


def test_damage_to_any_byte_of_header_or_head_is_found():
    data = frame()
    for position in range(len(data)):
        for damage in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[position] ^= damage
            with pytest.raises(Fs3Error) as caught:
                frames.check_head(frames.decode(broken), broken[frames.HEADER_BYTES :])
            assert caught.value.code in (Code.PROTOCOL, Code.TOO_LARGE), position


@given(st.data())
def test_a_head_that_was_cut_or_has_grown_is_found(data):
    whole = frame()
    header = frames.decode(whole)
    head = whole[frames.HEADER_BYTES :]
    cut = data.draw(st.integers(0, len(head) - 1))
    for wrong in (head[:cut], head + b"\0"):
        with pytest.raises(Fs3Error, match="checksum"):
            frames.check_head(header, wrong)


def test_a_stream_that_is_not_ours_is_named():
    with pytest.raises(Fs3Error, match=r"b'GET '.*b'fs3f'") as caught:
        frames.decode(b"GET / HTTP/1.1\r\n" * 4)
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize(
    ("offset", "limit"), [(24, frames.HEAD_BYTES_MAX), (32, frames.BODY_BYTES_MAX)]
)
def test_an_announcement_over_the_limit_is_refused_before_anything_is_read(offset, limit):
    data = bytearray(frame())
    data[offset : offset + 4] = (limit + 1).to_bytes(4, "little")
    with pytest.raises(Fs3Error, match=str(limit + 1)) as caught:
        frames.decode(data)
    assert caught.value.code is Code.TOO_LARGE


def test_another_cluster_and_another_protocol_are_told_apart():
    header = frames.decode(frame())
    frames.check_peer(header, "c")
    with pytest.raises(Fs3Error, match=r"this is cluster 'd'.*--cluster-id") as caught:
        frames.check_peer(header, "d")
    assert caught.value.code is Code.WRONG_CLUSTER
    with pytest.raises(Fs3Error, match="version 7") as caught:
        frames.check_peer(header._replace(protocol=7), "c")
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize("begins", [b"PRI * HTTP/2.0\r\n", b"\0\0\x18\x04\0\0\0\0\0"])
def test_who_speaks_grpc_to_the_frame_port_or_frames_to_grpcs_is_told(begins):
    with pytest.raises(Fs3Error, match="gRPC, which has another port"):
        frames.decode(begins.ljust(frames.HEADER_BYTES, b"\0"))
    with pytest.raises(Fs3Error) as caught:
        frames.decode(b"GET / HTTP/1.1\r\n".ljust(frames.HEADER_BYTES, b"\0"))
    assert "gRPC" not in caught.value.detail


@given(st.sampled_from(list(TABLE)), st.text(max_size=300))
def test_an_error_crosses_with_code_and_detail(code, detail):
    error = frames.decode_error(frames.encode_error(Fs3Error(code, detail)))
    assert (error.code, error.detail) == (code, detail)


@given(st.binary(max_size=64))
@example(bytes(4))
@example(bytes(3))
def test_any_bytes_are_some_error(head):
    assert isinstance(frames.decode_error(head), Fs3Error)


def test_an_error_of_any_length_fits_a_frame():
    head = frames.encode_error(Fs3Error(Code.BUG, "x" * 100_000 + "\ud800"))
    assert len(head) <= 5000
    assert frames.decode_error(head).code is Code.BUG


def test_an_error_code_of_a_newer_release_is_still_an_error():
    head = (4_000_000).to_bytes(4, "little") + b"something new"
    error = frames.decode_error(head)
    assert (error.code, error.detail) == (Code.BUG, "something new")
