"""The KV cache by RDMA: memory that was announced is known to the NIC once for all transfers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from counters import nic_packets
from kv_cluster import kv_cluster, new_cache
from running_cluster import RunningCluster

from fs3.client.kvcache import KVCache
from fs3.transport.rdma.pyverbs_device import PyverbsDevice

pytestmark = [pytest.mark.rdma, pytest.mark.cluster, pytest.mark.long]

# Larger than what is copied rather than registered (loans.COPIED_BYTES_MAX).
PAGE_BYTES = 320 << 10
PAGES = 6
PATIENCE_S = 120.0  # the guest's only processor plays all parts


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Without RDMA clients would read its files themselves."""
    directory = tmp_path_factory.mktemp("kv") / "data"
    with kv_cluster(directory, {"local": {"enabled": False}}) as running:
        yield running


@pytest.fixture
def cache(cluster: RunningCluster) -> Iterator[KVCache]:
    with new_cache(cluster, deadline_s=PATIENCE_S) as made:
        made.use_transports(["rdma"])
        yield made


class Tensor:
    """As much of a torch CPU tensor as is looked at: memory by its address."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory

    def data_ptr(self) -> int:
        return self._memory.ctypes.data

    def numel(self) -> int:
        return self._memory.size

    def element_size(self) -> int:
        return 1

    def is_contiguous(self) -> bool:
        return True


class Pool:
    """Host pages as an engine has them: one tensor, of which each call gets parts made anew."""

    def __init__(self) -> None:
        self.memory = np.zeros(2 * PAGES * PAGE_BYTES, np.uint8)

    def whole(self) -> Tensor:
        return Tensor(self.memory)

    def pages(self, first: int) -> list[Tensor]:
        starts = range(first * PAGE_BYTES, (first + PAGES) * PAGE_BYTES, PAGE_BYTES)
        return [Tensor(self.memory[start : start + PAGE_BYTES]) for start in starts]

    def fill(self, first: int) -> bytes:
        part = self.memory[first * PAGE_BYTES : (first + PAGES) * PAGE_BYTES]
        part[:] = np.frombuffer(os.urandom(len(part)), np.uint8)
        return part.tobytes()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each memory region that this process makes, as it makes them."""
    lengths: list[int] = []
    register = PyverbsDevice.register

    def counted(self, memory, *, remote):
        lengths.append(len(memory))
        return register(self, memory, remote=remote)

    monkeypatch.setattr(PyverbsDevice, "register", counted)
    return lengths


def kernels_regions() -> list[int]:
    """Bytes of each memory region that the kernel knows of this process."""
    shown = ["rdma", "-j", "resource", "show", "mr", "pid", str(os.getpid())]
    ran = subprocess.run(shown, capture_output=True, text=True, check=True)
    return [int(region["mrlen"]) for region in json.loads(ran.stdout)]


def round_trip(cache: KVCache, pool: Pool, name: bytes) -> None:
    """Put the first half's pages, get them into the second half, compare every byte."""
    keys = [name + b"/%d" % page for page in range(PAGES)]
    content = pool.fill(0)
    pool.memory[PAGES * PAGE_BYTES :] = 0
    assert cache.put_from(keys, pool.pages(0)).all()
    assert cache.get_into(keys, pool.pages(PAGES)).tolist() == [PAGE_BYTES] * PAGES
    assert pool.memory[PAGES * PAGE_BYTES :].tobytes() == content


def bring_links_up(cache: KVCache, name: bytes) -> None:
    """A link comes up with its first requests, which go over TCP: with memory of their own."""
    for attempt in range(20):
        before = nic_packets()
        round_trip(cache, Pool(), b"%s/%d" % (name, attempt))
        if nic_packets() - before >= 2 * PAGES * PAGE_BYTES // 4096:
            return
    raise AssertionError("requests still go over TCP")


def test_an_announced_tensor_is_registered_once_for_all_its_puts_and_gets(cache, registered):
    bring_links_up(cache, b"once")
    pool = Pool()
    cache.register(pool.whole())
    registered.clear()
    round_trip(cache, pool, b"first")
    assert registered.count(pool.memory.nbytes) == 1
    assert registered.count(PAGE_BYTES) == 0
    registered.clear()
    before = nic_packets()
    for number in range(4):
        round_trip(cache, pool, b"later-%d" % number)
    assert registered == []
    assert nic_packets() - before >= 4 * 2 * PAGES * PAGE_BYTES // 4096  # and it was the NIC
    assert kernels_regions().count(pool.memory.nbytes) == 1


def test_one_that_was_not_announced_is_registered_with_each_transfer(cache, registered):
    bring_links_up(cache, b"each")
    pool = Pool()
    registered.clear()
    for number in range(2):
        round_trip(cache, pool, b"each-%d" % number)
    assert registered.count(PAGE_BYTES) >= 2 * 2 * PAGES
    assert pool.memory.nbytes not in registered


def test_an_array_needs_no_announcement_to_be_registered_once(cache, registered):
    bring_links_up(cache, b"array")
    memory = np.frombuffer(bytearray(os.urandom(PAGES * PAGE_BYTES)), np.uint8).copy()
    pages = memory.reshape(PAGES, PAGE_BYTES)
    registered.clear()
    for number in range(3):
        keys = [b"array-%d/%d" % (number, page) for page in range(PAGES)]
        content = memory.tobytes()
        assert cache.put_from(keys, list(pages)).all()
        memory[:] = 0
        assert cache.get_into(keys, list(pages)).tolist() == [PAGE_BYTES] * PAGES
        assert memory.tobytes() == content
    assert registered.count(memory.nbytes) == 1
    assert registered.count(PAGE_BYTES) == 0
