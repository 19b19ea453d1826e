"""Bringing up a queue pair: what the two ends tell each other, and what they make of it."""

from __future__ import annotations

from fs3.errors import Code, Fs3Error
from fs3.proto import storage_pb2 as pb
from fs3.routing import RdmaEndpoint
from fs3.transport.rdma.inventory import Port, common_mtu, kind_of
from fs3.transport.rdma.link import Link, Shape
from fs3.transport.rdma.verbs import Device, Path
from fs3.wire import decode_rdma_endpoint, encode_rdma_endpoint

CONNECT_QUEUE_PAIR = 0x0307  # StorageControl.ConnectQueuePair
RDMA_LINK = 0x1006  # a frame: this connection and the queue pair of that link belong together


def describe(link: Link, device: Device, port: Port, manager_port: int = 0) -> pb.QueuePairEnd:
    """This end; a server's, if that is so, with the port that its connection manager listens on."""
    return pb.QueuePairEnd(
        endpoint=encode_rdma_endpoint(port.endpoint()),
        queue_pair=link.queue_pair.number,
        sequence_number=device.sequence_number,
        slots=link.shape.slots,
        slot_bytes=link.shape.slot_bytes,
        reads_max=device.reads_max,
        manager_port=manager_port,
    )


def open_link(link: Link, device: Device, port: Port, peer: pb.QueuePairEnd) -> None:
    """Connect the queue pair with the one that ``peer`` describes.

    With a connection manager, which does that later, it is only made ready for that. Fs3Error
    INVALID or UNREACHABLE says what is wrong.
    """
    there: RdmaEndpoint = decode_rdma_endpoint(peer.endpoint)
    theirs = Shape(slots=peer.slots, slot_bytes=peer.slot_bytes)
    theirs.validate()
    if not 0 < peer.reads_max < 256 or not peer.queue_pair:
        raise Fs3Error(
            Code.INVALID,
            f"queue pair {peer.queue_pair} with {peer.reads_max} reads: a queue pair and 1 to 255"
            " reads are needed",
        )
    if kind_of(there) is not port.gid_type:
        raise Fs3Error(
            Code.INVALID,
            f"{port.name} has {port.gid_type.value}, {there.name} {kind_of(there).value}",
        )
    if device.by_manager:
        link.queue_pair.prepare()
    else:
        link.queue_pair.connect(
            Path(
                queue_pair=peer.queue_pair,
                gid=there.gid,
                lid=there.lid,
                sequence_number=peer.sequence_number & 0xFFFFFF,
                mtu_bytes=common_mtu(port.mtu_bytes, there.mtu_bytes),
                reads_in=device.reads_max,
                reads_out=min(device.reads_max, peer.reads_max),
            )
        )
    link.opened(theirs)


def token_of(link: int) -> bytes:
    """What a caller shows the connection manager, and names in RDMA_LINK."""
    return link.to_bytes(8, "little")
