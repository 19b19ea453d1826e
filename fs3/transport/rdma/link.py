"""A queue pair as both ends use it: messages over receives, with credits, in posted chains.

Bytes of messages are copied through two small registered rings (a receive and a send slot per
message that may be under way); payload is not: it is what the work requests ``before`` a message
move, and a message is not there before what was posted ahead of it.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fs3.errors import Code, Fs3Error
from fs3.frames import BODY_BYTES_MAX, HEAD_BYTES_MAX, Buffer
from fs3.transport.rdma.flow import Callback, Credits, SendQueue
from fs3.transport.rdma.messages import (
    MORE,
    PREFIX_BYTES,
    MessageKind,
    Prefix,
    decode_prefix,
    encode_prefix,
)
from fs3.transport.rdma.verbs import (
    RECEIVE,
    CompletionQueue,
    Device,
    Opcode,
    QueuePair,
    WorkCompletion,
    WorkRequest,
)

# Segments, a head and a small body: nobody may send more than this as one message.
_CONTENT_BYTES_MAX = HEAD_BYTES_MAX + (2 << 20)
assert _CONTENT_BYTES_MAX < BODY_BYTES_MAX

OnMessage = Callable[[Prefix, memoryview], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one end has for messages of the other."""

    slots: int = 32
    slot_bytes: int = 16 << 10
    depth: int = 512  # work requests at once

    def validate(self) -> None:
        """Fs3Error INVALID if no link can be made of it."""
        if not 4 <= self.slots <= 4096 or not 256 <= self.slot_bytes <= 1 << 20:
            raise Fs3Error(
                Code.INVALID,
                f"{self.slots} slots of {self.slot_bytes} bytes: 4 to 4096 of 256 to 1048576"
                " bytes are allowed",
            )


class _Out:
    """What waits to be posted: a work request, or a part of a message."""

    __slots__ = ("content", "on_done", "prefix", "request")

    def __init__(
        self, request: WorkRequest | None, prefix: Prefix | None = None, content: Buffer = b""
    ) -> None:
        self.request = request
        self.prefix = prefix
        self.content = content
        self.on_done: Callback | None = None

    @property
    def reads(self) -> bool:
        """It is a READ."""
        return self.request is not None and self.request.opcode is Opcode.READ


class Link:
    """Not thread-safe. ``on_message`` raises nothing but Fs3Error, which breaks it."""

    def __init__(
        self,
        device: Device,
        queue: CompletionQueue,
        shape: Shape,
        on_message: OnMessage,
        on_broken: Callable[[str], None],
    ) -> None:
        """Fs3Error NO_SPACE if there is no memory or queue pair for it."""
        self.shape = shape
        self._on_message = on_message
        self._on_broken = on_broken
        self._broken = False
        # Sends go out of slots of the same number and size as those for receives.
        self._memory = mmap.mmap(-1, 2 * shape.slots * shape.slot_bytes)
        self._view = memoryview(self._memory)
        self._region = device.register(self._view, remote=False)
        base, key = self._region.address, self._region.local_key
        slots = [(base + i * shape.slot_bytes, shape.slot_bytes, key) for i in range(shape.slots)]
        self._send_base = shape.slots * shape.slot_bytes
        try:
            self.queue_pair: QueuePair = device.queue_pair(queue, depth=shape.depth, slots=slots)
        except Fs3Error:
            self._region.close()
            raise
        self._credits = Credits(0, shape.slots)
        self._queue = SendQueue(shape.depth, shape.slots)
        self._theirs = shape
        self._waiting: deque[_Out] = deque()
        self._part = bytearray()  # of a message that goes on

    @property
    def broken(self) -> bool:
        """Nothing more can be sent."""
        return self._broken

    @property
    def outstanding(self) -> bool:
        """A completion of something posted is due."""
        return self._queue.outstanding

    @property
    def waits(self) -> bool:
        """Something cannot be posted yet."""
        return bool(self._waiting)

    def opened(self, theirs: Shape) -> None:
        """The queue pair is connected; ``theirs`` is what the peer said of its receives."""
        self._theirs = theirs
        self._credits = Credits(theirs.slots, self.shape.slots)
        for slot in range(self.shape.slots):
            self.queue_pair.post_receive(slot)

    def send(
        self,
        prefix: Prefix,
        content: Sequence[Buffer] = (),
        before: Sequence[WorkRequest] = (),
        on_done: Callback | None = None,
    ) -> None:
        """Queue a message, and ahead of it work; :meth:`flush` posts it.

        ``on_done`` is called exactly once: when all of that is done, or never will be.
        """
        if self._broken:
            if on_done is not None:
                on_done()
            return
        self._waiting.extend(_Out(request) for request in before)
        room = min(self.shape.slot_bytes, self._theirs.slot_bytes) - PREFIX_BYTES
        whole = content[0] if len(content) == 1 else b"".join(content)
        if len(whole) <= room:
            self._waiting.append(_Out(None, prefix, whole))
        else:
            view = memoryview(whole)
            for start in range(0, len(view), room):
                more = MORE if start + room < len(view) else 0
                piece = prefix._replace(flags=prefix.flags | more)
                self._waiting.append(_Out(None, piece, view[start : start + room]))
        self._waiting[-1].on_done = on_done

    def work(self, requests: Sequence[WorkRequest], on_done: Callback) -> None:
        """Queue work without a message."""
        if self._broken:
            on_done()
            return
        self._waiting.extend(_Out(request) for request in requests)
        self._waiting[-1].on_done = on_done

    def flush(self) -> None:
        """Post what may be posted now."""
        while not self._broken and self._waiting:
            if not self._post_chain():
                break
        if self._broken or not self._credits.must_return:
            return
        if self._queue.request_room > 0 and self._queue.slot_room > 0:
            self._post([self._fill(Prefix(MessageKind.CREDIT), b"", 0)], 1, [])

    def _post_chain(self) -> bool:
        """One chain of what waits; False if nothing of it may be posted now."""
        chain: list[WorkRequest] = []
        callbacks: list[Callback] = []
        messages = 0
        room, slot_room = self._queue.request_room, self._queue.slot_room
        while self._waiting and len(chain) < room:
            out = self._waiting[0]
            if chain and chain[-1].opcode is Opcode.READ and not out.reads:
                break  # its completion would not stand for the READ: see SendQueue
            if out.request is not None:
                chain.append(out.request)
            else:
                assert out.prefix is not None
                if messages == slot_room or not self._credits.may_send:
                    break
                chain.append(self._fill(out.prefix, out.content, messages))
                messages += 1
            if out.on_done is not None:
                callbacks.append(out.on_done)
            self._waiting.popleft()
        if not chain:
            return False
        self._post(chain, messages, callbacks)
        return True

    def _fill(self, prefix: Prefix, content: Buffer, ahead: int) -> WorkRequest:
        """Write a message into its slot."""
        start = self._send_base + self._queue.next_slot(ahead) * self.shape.slot_bytes
        end = start + PREFIX_BYTES + len(content)
        view = self._view
        view[start : start + PREFIX_BYTES] = encode_prefix(
            prefix._replace(credits=self._credits.sent())
        )
        view[start + PREFIX_BYTES : end] = content
        region = self._region
        return WorkRequest(
            Opcode.SEND, region.address + start, end - start, region.local_key, solicited=True
        )

    def _post(self, chain: Sequence[WorkRequest], messages: int, callbacks: list[Callback]) -> None:
        work_id = self._queue.posting(len(chain), messages, callbacks)
        try:
            self.queue_pair.post(chain, work_id)
        except Fs3Error as error:
            self.fail(error.detail)

    def on_completion(self, completion: WorkCompletion) -> None:
        """Something of this queue pair has completed; :meth:`flush` when all has been seen."""
        if self._broken:
            return
        if completion.error:
            self.fail(completion.error)
        elif completion.work_id >= RECEIVE:
            try:
                self._on_receive(completion.work_id - RECEIVE, completion.received_bytes)
            except Fs3Error as error:
                self.fail(error.detail)
        else:
            for callback in self._queue.completed(completion.work_id):
                callback()

    def _on_receive(self, slot: int, length: int) -> None:
        start = slot * self.shape.slot_bytes
        message = self._view[start : start + length]
        prefix = decode_prefix(message)
        content = message[PREFIX_BYTES:]
        if prefix.flags & MORE or self._part:
            self._part += content
            if len(self._part) > _CONTENT_BYTES_MAX:
                raise Fs3Error(
                    Code.TOO_LARGE,
                    f"a message of more than {_CONTENT_BYTES_MAX} bytes; no more are allowed",
                )
        try:
            if not prefix.flags & MORE and prefix.kind != MessageKind.CREDIT:
                part, self._part = self._part, bytearray()
                self._on_message(prefix, memoryview(part) if part else content)
        finally:
            if not self._broken:
                self.queue_pair.post_receive(slot)
                self._credits.received(prefix.credits)

    def fail(self, reason: str) -> None:
        """Close, and tell the owner why."""
        if not self._broken:
            self.close()
            self._on_broken(reason)

    def close(self) -> None:
        """When this returns no payload moves any more; every callback has been called."""
        if self._broken:
            return
        self._broken = True
        self.queue_pair.close()
        self._region.close()
        due = self._queue.abandon()
        due += [out.on_done for out in self._waiting if out.on_done is not None]
        self._waiting.clear()
        for callback in due:
            callback()
