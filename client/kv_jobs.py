"""The kinds of batches of KV values: how a request looks, and what its reply means.

What to ask whom, and when again, is decided in kvdata.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import crc32c_of
from fs3.core import kv
from fs3.core.request import Codes, Operation, Send
from fs3.core.stamps import served_word
from fs3.errors import Code
from fs3.transport.interface import ClientConnection

from .kv_buffers import lengths_of

Items = NDArray[Any]
Parts = Sequence[memoryview]


class Job(Protocol):
    """What differs between kinds of batches: how a request looks and what its reply means."""

    method: int
    operation: Operation
    items: Items
    payload: NDArray[np.uint32]  # bytes that travel per item

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        """Head and body of a request."""

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        """Where the body of its reply goes."""

    def results(self, send: Send, head: bytes, *, verified: bool) -> Codes:
        """The outcome per item, once the reply is here whole.

        ``verified``: the transport has compared a read's bytes with their checksums.
        """


class Lookups:
    """Are these chunks there? ``method`` may be another that answers READ_ITEMs without a body."""

    def __init__(self, items: Items, method: int = dataplane.READ_BATCH) -> None:
        self.method = method
        # Pins are for whoever evicts, the head; anybody can tell what is there.
        self.operation = Operation.READ if method == dataplane.READ_BATCH else Operation.WRITE
        self.items = items
        self.payload = np.zeros(len(items), np.uint32)

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        """See :class:`Job`."""
        items = self.items[send.items]
        items["chain_version"] = send.chain_versions
        return items.tobytes(), []

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        """See :class:`Job`."""
        return []

    def results(self, send: Send, head: bytes, *, verified: bool) -> Codes:
        """See :class:`Job`."""
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, len(send.items))
        codes: Codes = results["code"]
        return codes


class Gets:
    """Values into the callers' buffers. ``sizes``: of each value, -1 where there is none.

    A value that is longer than its buffers is none; ``needed`` says how long it is.
    """

    method = dataplane.READ_BATCH
    operation = Operation.READ

    def __init__(self, items: Items, keys: Sequence[bytes], buffers: Sequence[Parts]) -> None:
        heads = [kv.HEADER_BYTES + len(key) for key in keys]
        self._room = room = memoryview(bytearray(sum(heads)))
        ends = list(itertools.accumulate(heads))
        self._headers = [room[end - size : end] for size, end in zip(heads, ends, strict=True)]
        self._keys = keys
        self._buffers = buffers
        items["length"] = list(map(add, heads, lengths_of(buffers)))
        self.items = items
        self.payload = items["length"]
        self.sizes = np.full(len(items), -1, np.int64)
        self.needed = np.zeros(len(items), np.int64)
        self.suspects = b""

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        """See :class:`Job`."""
        items = self.items[send.items]
        items["chain_version"] = send.chain_versions
        return items.tobytes(), []

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        """See :class:`Job`."""
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, len(send.items))
        places: list[memoryview] = []
        wanted = self.items["length"][send.items].tolist()
        for item, length, whole in zip(
            send.items.tolist(), results["length"].tolist(), wanted, strict=True
        ):
            if length == whole:
                places.append(self._headers[item])
                places += self._buffers[item]
            elif length:
                places += self._first(item, length)
        return places

    def _first(self, item: int, length: int) -> list[memoryview]:
        """The first ``length`` bytes of where an item goes."""
        places = []
        for part in (self._headers[item], *self._buffers[item]):
            if length <= 0:
                break
            places.append(part[:length])
            length -= len(part)
        return places

    def results(self, send: Send, head: bytes, *, verified: bool) -> Codes:
        """See :class:`Job`."""
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, len(send.items))
        codes: Codes = results["code"].copy()
        bad: list[int] = []
        for position, (item, code, length, expected) in enumerate(
            zip(
                send.items.tolist(),
                codes.tolist(),
                results["length"].tolist(),
                results["crc"].tolist(),
                strict=True,
            )
        ):
            if code:
                if verified and code == Code.CORRUPT:  # so the transport says, not the server
                    bad.append(item)
                continue
            if not verified and crc32c_of(self._first(item, length)) != expected:
                codes[position] = Code.CORRUPT
                bad.append(item)
            else:
                self._settle(item, length)
        self.suspects = self.items[bad].tobytes() if bad else b""
        return codes

    def read_here(self, connection: ClientConnection, versions: Callable[[int], int]) -> bool:
        """Without asking, if ``connection`` can read so much of all of them at once.

        True: then ``sizes`` says what came of it.
        """
        items, headers, buffers = self.items, self._headers, self._buffers
        if len(items) == 1:
            chunk, chain, _, _, _ = items[0].item()
            served = served_word(chain, versions(chain))
            if not connection.read_piece_here(chunk, served, 0, [headers[0], *buffers[0]]):
                return False
            self._settle(0, int(self.payload[0]))
            return True
        parts = [
            part for header, rest in zip(headers, buffers, strict=True) for part in (header, *rest)
        ]
        if not connection.read_here(items, parts, versions):
            return False
        lengths = lengths_of(buffers)
        if self._room == b"".join(map(kv.header, self._keys, lengths)):  # as mostly
            self.sizes[:] = lengths
        else:
            for item, length in enumerate(self.payload.tolist()):
                self._settle(item, length)
        return True

    def _settle(self, item: int, length: int) -> None:
        """Good bytes: are they those of this key, and all of them?"""
        header = self._headers[item]
        value_bytes = kv.value_length(header[:length], self._keys[item])
        if value_bytes == length - len(header):
            self.sizes[item] = value_bytes
        elif value_bytes >= 0:
            self.needed[item] = value_bytes


class Updates:
    """Puts and removals. ``channels`` and ``sequences`` make each happen once."""

    method = dataplane.WRITE_BATCH
    operation = Operation.WRITE

    def __init__(self, items: Items, bodies: Sequence[Parts], client: int) -> None:
        self.items = items
        self.payload = items["length"]
        self._bodies = bodies
        self._checked = np.zeros(len(items), np.bool_)  # their checksums are known
        self._prefix = np.array([(client, 0, 0)], dataplane.WRITE_PREFIX).tobytes()

    def request(self, send: Send) -> tuple[bytes, list[memoryview]]:
        """See :class:`Job`. Checksums are made here, while what was sent before travels."""
        body: list[memoryview] = []
        if self._bodies:
            for item in send.items.tolist():
                parts = self._bodies[item]
                body += parts
                if not self._checked[item]:
                    self.items["crc"][item] = crc32c_of(parts)
                    self._checked[item] = True
        items = self.items[send.items]
        items["chain_version"] = send.chain_versions
        return self._prefix + items.tobytes(), body

    def place(self, send: Send, head: bytes) -> list[memoryview]:
        """See :class:`Job`."""
        return []

    def results(self, send: Send, head: bytes, *, verified: bool) -> Codes:
        """See :class:`Job`."""
        results, _ = dataplane.decode_results(head, dataplane.WRITE_RESULT, len(send.items))
        codes: Codes = results["code"]
        return codes
