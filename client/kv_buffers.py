"""What callers hand in as values, seen as bytes: no copy is made of any of it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from fs3.errors import Code, Fs3Error

Parts = list[memoryview]


def parts_of(value: Any, *, writable: bool) -> Parts:  # noqa: ANN401 - many kinds of buffer
    """The memory of one value: a buffer, a torch CPU tensor, or a sequence of these.

    Fs3Error INVALID for memory that is not contiguous, not writable or not the CPU's.
    """
    if isinstance(value, list | tuple):
        return [_view(part, writable) for part in value]
    return [_view(value, writable)]


def _view(part: Any, writable: bool) -> memoryview:  # noqa: ANN401
    if isinstance(part, memoryview):
        view = part
    elif hasattr(part, "data_ptr"):
        return _tensor(part)
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


def _tensor(tensor: Any) -> memoryview:  # noqa: ANN401
    """A torch tensor's memory, by address: numpy knows no bfloat16 nor float8."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        detail = f"a tensor on {tensor.device}, strides {tuple(tensor.stride())}"
        raise Fs3Error(Code.INVALID, f"{detail}: contiguous tensors on the CPU are allowed")
    length = tensor.numel() * tensor.element_size()
    if not length:
        return memoryview(b"")
    memory = (ctypes.c_ubyte * length).from_address(tensor.data_ptr())
    memory.tensor = tensor  # the view must not outlive it
    return memoryview(memory).cast("B")


def lengths_of(values: Sequence[Parts]) -> list[int]:
    """Bytes of each value."""
    return [sum([len(part) for part in parts]) for parts in values]
