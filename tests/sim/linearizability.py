"""Is a history of one chunk linearizable? Wing and Gong's search with Lowe's memory (WGL).

A chunk is a register of bytes, or nothing. Each operation took effect once, at one moment between
its call and its return. One without a return (its client gave up) took effect at some moment after
its call, or never. Found by depth-first search over which operation comes next; a pair of (set of
operations done, register) that led nowhere is not looked at twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind

NEVER = 1 << 60
STEPS_MAX = 200_000


class Update(NamedTuple):
    """What a client wants done. ``length`` for TRUNCATE and EXTEND."""

    kind: UpdateKind
    offset: int = 0
    data: bytes = b""
    length: int = 0

    def apply(self, content: bytes | None) -> bytes | None:
        """The register afterwards."""
        old = content or b""
        match self.kind:
            case UpdateKind.REMOVE:
                return None
            case UpdateKind.TRUNCATE:
                return old[: self.length].ljust(self.length, b"\0")
            case UpdateKind.EXTEND:
                if content is None and not self.length:
                    return None
                return old.ljust(self.length, b"\0")
            case UpdateKind.CREATE:
                return self.data if content is None else content
            case _:
                end = self.offset + len(self.data)
                return old[: self.offset].ljust(self.offset, b"\0") + self.data + old[end:]


@dataclass(slots=True)
class Operation:
    """One operation of one client. ``update`` None: a read. Moments are numbers of events."""

    client: int
    called_at: int
    update: Update | None
    returned_at: int = NEVER
    value: bytes | None = None  # of a read
    result: tuple[int, int] | None = None  # of an update: length and checksum of the chunk

    def step(self, state: bytes | None) -> tuple[bool, bytes | None]:
        """Whether it may take effect on ``state``, and the state afterwards."""
        if self.update is None:
            return self.value == state, state
        after = self.update.apply(state)
        if self.result is None or self.returned_at == NEVER:
            return True, after
        return self.result == (len(after or b""), crc32c(after or b"")), after


def linearizable(history: list[Operation]) -> bool | None:
    """True or False; None if the search was given up."""
    operations = sorted(
        (o for o in history if o.returned_at != NEVER or o.update is not None),
        key=lambda o: (o.called_at, o.returned_at),
    )
    must = 0
    for index, operation in enumerate(operations):
        if operation.returned_at != NEVER:
            must |= 1 << index
    seen: set[tuple[int, bytes | None]] = set()
    stack: list[tuple[int, bytes | None]] = [(0, None)]
    steps = 0
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        steps += 1
        if steps > STEPS_MAX:
            return None
        stack += _next(operations, done, state)
    return False


def _next(
    operations: list[Operation], done: int, state: bytes | None
) -> list[tuple[int, bytes | None]]:
    """Every position after one more operation; the most promising one last."""
    deadline = NEVER  # nothing called after the first pending return may come before it
    sure: list[tuple[int, bytes | None]] = []
    doubtful: list[tuple[int, bytes | None]] = []
    for index, operation in enumerate(operations):
        if done >> index & 1:
            continue
        if operation.called_at > deadline:
            break
        deadline = min(deadline, operation.returned_at)
        fits, after = operation.step(state)
        if fits:
            found = sure if operation.returned_at != NEVER else doubtful
            found.append((done | 1 << index, after))
    return doubtful + sure[::-1]
