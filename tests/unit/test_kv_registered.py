"""Tensors that were announced are one memory, so that a NIC registers them once."""

from __future__ import annotations

import ctypes
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from fs3.client import kv_buffers
from fs3.client.kv_buffers import Registered, parts_of
from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.regions import Regions, address_of


class Tensor:
    """As much of a torch CPU tensor as is looked at."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, memory, start=0, length=None):
        self._memory = memory
        self._start = start
        self._length = len(memory) - start if length is None else length

    def data_ptr(self):
        return ctypes.addressof(self._memory) + self._start

    def numel(self):
        return self._length

    def element_size(self):
        return 1

    def is_contiguous(self):
        return True


def page(size=4096):
    return (ctypes.c_ubyte * size)()


def test_every_part_of_an_announced_tensor_has_one_owner():
    memory, registered = page(), Registered()
    registered.add(Tensor(memory))
    views = [
        parts_of(Tensor(memory, start, 100), writable=True, registered=registered)[0]
        for start in (0, 100, 3996, 100)
    ]
    assert len({id(view.obj) for view in views}) == 1
    views[1][:3] = b"abc"
    assert bytes(memory[100:103]) == b"abc"
    assert [len(view) for view in views] == [100] * 4
    weakref.ref(views[0].obj)  # a NIC's registration is kept by one


def test_what_was_not_announced_or_reaches_beyond_is_seen_by_itself():
    memory, other, registered = page(), page(), Registered()
    registered.add([Tensor(memory, 0, 2048)])
    known = parts_of(Tensor(memory, 0, 2048), writable=True, registered=registered)[0]
    for tensor in (Tensor(memory, 1000, 2000), Tensor(other)):
        view = parts_of(tensor, writable=True, registered=registered)[0]
        assert view.obj is not known.obj
        view[0] = 7
        assert bytes(view[:1]) == b"\7"


def test_arrays_can_be_announced_and_what_is_no_buffer_cannot():
    registered = Registered()
    registered.add(np.zeros(100, np.uint8))
    with pytest.raises(Fs3Error) as refused:
        registered.add(3)
    assert refused.value.code is Code.INVALID


class Device:
    """Counts what is registered."""

    def __init__(self):
        self.lengths = []

    def register(self, memory, *, remote):
        self.lengths.append(len(memory))
        start = address_of(memory)
        return SimpleNamespace(
            address=start, length=len(memory), local_key=1, remote_key=2, close=lambda: None
        )


def test_a_nic_registers_an_announced_tensor_once_and_others_each_time():
    device, memory, registered = Device(), page(), Registered()
    regions = Regions(device)

    def transfer(known):
        for start in range(0, 4096, 512):
            views = parts_of(Tensor(memory, start, 512), writable=True, registered=known)
            regions.lend(views, remote=True).close()

    transfer(Registered())
    assert device.lengths == [512] * 8
    device.lengths.clear()
    registered.add(Tensor(memory))
    transfer(registered)
    transfer(registered)
    assert device.lengths == [4096]


def test_a_large_tensor_is_registered_in_the_pieces_that_a_nic_takes(monkeypatch):
    monkeypatch.setattr(kv_buffers, "WHOLE_BYTES_MAX", 1024)
    device, memory, registered = Device(), page(), Registered()
    regions = Regions(device)
    registered.add(Tensor(memory))
    for start in range(0, 4096, 256):
        views = parts_of(Tensor(memory, start, 256), writable=True, registered=registered)
        regions.lend(views, remote=True).close()
    assert device.lengths == [1024] * 4


def test_of_memory_that_was_announced_in_several_ways_every_part_is_found():
    """Whole, in part, twice, in no order, and overlapping: the largest piece there counts."""
    memory, other, registered = page(), page(), Registered()
    for start, length in ((1000, 100), (0, 2048), (500, 200), (1500, 2000), (0, 2048)):
        registered.add(Tensor(memory, start, length))
    registered.add([Tensor(other, start, 64) for start in (3072, 0, 1024, 2048)])

    def owner(tensor):
        known = registered.part(tensor.data_ptr(), tensor.numel())
        return None if known is None else id(known.obj)

    whole = owner(Tensor(memory, 0, 2048))
    assert [owner(Tensor(memory, at, 48)) for at in (0, 500, 700, 1000, 1452)] == [whole] * 5
    behind = owner(Tensor(memory, 2000, 100))
    assert owner(Tensor(memory, 3400, 100)) == behind not in (None, whole)
    assert owner(Tensor(memory, 1400, 1000)) is None  # of both
    assert owner(Tensor(memory, 3400, 101)) is None
    assert len({owner(Tensor(other, at, 64)) for at in range(0, 4096, 1024)}) == 4
    assert owner(Tensor(other, 64, 1)) is None
