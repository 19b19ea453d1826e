"""What callers hand in as values, seen as bytes: no copy is made of any of it."""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.regions import WHOLE_BYTES_MAX

Parts = list[memoryview]


class Registered:
    """Tensors that were announced: what lies in them is a part of the same memory each time.

    A NIC's registration belongs to an object that owns memory (fs3/transport/rdma/regions.py). An
    array or a mapping is one; of a tensor only the address is known, and a view made anew for each
    call would be registered anew. A large one is several, of what a NIC's registration may hold.
    """

    def __init__(self) -> None:
        # (start, end, memory) by address. None lies in another, so that ends ascend, too. Replaced
        # as a whole: other threads may be looking.
        self._pieces: list[tuple[int, int, memoryview]] = []

    def add(self, value: Any) -> None:  # noqa: ANN401 - many kinds of buffer
        """Fs3Error INVALID for what could not be read into."""
        items = value if isinstance(value, list | tuple) else (value,)
        for part, view in zip(items, parts_of(value, writable=True), strict=True):
            if hasattr(part, "data_ptr"):
                for start in range(0, len(view), WHOLE_BYTES_MAX):
                    address = part.data_ptr() + start
                    length = min(WHOLE_BYTES_MAX, len(view) - start)
                    self._add(address, address + length, _memory(part, address, length))

    def _add(self, start: int, end: int, memory: memoryview) -> None:
        if self.part(start, end - start) is not None:
            return
        others = [piece for piece in self._pieces if not (start <= piece[0] and piece[1] <= end)]
        self._pieces = sorted([*others, (start, end, memory)], key=lambda piece: piece[0])

    def part(self, address: int, length: int) -> memoryview | None:
        """The announced memory there, if it is all one tensor's."""
        pieces = self._pieces
        # The last one that begins there or before is the one that reaches furthest, too.
        at = bisect_left(pieces, (address + 1,)) - 1
        if at < 0:
            return None
        start, end, view = pieces[at]
        if address + length > end:
            return None
        return view[address - start : address - start + length]


_NONE = Registered()


def parts_of(value: Any, *, writable: bool, registered: Registered = _NONE) -> Parts:  # noqa: ANN401
    """The memory of one value: a buffer, a torch CPU tensor, or a sequence of these.

    Fs3Error INVALID for memory that is not contiguous, not writable or not the CPU's.
    """
    if isinstance(value, list | tuple):
        return [_view(part, writable, registered) for part in value]
    return [_view(value, writable, registered)]


def _view(part: Any, writable: bool, registered: Registered) -> memoryview:  # noqa: ANN401
    if isinstance(part, memoryview):
        view = part
    elif hasattr(part, "data_ptr"):
        return _tensor(part, registered)
    else:
        try:
            view = memoryview(part)
        except TypeError:
            detail = f"a {type(part).__name__} is no buffer; bytes-like objects, arrays and"
            raise Fs3Error(Code.INVALID, f"{detail} torch CPU tensors are allowed") from None
    if writable and view.readonly:
        raise Fs3Error(Code.INVALID, f"a read-only {type(part).__name__} cannot take a value")
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    if not view.c_contiguous:
        detail = f"a {type(part).__name__} of shape {view.shape} and strides {view.strides}"
        raise Fs3Error(Code.INVALID, f"{detail} is not contiguous: hand in its parts")
    if not view.nbytes:
        return memoryview(b"")
    return view.cast("B")


def _tensor(tensor: Any, registered: Registered) -> memoryview:  # noqa: ANN401
    """A torch tensor's memory, by address: numpy knows no bfloat16 nor float8."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        detail = f"a tensor on {tensor.device}, strides {tuple(tensor.stride())}"
        raise Fs3Error(Code.INVALID, f"{detail}: contiguous tensors on the CPU are allowed")
    length = tensor.numel() * tensor.element_size()
    if not length:
        return memoryview(b"")
    known = registered.part(tensor.data_ptr(), length)
    if known is not None:
        return known
    return _memory(tensor, tensor.data_ptr(), length)


def _memory(tensor: Any, address: int, length: int) -> memoryview:  # noqa: ANN401
    memory: Any = (ctypes.c_ubyte * length).from_address(address)
    memory.tensor = tensor  # the view must not outlive it
    return memoryview(memory).cast("B")


def lengths_of(values: Sequence[Sequence[memoryview]]) -> list[int]:
    """Bytes of each value."""
    return [len(parts[0]) if len(parts) == 1 else sum(map(len, parts)) for parts in values]
