"""Verbs without a NIC: queue pairs within one process, over its own memory.

What a real one would refuse is refused here, too: memory that is not registered (or not any more),
or not for the peer, a message without a receive or longer than it: the queue pair fails, and so
does the other one with what it posts next.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections import deque
from functools import partial

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.inventory import GidType, LinkLayer, Port
from fs3.transport.rdma.ports import OpenPort
from fs3.transport.rdma.regions import Regions, address_of
from fs3.transport.rdma.verbs import RECEIVE, UNSIGNALED, Opcode, WorkCompletion

GID = bytes(10) + b"\xff\xff\x7f\x00\x00\x01"


class Fabric:
    """All that there is of a network, and its registered memory."""

    def __init__(self, memory_max=1 << 40):
        self.lock = threading.RLock()
        self.numbers = itertools.count(17)
        self.queue_pairs = {}
        self.regions = {}
        self.memory_max = memory_max
        self.registrations = 0
        self.moved_bytes = {opcode: 0 for opcode in Opcode}
        self.reads_late = False  # READs are done after what was posted behind them

    def port(self, gid=GID):
        device = FakeDevice(self)
        port = Port(
            device="fake0",
            number=1,
            gid_index=0,
            gid=gid,
            gid_type=GidType.ROCE_V2,
            link_layer=LinkLayer.ETHERNET,
            lid=0,
            mtu_bytes=4096,
            prefix_bits=8,
        )
        return OpenPort(port=port, device=device, regions=Regions(device))

    def check(self, key, address, length, remote):
        region = self.regions.get(key)
        if region is None or not region.address <= address <= address + length <= region.end:
            return "local protection error" if not remote else "remote access error"
        return "" if region.remote or not remote else "remote access error"


class FakeRegion:
    def __init__(self, fabric, memory, remote):
        # As a NIC does, it keeps no memory alive.
        self._fabric, self.remote = fabric, remote
        self.address, self.length = address_of(memory), len(memory)
        self.end = self.address + self.length
        with fabric.lock:
            used = sum(region.length for region in fabric.regions.values())
            if used + self.length > fabric.memory_max:
                raise Fs3Error(Code.NO_SPACE, f"{self.length} bytes cannot be registered")
            self.local_key = self.remote_key = next(fabric.numbers)
            fabric.regions[self.local_key] = self
            fabric.registrations += 1

    def close(self):
        with self._fabric.lock:
            self._fabric.regions.pop(self.local_key, None)


class FakeQueue:
    def __init__(self):
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._completions = deque()
        self.late = deque()  # what to do after the next poll
        self.stands_for = {}  # by completion: a queue pair, and how many requests of it are done
        self._armed = self._solicited_only = False

    def fileno(self):
        return self._event

    def arm(self, *, solicited_only):
        self._solicited_only = solicited_only and (self._solicited_only or not self._armed)
        self._armed = True

    def take_events(self):
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return

    def put(self, completion, solicited):
        self._completions.append(completion)
        if self._armed and (solicited or completion.error or not self._solicited_only):
            self._armed = self._solicited_only = False
            os.eventfd_write(self._event, 1)

    def poll(self, count):
        found = []
        while self._completions and len(found) < count:
            done = self._completions.popleft()
            found.append(done)
            pair, requests = self.stands_for.pop((done.work_id, done.queue_pair), (None, 0))
            if pair is not None:
                pair.posted -= requests
        while self.late and not found:
            self.late.popleft()()
        return found

    def close(self):
        os.close(self._event)


class FakeQueuePair:
    def __init__(self, fabric, queue, depth, slots):
        self.fabric, self.queue, self.depth, self.slots = fabric, queue, depth, slots
        self.number = next(fabric.numbers)
        self.receives = deque()
        self.peer_number = 0
        self.failed = False
        self.posted = 0  # of which nobody has seen that they are done
        self.unsignaled = 0
        fabric.queue_pairs[self.number] = self

    def connect(self, path):
        self.peer_number = path.queue_pair

    def post_receive(self, slot):
        with self.fabric.lock:
            assert slot not in self.receives
            self.receives.append(slot)

    def post(self, requests, work_id):
        assert 0 < len(requests) <= self.depth
        with self.fabric.lock:
            if self.fabric.queue_pairs.get(self.number) is not self:
                raise Fs3Error(Code.UNREACHABLE, "the queue pair is closed")
            self.posted += len(requests)
            if self.posted > self.depth:
                raise Fs3Error(Code.UNREACHABLE, f"the queue has room for {self.depth} requests")
            for request in requests[:-1]:
                self._begin(request, UNSIGNALED)
            self._begin(requests[-1], work_id)

    def _begin(self, request, work_id):
        if self.fabric.reads_late and request.opcode is Opcode.READ:
            self.queue.late.append(partial(self._do, request, work_id))
            os.eventfd_write(self.queue.fileno(), 1)
        else:
            self._do(request, work_id)

    def _do(self, request, work_id):
        with self.fabric.lock:
            error = "flushed" if self.failed else self._carry_out(request)
            if error:
                self.fail(error)
                return
            self.unsignaled += 1
            if work_id != UNSIGNALED:
                self.queue.put(WorkCompletion(self.number, work_id, "", 0), False)
                self.queue.stands_for[work_id, self.number] = self, self.unsignaled
                self.unsignaled = 0

    def _carry_out(self, request):
        fabric, length = self.fabric, request.length
        peer = fabric.queue_pairs.get(self.peer_number)
        if peer is None or peer.failed:
            return "transport retry counter exceeded"
        error = fabric.check(request.local_key, request.address, length, False)
        if error:
            return error
        fabric.moved_bytes[request.opcode] += length
        if request.opcode is Opcode.SEND:
            if not peer.receives:
                return "receiver not ready"
            slot = peer.receives.popleft()
            address, room, _ = peer.slots[slot]
            if length > room:
                return "local length error"
            ctypes.memmove(address, request.address, length)
            done = WorkCompletion(peer.number, RECEIVE + slot, "", length)
            peer.queue.put(done, request.solicited)
            return ""
        there = request.remote_address
        error = fabric.check(request.remote_key, there, length, True)
        if not error and request.opcode is Opcode.WRITE:
            ctypes.memmove(there, request.address, length)
        elif not error:
            ctypes.memmove(request.address, there, length)
        return error

    def fail(self, error="forced"):
        with self.fabric.lock:
            self.failed = True
            self.queue.put(WorkCompletion(self.number, 0, error, 0), True)

    def close(self):
        with self.fabric.lock:
            self.fabric.queue_pairs.pop(self.number, None)


class FakeDevice:
    sequence_number = 1
    reads_max = 4
    by_manager = False

    def __init__(self, fabric):
        self._fabric = fabric

    def register(self, memory, *, remote):
        return FakeRegion(self._fabric, memory, remote)

    def completion_queue(self, entries):
        return FakeQueue()

    def queue_pair(self, queue, *, depth, slots):
        return FakeQueuePair(self._fabric, queue, depth, slots)

    def close(self):
        pass
