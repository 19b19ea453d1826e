"""What a client needs of a transport: a way to reach a node, and connections that go that way.

The frames are the same whatever carries them; a transport only decides how payload travels. What
drives connections (:func:`fs3.transport.client.drive`) and what chooses among transports
(``client/links.py``) knows nothing but this page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from fs3.errors import Fs3Error
from fs3.frames import Buffer
from fs3.routing import NodeInfo

Place = Callable[[int, bytes], Sequence[memoryview] | None]
"""``place(request_id, head)``: where a reply's body belongs, in all exactly as long as the body.
None drops the body; it is not asked when there is none. It has no side effects: a transport that
must know before it asks may ask for the places of a complete answer, with a head made up for it."""


class Completion(NamedTuple):
    """How a request ended."""

    connection: ClientConnection
    request_id: int
    head: bytes
    error: Fs3Error | None
    verified: bool = False  # what a READ_BATCH brought has been compared with its checksums


class ClientConnection(Protocol):
    """The calling end of a connection. Used by one thread; not shared over a fork.

    It connects in the background; requests wait for it. A request ends in exactly one
    :class:`Completion`, unless it is forgotten. ``error`` is what the server said, or UNREACHABLE
    (not sent, or not whole: it cannot have been acted on), or MAYBE_APPLIED (the connection broke
    before the answer), or PROTOCOL (an answer that makes no sense). After any of the last three the
    connection is dead; make a new one.
    """

    error: Fs3Error | None  # why it is dead

    @property
    def dead(self) -> bool:
        """Nothing more can be sent."""

    @property
    def pending(self) -> int:
        """Requests without an answer."""

    @property
    def wants_write(self) -> bool:
        """Watch for writability too."""

    def fileno(self) -> int:
        """For poll; may change, so ask again before each wait."""

    def send(
        self, method: int, request_id: int, head: Buffer, body_parts: Sequence[memoryview] = ()
    ) -> None:
        """Begin a request; ``request_id`` must not be pending here.

        The parts must stay as they are until it is completed, or :meth:`forget` says otherwise.
        """

    def read_here(
        self, items: NDArray[Any], parts: Sequence[memoryview], versions: Callable[[int], int]
    ) -> bool:
        """Read pieces at once, without asking; verified, and none short.

        ``items`` are READ_ITEMs that have a length, ``parts`` a scatter list for all of them;
        ``versions`` says at which version a chain is asked. False if that cannot be done: then the
        parts may hold anything, and a READ_BATCH is the way.
        """

    def read_piece_here(
        self, chunk: bytes, served: int, offset: int, parts: Sequence[memoryview]
    ) -> bool:
        """The same for one piece. ``served``: ``served_word`` of its chain (fs3/core/stamps.py)."""

    def forget(self, request_id: int) -> None:
        """Give up on a request: nothing will complete, and the caller's memory is left alone."""

    def take_completed(self) -> list[Completion]:
        """What has completed since this was asked last."""

    def on_writable(self) -> None:
        """Its descriptor is."""

    def on_readable(self) -> None:
        """Its descriptor is, or has failed."""

    def close(self) -> None:
        """What is pending completes as broken."""


class Transport(Protocol):
    """A way to reach nodes."""

    @property
    def name(self) -> str:
        """For logs and settings: ``tcp``."""

    def reaches(self, node: NodeInfo) -> bool:
        """Whether it is worth a try, by what the node announces and what this process can do."""

    def connect(self, node: NodeInfo, cluster_id: str, place: Place) -> ClientConnection:
        """Begin a connection; Fs3Error UNREACHABLE if it is known at once that there is none."""
