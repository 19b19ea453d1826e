"""Devices and registered memory by pyverbs, which is used here and in discovery.py alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.inventory import GidType, Port, ip_of
from fs3.transport.rdma.pyverbs_manager import Dial, Listener
from fs3.transport.rdma.pyverbs_objects import MEMLOCK_HINT, Opened, gid_text, load
from fs3.transport.rdma.pyverbs_queues import PyverbsQueue, PyverbsQueuePair
from fs3.transport.rdma.regions import address_of
from fs3.transport.rdma.verbs import CompletionQueue, QueuePair

_INLINE_BYTES = 0


class PyverbsRegion(Opened):
    """See :class:`verbs.Region`."""

    order = 4

    def __init__(self, made: Any, address: int, length: int) -> None:  # noqa: ANN401
        super().__init__(made)
        self.address = address
        self.length = length
        self.local_key: int = made.lkey
        self.remote_key: int = made.rkey


class PyverbsDevice(Opened):
    """See :class:`verbs.Device`."""

    order = 5

    def __init__(self, port: Port) -> None:
        """Fs3Error UNREACHABLE if the device of ``port`` cannot be opened."""
        from pyverbs.device import Context
        from pyverbs.pd import PD
        from pyverbs.pyverbs_error import PyverbsError

        self.port = port
        self.by_manager = port.gid_type is GidType.IWARP
        self.constants = load()
        try:
            self._context = Context(name=port.device)
            self._domain = PD(self._context)
            self._attributes = self._context.query_device()
        except PyverbsError as error:
            raise Fs3Error(
                Code.UNREACHABLE, f"RDMA device {port.device} does not open: {error}"
            ) from error
        self.sequence_number = int.from_bytes(os.urandom(3), "little")
        self.reads_max = max(
            1, min(self._attributes.max_qp_rd_atom, self._attributes.max_qp_init_rd_atom, 16)
        )
        super().__init__(self._domain, self._context)

    def register(self, memory: memoryview, *, remote: bool) -> PyverbsRegion:
        from pyverbs.mr import MR
        from pyverbs.pyverbs_error import PyverbsError

        e = self.constants
        access = 0 if memory.readonly else e.IBV_ACCESS_LOCAL_WRITE
        if remote:
            access |= e.IBV_ACCESS_REMOTE_READ
        # What an RDMA READ brings is a write by the peer to iWARP, though only its own driver is
        # told the key.
        if (remote or self.by_manager) and not memory.readonly:
            access |= e.IBV_ACCESS_REMOTE_WRITE
        address, length = address_of(memory), memory.nbytes
        try:
            made = MR(self._domain, length, access, address=address)
        except PyverbsError as error:
            raise Fs3Error(
                Code.NO_SPACE,
                f"{length} bytes cannot be registered with {self.port.device} ({error}):"
                f" {MEMLOCK_HINT}",
            ) from error
        return PyverbsRegion(made, address, length)

    def completion_queue(self, entries: int) -> PyverbsQueue:
        from pyverbs.pyverbs_error import PyverbsError

        try:
            wanted = min(entries, self._attributes.max_cqe)
            success = self.constants.IBV_WC_SUCCESS
            # Linux' soft-iWARP (siw) takes no message for a solicited one.
            solicits = not self.by_manager
            return PyverbsQueue(self._context, wanted, success, solicits=solicits)
        except PyverbsError as error:
            raise Fs3Error(
                Code.NO_SPACE, f"no completion queue on {self.port.device}: {error}"
            ) from error

    def queue_pair(
        self,
        queue: CompletionQueue,
        *,
        depth: int,
        slots: Sequence[tuple[int, int, int]],
    ) -> PyverbsQueuePair:
        from pyverbs.pyverbs_error import PyverbsError
        from pyverbs.qp import QP, QPCap, QPEx, QPInitAttr, QPInitAttrEx

        assert isinstance(queue, PyverbsQueue)
        e = self.constants
        limits = QPCap(
            max_send_wr=depth,
            max_recv_wr=len(slots),
            max_send_sge=1,
            max_recv_sge=1,
            max_inline_data=_INLINE_BYTES,
        )
        operations = (
            e.IBV_QP_EX_WITH_SEND | e.IBV_QP_EX_WITH_RDMA_WRITE | e.IBV_QP_EX_WITH_RDMA_READ
        )
        wanted = QPInitAttrEx(
            qp_type=e.IBV_QPT_RC,
            scq=queue.made,
            rcq=queue.made,
            cap=limits,
            pd=self._domain,
            send_ops_flags=operations,
            comp_mask=e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        )
        try:
            return PyverbsQueuePair(QPEx(self._context, wanted), self, slots, extended=True)
        except PyverbsError:
            pass  # a driver without the extended interface
        plain = QPInitAttr(
            qp_type=e.IBV_QPT_RC, scq=queue.made, rcq=queue.made, cap=limits, sq_sig_all=0
        )
        try:
            return PyverbsQueuePair(QP(self._domain, plain), self, slots, extended=False)
        except PyverbsError as error:
            raise Fs3Error(
                Code.NO_SPACE,
                f"no queue pair on {self.port.device}: {error}; {MEMLOCK_HINT}",
            ) from error

    def listen(self) -> Listener:
        return Listener(self)

    def dial(self, pair: QueuePair, gid: bytes, port: int, token: bytes) -> Dial:
        to = ip_of(gid)
        if to is None:
            raise Fs3Error(Code.INVALID, f"{gid_text(gid)} stands for no IP address")
        return Dial(self, pair, to, port, token)
