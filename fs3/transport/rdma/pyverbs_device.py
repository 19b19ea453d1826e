"""The verbs interfaces by pyverbs: Debian's python3-pyverbs (44) and later ones of the registry.

Everything that pyverbs makes holds a lock of the logging module for a moment; so work requests are
described through the extended interface, which makes no object for each, where the device has it.

A forked child must not touch what its parent opened, not even to close it: it is kept for ever.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.inventory import LinkLayer, Port
from fs3.transport.rdma.verbs import (
    RECEIVE,
    UNSIGNALED,
    CompletionQueue,
    Opcode,
    Path,
    WorkCompletion,
    WorkRequest,
)

_EVENT_BYTES = 8  # struct ib_uverbs_comp_event_desc
_MTU = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}  # enum ibv_mtu
_ACK_TIMEOUT = 14  # 4.096 us << 14: 67 ms
_RETRIES = 7
_RNR_RETRIES = 7  # for ever; credits keep it from happening
_RNR_TIMER = 12  # 0.64 ms
_HOP_LIMIT = 64
_INLINE_BYTES = 0
_MEMLOCK_HINT = (
    "allow more locked memory: LimitMEMLOCK=infinity in a systemd unit, ulimit -l unlimited in a"
    " shell, --ulimit memlock=-1 for a container"
)
# Opened here and not closed. In a forked child they are the parent's: kept, never touched.
_open: set[object] = set()
_inherited: list[object] = []
_making_channel = threading.Lock()


def _after_fork_in_child() -> None:
    _inherited.append(list(_open))
    _open.clear()


def _close_all() -> None:
    """Before the interpreter is taken apart, which would close things in any order."""
    for kind in (PyverbsQueuePair, PyverbsQueue, PyverbsRegion, PyverbsDevice):
        for opened in [one for one in _open if isinstance(one, kind)]:
            opened.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)


def load() -> Any:  # noqa: ANN401 - a module
    """The module of verbs' constants; Fs3Error UNSUPPORTED if pyverbs cannot be imported."""
    for name in ("pyverbs.enums", "pyverbs.libibverbs_enums"):  # Debian 12's; since rdma-core 53
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            raise Fs3Error(Code.UNSUPPORTED, f"pyverbs does not load: {error}") from error
    raise Fs3Error(
        Code.UNSUPPORTED, "pyverbs is not installed: python3-pyverbs on Debian, or fs3[rdma]"
    )


def _address(memory: memoryview) -> int:
    address: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return address


class _Opened:
    """Something of pyverbs that is closed once, by the process that opened it."""

    def __init__(self, *objects: Any) -> None:  # noqa: ANN401
        self._objects = objects  # in the order in which they are closed
        self._pid = os.getpid()
        _open.add(self)

    @property
    def closed(self) -> bool:
        return self not in _open

    def close(self) -> None:
        if self.closed or self._pid != os.getpid():
            return
        _open.discard(self)
        for made in self._objects:
            made.close()
        self._objects = ()


class PyverbsRegion(_Opened):
    """See :class:`verbs.Region`."""

    def __init__(self, made: Any, address: int, length: int) -> None:  # noqa: ANN401
        super().__init__(made)
        self.address = address
        self.length = length
        self.local_key: int = made.lkey
        self.remote_key: int = made.rkey


class PyverbsQueue(_Opened):
    """See :class:`verbs.CompletionQueue`."""

    def __init__(self, context: Any, entries: int, success: int) -> None:  # noqa: ANN401
        from pyverbs.cq import CQ, CompChannel

        with _making_channel:
            before = _event_descriptors()
            channel = CompChannel(context)
            # pyverbs 44 does not tell the descriptor.
            (self._fd,) = _event_descriptors() - before
        os.set_blocking(self._fd, False)
        self._library = ctypes.CDLL("libibverbs.so.1")
        self.made = CQ(context, entries, None, channel, 0)
        self._success = success
        super().__init__(self.made, channel)

    def fileno(self) -> int:
        return self._fd

    def arm(self, *, solicited_only: bool) -> None:
        self.made.req_notify(solicited_only)

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


def _event_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # closed meanwhile, as the one of listdir is
        if target == "anon_inode:[infinibandevent]":
            found.add(int(name))
    return found


def _status_name(status: int) -> str:
    from pyverbs.cq import cqe_status_to_str

    return str(cqe_status_to_str(status))


class PyverbsQueuePair(_Opened):
    """See :class:`verbs.QueuePair`."""

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

    def connect(self, path: Path) -> None:
        from pyverbs.addr import GID, AHAttr, GlobalRoute
        from pyverbs.pyverbs_error import PyverbsError
        from pyverbs.qp import QPAttr

        device = self._device
        port, e = device.port, device.constants
        route = GlobalRoute(
            dgid=GID(_gid_text(path.gid)), sgid_index=port.gid_index, hop_limit=_HOP_LIMIT
        )
        attributes = QPAttr(port_num=port.number)
        attributes.qp_access_flags = (
            e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        )
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
                f"no queue pair from {port.name} ({_gid_text(port.gid)}) to"
                f" {_gid_text(path.gid)} with MTU {path.mtu_bytes}: {error}",
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


class PyverbsDevice(_Opened):
    """See :class:`verbs.Device`."""

    def __init__(self, port: Port) -> None:
        """Fs3Error UNREACHABLE if the device of ``port`` cannot be opened."""
        from pyverbs.device import Context
        from pyverbs.pd import PD
        from pyverbs.pyverbs_error import PyverbsError

        self.port = port
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
            access |= 0 if memory.readonly else e.IBV_ACCESS_REMOTE_WRITE
        address, length = _address(memory), memory.nbytes
        try:
            made = MR(self._domain, length, access, address=address)
        except PyverbsError as error:
            raise Fs3Error(
                Code.NO_SPACE,
                f"{length} bytes cannot be registered with {self.port.device} ({error}):"
                f" {_MEMLOCK_HINT}",
            ) from error
        return PyverbsRegion(made, address, length)

    def completion_queue(self, entries: int) -> PyverbsQueue:
        from pyverbs.pyverbs_error import PyverbsError

        try:
            wanted = min(entries, self._attributes.max_cqe)
            return PyverbsQueue(self._context, wanted, self.constants.IBV_WC_SUCCESS)
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
                f"no queue pair on {self.port.device}: {error}; {_MEMLOCK_HINT}",
            ) from error


def _gid_text(gid: bytes) -> str:
    return ":".join(gid[i : i + 2].hex() for i in range(0, 16, 2))
