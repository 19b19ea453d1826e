"""A window: memory that a client and a storageserver of one machine share, for what is written.

The bytes of a WRITE_BATCH are copied there by the client, once, and the server checks and stores
them from there; the socket carries the request's head alone. The server makes the memory, in slots
of equal size, when a connection asks for it; a slot belongs to one request until that is answered.

What a client does to a slot meanwhile is its own loss: bytes that do not have their checksum are
refused, or found bad by whoever reads them.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

from fs3.errors import Code, Fs3Error

SLOT_BYTES = (4 << 20) + (512 << 10)  # a full request, or a page of 64 tokens of DeepSeek-V3
SLOTS = 8
WORTH_BYTES = 32 << 10  # fewer are sent along
REPLY = struct.Struct("<II")  # of a WINDOW: bytes of a slot, slots
PREFIX = struct.Struct("<II")  # of a WRITE_WINDOW: slot, bytes in it


class WriteWindow:
    """A client's end. Without memory everything is sent along."""

    def __init__(self) -> None:
        self.asked = False
        self._memory: memoryview | None = None
        self._slot_bytes = 0
        self._free: list[int] = []  # the one used last is taken first: it is in the caches
        self._used: dict[int, int] = {}  # slot by request

    def install(self, head: bytes, descriptor: int) -> None:
        """The server's answer. OSError or ValueError if the memory cannot be had."""
        slot_bytes, slots = REPLY.unpack(head) if len(head) == REPLY.size else (0, 0)
        if os.fstat(descriptor).st_size < slot_bytes * slots or not slots:
            raise Fs3Error(Code.PROTOCOL, f"a window of {slots} slots of {slot_bytes} bytes")
        self._memory = memoryview(mmap.mmap(descriptor, slot_bytes * slots))
        self._slot_bytes = slot_bytes
        self._free = list(range(slots - 1, -1, -1))

    def put(self, request_id: int, parts: Sequence[memoryview]) -> bytes | None:
        """Copy the parts into a slot; what stands before the head then. None: send them along."""
        total = sum(map(len, parts))
        if self._memory is None or not self._free or not WORTH_BYTES <= total <= self._slot_bytes:
            return None
        slot = self._free.pop()
        self._used[request_id] = slot
        at = slot * self._slot_bytes
        for part in parts:
            end = at + len(part)
            self._memory[at:end] = part
            at = end
        return PREFIX.pack(slot, total)

    def answered(self, request_id: int) -> None:
        """The server does not look at its slot any more."""
        slot = self._used.pop(request_id, None)
        if slot is not None:
            self._free.append(slot)

    def close(self) -> None:
        """The server has gone."""
        self._memory = None
        self._free.clear()
        self._used.clear()
