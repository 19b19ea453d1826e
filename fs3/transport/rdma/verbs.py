"""What is needed of RDMA verbs, as interfaces: pyverbs fulfils them, and a twin in the tests does.

A work request moves bytes between registered memory here and there; those of one queue pair are
carried out in order, and so are their completions, but for READs, which may take until after what
was posted behind them. A queue pair that fails once is of no use any
more: everything posted on it completes with an error, and so does what is posted later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

RECEIVE = 1 << 62  # added to the work id of receives
UNSIGNALED = -1


class Opcode(IntEnum):
    """What a work request does."""

    SEND = 1  # into the next receive that the peer has posted
    WRITE = 2  # to the peer's memory
    READ = 3  # from the peer's memory


class WorkRequest(NamedTuple):
    """``length`` bytes at ``address`` here, and for WRITE and READ at ``remote_address`` there."""

    opcode: Opcode
    address: int
    length: int
    local_key: int
    remote_address: int = 0
    remote_key: int = 0
    solicited: bool = False  # wakes a peer that waits for solicited messages only


class WorkCompletion(NamedTuple):
    """How a work request ended; a receive's ``work_id`` has RECEIVE added."""

    queue_pair: int
    work_id: int
    error: str  # empty: none
    received_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Where a queue pair leads to, and what both ends have agreed on."""

    queue_pair: int
    gid: bytes  # 16 bytes
    lid: int  # of InfiniBand; 0 on Ethernet
    sequence_number: int  # the first that the peer sends
    mtu_bytes: int
    reads_in: int  # RDMA READs that the peer may have under way here
    reads_out: int  # and we there


class Region(Protocol):
    """Registered memory. It must not be unmapped before it is closed."""

    address: int
    length: int
    local_key: int
    remote_key: int

    def close(self) -> None:
        """Nobody can reach the memory by its keys any more."""


class CompletionQueue(Protocol):
    """Where completions of any number of queue pairs arrive."""

    def fileno(self) -> int:
        """Readable when something has completed since :meth:`arm`."""

    def arm(self, *, solicited_only: bool) -> None:
        """Make the descriptor readable at the next completion (that is solicited, or an error)."""

    def take_events(self) -> None:
        """Take one event: of each arming there is one at most.

        Then arm, then poll: so that nothing is missed.
        """

    def poll(self, count: int) -> list[WorkCompletion]:
        """Up to ``count`` completions, in the order in which they came about."""

    def close(self) -> None:
        """After its queue pairs."""


class QueuePair(Protocol):
    """One end of a reliable connection."""

    number: int

    def connect(self, path: Path) -> None:
        """Make it ready to receive and to send. Fs3Error UNREACHABLE says why it cannot be."""

    def prepare(self) -> None:
        """Make it ready for receives to be posted, and for a connection manager."""

    def post_receive(self, slot: int) -> None:
        """The next message goes into this slot; it completes as RECEIVE + slot."""

    def post(self, requests: Sequence[WorkRequest], work_id: int) -> None:
        """Begin all of them, in order; the last one completes as ``work_id``, unless UNSIGNALED.

        Fs3Error UNREACHABLE if the queue pair does not take them.
        """

    def close(self) -> None:
        """When this returns, no byte of registered memory is read or written for it any more."""


class Dialed(Protocol):
    """A queue pair that a connection manager brings up; closed after the queue pair."""

    def fileno(self) -> int:
        """Readable when there is something to :meth:`go_on` with."""

    def go_on(self) -> bool:
        """True once the queue pair is up; Fs3Error UNREACHABLE if it will not be, or is no more."""

    def close(self) -> None:
        """Whatever state it is in."""


class Call(Protocol):
    """Somebody's wish for one of our queue pairs; closed after the queue pair."""

    token: bytes  # which one

    def accept(self, pair: QueuePair) -> None:
        """Connect them. Fs3Error UNREACHABLE if the caller has gone."""

    def close(self) -> None:
        """Refuse, or end the connection."""


class Listener(Protocol):
    """Where a connection manager takes calls."""

    port: int

    def fileno(self) -> int:
        """Readable when there are calls."""

    def take(self) -> Sequence[Call]:
        """Those that have come."""

    def close(self) -> None:
        """After the calls that were taken."""


class Device(Protocol):
    """One port of an opened device, with the address that is used on it."""

    sequence_number: int
    reads_max: int
    by_manager: bool  # queue pairs are brought up by a connection manager, not by connect()

    def register(self, memory: memoryview, *, remote: bool) -> Region:
        """Make memory known to the NIC; with ``remote``, peers that get its key may use it.

        Fs3Error NO_SPACE if too little memory may be locked, says how to allow more.
        """

    def completion_queue(self, entries: int) -> CompletionQueue:
        """A new one; Fs3Error NO_SPACE if there can be no more."""

    def queue_pair(
        self, queue: CompletionQueue, *, depth: int, slots: Sequence[tuple[int, int, int]]
    ) -> QueuePair:
        """``depth`` work requests at once; receives go into ``slots``: address, length, key."""

    def listen(self) -> Listener:
        """Only if ``by_manager``. Fs3Error UNSUPPORTED or UNREACHABLE if that cannot be."""

    def dial(self, pair: QueuePair, gid: bytes, port: int, token: bytes) -> Dialed:
        """Only if ``by_manager``: begin to connect with who listens there; 8 bytes of token."""

    def close(self) -> None:
        """After everything that was made of it."""
