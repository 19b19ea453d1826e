"""What an RDMA device does without fs3: two queue pairs on one port, and memory registered once.

As in fs3 the end with the data WRITEs it for a read, and READs it for a write, all of a turn at
once; the caller sleeps on the completion channel.
"""

from __future__ import annotations

import mmap
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.ports import OpenPort, open_ports
from fs3.transport.rdma.verbs import CompletionQueue, Opcode, Path, QueuePair, WorkRequest

from .io_cells import Contender, Entrant, Room

_BATCH = 64  # work requests posted in one chain
_RECEIVE_BYTES = 64


@contextmanager
def bare_rdma(memory: mmap.mmap, copies: mmap.mmap, depth_max: int) -> Iterator[Contender]:
    """A limit; Fs3Error UNREACHABLE or NO_SPACE says why there is none."""
    ports, why = open_ports()
    if not ports:
        raise Fs3Error(Code.UNREACHABLE, why)
    device = ports[0].device
    with ExitStack() as stack:
        regions = [device.register(memoryview(each), remote=True) for each in (memory, copies)]
        for region in regions:
            stack.callback(region.close)
        receives = mmap.mmap(-1, mmap.PAGESIZE)
        slot = device.register(memoryview(receives), remote=False)
        stack.callback(slot.close)
        queue = device.completion_queue(2 * depth_max + 2)
        stack.callback(queue.close)
        slots = [(slot.address, _RECEIVE_BYTES, slot.local_key)]
        ends = [device.queue_pair(queue, depth=depth_max + 1, slots=slots) for _ in range(2)]
        for end in ends:
            stack.callback(end.close)
        _connect(ports[0], ends[0], ends[1])
        _connect(ports[0], ends[1], ends[0])
        here, there = regions

        @contextmanager
        def enter(room: Room) -> Iterator[Entrant]:
            size, depth = room.cell.size, room.cell.depth
            opcode = Opcode.WRITE if room.cell.reads else Opcode.READ
            # The end that acts has its data in the copies; the other's is the room of the cell.
            chain = [
                WorkRequest(
                    opcode,
                    there.address + i * size,
                    size,
                    there.local_key,
                    here.address + i * size,
                    here.remote_key,
                )
                for i in range(depth)
            ]

            def step(_: int) -> int:
                for at in range(0, depth, _BATCH):
                    ends[0].post(chain[at : at + _BATCH], work_id=at)
                _wait(queue, -(-depth // _BATCH))
                return depth

            yield Entrant(step)

        yield Contender("bare rdma", enter)


def _connect(port: OpenPort, here: QueuePair, there: QueuePair) -> None:
    device = port.device
    here.connect(
        Path(
            queue_pair=there.number,
            gid=port.port.gid,
            lid=port.port.lid,
            sequence_number=device.sequence_number,
            mtu_bytes=port.port.mtu_bytes,
            reads_in=device.reads_max,
            reads_out=device.reads_max,
        )
    )


def _wait(queue: CompletionQueue, count: int) -> None:
    """For so many completions."""
    while True:
        queue.arm(solicited_only=False)
        for done in queue.poll(count):
            if done.error:
                raise Fs3Error(Code.UNREACHABLE, f"bare RDMA: {done.error}")
            count -= 1
        if not count:
            return
        select.select([queue], [], [], 30.0)
        queue.take_events()
