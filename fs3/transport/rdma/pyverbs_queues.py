"""Completion queues and queue pairs by pyverbs.

Work requests are described through the extended interface, which makes no object for each, where
the device has it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.inventory import LinkLayer
from fs3.transport.rdma.pyverbs_objects import Opened, descriptors, gid_text, making_channel
from fs3.transport.rdma.verbs import RECEIVE, UNSIGNALED, Opcode, Path, WorkCompletion, WorkRequest

if TYPE_CHECKING:
    from fs3.transport.rdma.pyverbs_device import PyverbsDevice

_CHANNEL = "anon_inode:[infinibandevent]"
_EVENT_BYTES = 8  # struct ib_uverbs_comp_event_desc
_MTU = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}  # enum ibv_mtu
_ACK_TIMEOUT = 14  # 4.096 us << 14: 67 ms
_RETRIES = 7
_RNR_RETRIES = 7  # for ever; credits keep it from happening
_RNR_TIMER = 12  # 0.64 ms
_HOP_LIMIT = 64


class PyverbsQueue(Opened):
    """See :class:`verbs.CompletionQueue`."""

    order = 3
    has_channel = True

    def __init__(self, context: Any, entries: int, success: int, *, solicits: bool) -> None:  # noqa: ANN401
        """``solicits``: the device tells messages that are solicited from others."""
        from pyverbs.cq import CQ, CompChannel

        with making_channel:
            before = descriptors(_CHANNEL)
            channel = CompChannel(context)
            # pyverbs 44 does not tell the descriptor.
            (self._fd,) = descriptors(_CHANNEL) - before
        os.set_blocking(self._fd, False)
        self._library = ctypes.CDLL("libibverbs.so.1")
        self.made = CQ(context, entries, None, channel, 0)
        self._success = success
        self._solicits = solicits
        super().__init__(self.made, channel)

    def fileno(self) -> int:
        return self._fd

    def arm(self, *, solicited_only: bool) -> None:
        self.made.req_notify(solicited_only and self._solicits)

    def take_events(self) -> None:
        # Arming once brings one event at most; were there more, the descriptor stayed readable.
        try:
            data = os.read(self._fd, _EVENT_BYTES)
        except BlockingIOError:
            return
        # The event names libibverbs' own object. pyverbs 44's ack_events has no effect, and a
        # queue with events that were taken and not acknowledged never closes.
        queue = ctypes.c_void_p(int.from_bytes(data, "little"))
        self._library.ibv_ack_cq_events(queue, 1)

    def poll(self, count: int) -> list[WorkCompletion]:
        _, found = self.made.poll(count)
        return [
            WorkCompletion(
                wc.qp_num,
                wc.wr_id,
                "" if wc.status == self._success else _status_name(wc.status),
                wc.byte_len,
            )
            for wc in found
        ]


def _status_name(status: int) -> str:
    from pyverbs.cq import cqe_status_to_str

    return str(cqe_status_to_str(status))


class PyverbsQueuePair(Opened):
    """See :class:`verbs.QueuePair`."""

    order = 1

    def __init__(
        self,
        made: Any,  # noqa: ANN401
        device: PyverbsDevice,
        slots: Sequence[tuple[int, int, int]],
        *,
        extended: bool,
    ) -> None:
        from pyverbs.wr import SGE, RecvWR

        super().__init__(made)
        self.number: int = made.qp_num
        self._made = made
        self._device = device
        self._post = self._post_extended if extended else self._post_list
        self._scratch = SGE(0, 0, 0)  # what is in it is copied when a request is described
        self._receives = []
        for slot, (address, length, key) in enumerate(slots):
            element = SGE(address, length, key)
            self._receives.append(RecvWR(wr_id=RECEIVE + slot, num_sge=1, sg=[element]))
            element.close()

    def prepare(self) -> None:
        from pyverbs.pyverbs_error import PyverbsError
        from pyverbs.qp import QPAttr

        e = self._device.constants
        attributes = QPAttr(qp_state=e.IBV_QPS_INIT, port_num=self._device.port.number)
        attributes.qp_access_flags = self._access()
        what = e.IBV_QP_STATE | e.IBV_QP_PKEY_INDEX | e.IBV_QP_PORT | e.IBV_QP_ACCESS_FLAGS
        try:
            self._made.modify(attributes, what)
        except PyverbsError as error:
            raise Fs3Error(
                Code.UNREACHABLE, f"no queue pair on {self._device.port.name}: {error}"
            ) from error

    def _access(self) -> int:
        e = self._device.constants
        return int(e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ)

    def connect(self, path: Path) -> None:
        from pyverbs.addr import GID, AHAttr, GlobalRoute
        from pyverbs.pyverbs_error import PyverbsError
        from pyverbs.qp import QPAttr

        device = self._device
        port = device.port
        route = GlobalRoute(
            dgid=GID(gid_text(path.gid)), sgid_index=port.gid_index, hop_limit=_HOP_LIMIT
        )
        attributes = QPAttr(port_num=port.number)
        attributes.qp_access_flags = self._access()
        attributes.dest_qp_num = path.queue_pair
        attributes.path_mtu = _MTU[path.mtu_bytes]
        attributes.max_dest_rd_atomic = path.reads_in
        attributes.max_rd_atomic = path.reads_out
        attributes.min_rnr_timer = _RNR_TIMER
        attributes.rq_psn = path.sequence_number
        attributes.sq_psn = device.sequence_number
        attributes.ah_attr = AHAttr(port_num=port.number, is_global=1, gr=route)
        if port.link_layer is LinkLayer.INFINIBAND:
            attributes.ah_attr.dlid = path.lid
        attributes.timeout = _ACK_TIMEOUT
        attributes.retry_cnt = _RETRIES
        attributes.rnr_retry = _RNR_RETRIES
        try:
            self._made.to_rts(attributes)
        except PyverbsError as error:
            raise Fs3Error(
                Code.UNREACHABLE,
                f"no queue pair from {port.name} ({gid_text(port.gid)}) to"
                f" {gid_text(path.gid)} with MTU {path.mtu_bytes}: {error}",
            ) from error

    def close(self) -> None:
        mine = not self.closed and self._pid == os.getpid()
        super().close()
        if mine:  # pyverbs gives their memory back only when it is told to
            for made in (self._scratch, *self._receives):
                made.close()
            self._receives.clear()

    def post_receive(self, slot: int) -> None:
        self._made.post_recv(self._receives[slot])

    def post(self, requests: Sequence[WorkRequest], work_id: int) -> None:
        from pyverbs.pyverbs_error import PyverbsError

        if self.closed:
            raise Fs3Error(Code.UNREACHABLE, "the queue pair is closed")
        try:
            self._post(requests, work_id)
        except PyverbsError as error:
            raise Fs3Error(Code.UNREACHABLE, f"the queue pair takes no work: {error}") from error

    def _post_extended(self, requests: Sequence[WorkRequest], work_id: int) -> None:
        made, element, e = self._made, self._scratch, self._device.constants
        last = len(requests) - 1
        made.wr_start()
        for index, request in enumerate(requests):
            flags = e.IBV_SEND_SOLICITED if request.solicited else 0
            if index == last and work_id != UNSIGNALED:
                flags |= e.IBV_SEND_SIGNALED
                made.wr_id = work_id
            made.wr_flags = flags
            if request.opcode is Opcode.SEND:
                made.wr_send()
            elif request.opcode is Opcode.WRITE:
                made.wr_rdma_write(request.remote_key, request.remote_address)
            else:
                made.wr_rdma_read(request.remote_key, request.remote_address)
            element.addr, element.length = request.address, request.length
            element.lkey = request.local_key
            made.wr_set_sge(element)
        made.wr_complete()

    def _post_list(self, requests: Sequence[WorkRequest], work_id: int) -> None:
        from pyverbs.wr import SGE, SendWR

        e = self._device.constants
        opcodes = {
            Opcode.SEND: e.IBV_WR_SEND,
            Opcode.WRITE: e.IBV_WR_RDMA_WRITE,
            Opcode.READ: e.IBV_WR_RDMA_READ,
        }
        made: list[Any] = []
        for request in requests:
            element = SGE(request.address, request.length, request.local_key)
            one = SendWR(
                opcode=opcodes[request.opcode],
                num_sge=1,
                sg=[element],
                send_flags=e.IBV_SEND_SOLICITED if request.solicited else 0,
            )
            element.close()
            if request.opcode is not Opcode.SEND:
                one.set_wr_rdma(request.remote_key, request.remote_address)
            if made:
                made[-1].next_wr = one  # which keeps no reference: the list does
            made.append(one)
        if work_id != UNSIGNALED:
            made[-1].wr_id = work_id
            made[-1].send_flags |= e.IBV_SEND_SIGNALED
        try:
            self._made.post_send(made[0])
        finally:
            for one in made:
                one.close()
