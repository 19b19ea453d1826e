"""What waits to be sent: buffers and sources, through sockets that take little at a time."""

from __future__ import annotations

import array
import os
import random
import socket
from collections.abc import Iterator

import pytest

from fs3.errors import Code, Fs3Error
from fs3.transport.output import Output
from fs3.transport.sources import Window


class Numbers:
    """A source of bytes that it knows; counts what was fetched."""

    def __init__(self, seed: int, length: int, breaks_at: int | None = None) -> None:
        self.content = random.Random(seed).randbytes(length)
        self.breaks_at = breaks_at
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.content)

    def fetch(self, start: int, window: memoryview) -> int:
        if self.breaks_at is not None and start >= self.breaks_at:
            raise Fs3Error(Code.DISK, "broken")
        part = self.content[start : start + len(window)]
        window[: len(part)] = part
        self.fetched.append(start)
        return len(part)


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 10)
    yield near, far
    near.close()
    far.close()


def drain(far: socket.socket) -> bytes:
    got = b""
    try:
        while part := far.recv(1 << 16):
            got += part
    except BlockingIOError:
        pass
    return got


def send_all(output: Output, pair: Pair) -> bytes:
    got = b""
    while output.unsent_bytes:
        output.send(pair[0])
        got += drain(pair[1])
    return got + drain(pair[1])


def test_buffers_and_sources_leave_in_order_and_tell_when(pair: Pair) -> None:
    output = Output(Window(4 << 10))
    one, two = Numbers(1, 100_000), Numbers(2, 5)
    told: list[str] = []
    output.put([b"head", one, memoryview(b"middle"), two], lambda: told.append("first"))
    output.put([b"next"], lambda: told.append("second"))
    assert output.unsent_bytes == 4 + 100_000 + 6 + 5 + 4
    got = send_all(output, pair)
    assert got == b"head" + one.content + b"middle" + two.content + b"next"
    assert told == ["first", "second"]


def test_two_connections_share_a_window_and_neither_gets_the_others_bytes() -> None:
    window = Window(32 << 10)
    rigs = []
    for seed in range(3):
        near, far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 10)
        near.setblocking(False)
        far.setblocking(False)
        rigs.append((Output(window), Numbers(seed, 300_000), near, far, bytearray()))
        rigs[-1][0].put([rigs[-1][1]], None)
    while any(output.unsent_bytes for output, *_ in rigs):
        for output, _, near, far, got in rigs:
            output.send(near)
            got += drain(far)
    for output, source, near, far, got in rigs:
        got += drain(far)
        assert bytes(got) == source.content
        assert not output.unsent_bytes
        near.close()
        far.close()


def test_what_a_socket_did_not_take_is_not_fetched_again_if_nobody_came_between(
    pair: Pair,
) -> None:
    output, source = Output(Window(64 << 10)), Numbers(1, 256 << 10)
    output.put([source], None)
    assert send_all(output, pair) == source.content
    assert source.fetched == [0, 64 << 10, 128 << 10, 192 << 10]


def test_one_connection_does_not_send_for_ever_while_others_wait() -> None:
    class Sink:
        """A socket that takes everything."""

        sent = 0

        def sendmsg(self, buffers: list[bytes]) -> int:
            count = sum(map(len, buffers))
            self.sent += count
            return count

    sink = Sink()
    output = Output(Window())
    output.put([Numbers(1, 20 << 20)], None)
    output.send(sink)  # type: ignore[arg-type]
    assert 0 < sink.sent <= 5 << 20
    assert output.unsent_bytes == (20 << 20) - sink.sent


def test_a_source_that_breaks_raises_and_abandoning_it_tells_its_owner(pair: Pair) -> None:
    output, told = Output(Window(4 << 10)), []
    source = Numbers(1, 100_000, breaks_at=8 << 10)
    output.put([b"head", source], lambda: told.append("end"))
    with pytest.raises(Fs3Error, match="broken"):
        send_all(output, pair)
    output.abandon()
    assert (told, output.unsent_bytes) == (["end"], 0)
    other = Numbers(2, 10_000)
    output.put([other], None)
    drain(pair[1])
    assert send_all(output, pair) == other.content


def test_descriptors_travel_with_their_frame_behind_a_source(pair: Pair) -> None:
    output, source = Output(Window(4 << 10)), Numbers(1, 10_000)
    output.put([b"head", source], None)
    output.put([b"with"], None, rights=[pair[0].fileno()])
    output.put([b"end"], None)
    got, descriptors = b"", array.array("i")
    while output.unsent_bytes or len(got) < 4 + 10_000 + 7:
        output.send(pair[0])
        try:
            data, ancillary, _, _ = pair[1].recvmsg(1 << 16, socket.CMSG_SPACE(4))
        except BlockingIOError:
            continue
        got += data
        for _, _, packed in ancillary:
            descriptors.frombytes(packed)
    assert got == b"head" + source.content + b"withend"
    assert len(descriptors) == 1
    os.close(descriptors[0])
