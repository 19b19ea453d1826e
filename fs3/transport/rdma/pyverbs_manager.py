"""Queue pairs brought up by the RDMA connection manager, the only way for iWARP's.

The manager works by IP address and port. It is asked and answers through a descriptor, and nothing
here waits. The queue pairs are made by hand as everywhere: the manager is told their numbers.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fs3.errors import Code, Fs3Error
from fs3.transport.rdma.inventory import IpAddress
from fs3.transport.rdma.pyverbs_objects import Opened, descriptors, making_channel
from fs3.transport.rdma.verbs import QueuePair

if TYPE_CHECKING:
    from fs3.transport.rdma.pyverbs_device import PyverbsDevice

_MANAGER = "/dev/infiniband/rdma_cm"
_TOKEN_BYTES = 8
_BACKLOG = 128
_ATTEMPTS = 20  # to find a free port


class _Channel(Opened):
    """Where the manager tells what has happened."""

    order = 2
    has_channel = True

    def __init__(self) -> None:
        """Fs3Error UNSUPPORTED if the manager cannot be used."""
        from pyverbs.cmid import CMEventChannel
        from pyverbs.pyverbs_error import PyverbsError

        with making_channel:
            before = descriptors(_MANAGER)
            try:
                self.made = CMEventChannel()
            except PyverbsError as error:
                raise Fs3Error(Code.UNSUPPORTED, f"{_MANAGER} does not open: {error}") from error
            (self.fd,) = descriptors(_MANAGER) - before
        os.set_blocking(self.fd, False)
        super().__init__(self.made)

    def new_id(self) -> Any:  # noqa: ANN401 - pyverbs' CMID
        from pyverbs import cm_enums
        from pyverbs.cmid import CMID

        return CMID(creator=self.made, port_space=cm_enums.RDMA_PS_TCP)

    def events(self) -> Iterable[Any]:
        """What has come; each must be acknowledged before the next is taken."""
        from pyverbs.cmid import CMEvent

        ready = select.poll()
        ready.register(self.fd, select.POLLIN)
        while not self.closed and ready.poll(0):
            yield CMEvent(self.made)


def _address(source: IpAddress, to: IpAddress | None = None, port: int = 0) -> Any:  # noqa: ANN401
    from pyverbs import cm_enums
    from pyverbs.cmid import AddrInfo

    space = cm_enums.RDMA_PS_TCP
    if to is None:
        flags = cm_enums.RAI_PASSIVE | cm_enums.RAI_NUMERICHOST
        return AddrInfo(src=str(source), src_service=str(port), port_space=space, flags=flags)
    flags = cm_enums.RAI_NUMERICHOST
    where = {"src": str(source), "dst": str(to), "dst_service": str(port)}
    return AddrInfo(**where, port_space=space, flags=flags)


def _parameters(pair: QueuePair, reads: int, token: bytes = b"") -> Any:  # noqa: ANN401
    from pyverbs.cmid import ConnParam

    made = ConnParam(resources=reads, depth=reads, qp_num=pair.number, data_len=len(token))
    if token:
        made.set_private_data(token)
    return made


class Dial(Opened):
    """See :class:`verbs.Dialed`: from the calling end."""

    order = 1

    def __init__(
        self, device: PyverbsDevice, pair: QueuePair, to: IpAddress, port: int, token: bytes
    ) -> None:
        """Fs3Error UNREACHABLE if it cannot even begin."""
        assert len(token) == _TOKEN_BYTES
        source = device.port.ip
        assert source is not None
        self._device, self._pair, self._token = device, pair, token
        self._what = f"{device.port.name} ({source}) to {to} port {port}"
        self._channel = _Channel()
        super().__init__(self._channel)
        try:
            with _Refusal(self._what):
                self._id = self._channel.new_id()
                self._objects = (self._id, self._channel)
                self._id.resolve_addr(_address(source, to, port))
        except Fs3Error:
            self.close()
            raise

    def fileno(self) -> int:
        return self._channel.fd

    def go_on(self) -> bool:
        from pyverbs import cm_enums as e

        is_up = False
        for event in self._channel.events():
            kind, said = event.event_type, event.event_str()
            event.ack_cm_event()
            with _Refusal(self._what):
                if kind == e.RDMA_CM_EVENT_ADDR_RESOLVED:
                    self._id.resolve_route()
                elif kind == e.RDMA_CM_EVENT_ROUTE_RESOLVED:
                    self._connect()
                elif kind == e.RDMA_CM_EVENT_ESTABLISHED:
                    is_up = True
                elif kind != e.RDMA_CM_EVENT_TIMEWAIT_EXIT:
                    raise Fs3Error(Code.UNREACHABLE, f"no queue pair from {self._what}: {said}")
        return is_up

    def _connect(self) -> None:
        found, wanted = _device_of(self._id), self._device.port.device
        if found != wanted:
            raise Fs3Error(Code.UNREACHABLE, f"{self._what} leads through {found}, not {wanted}")
        self._id.connect(_parameters(self._pair, self._device.reads_max, self._token))


class Call(Opened):
    """See :class:`verbs.Call`: somebody wants a queue pair of ours."""

    order = 1

    def __init__(self, made: Any, token: bytes, device: PyverbsDevice) -> None:  # noqa: ANN401
        super().__init__(made)
        self.token = token
        self._made = made
        self._device = device

    def accept(self, pair: QueuePair) -> None:
        with _Refusal(self._device.port.name):
            self._made.accept(_parameters(pair, self._device.reads_max))


class Listener(Opened):
    """See :class:`verbs.Listener`."""

    order = 1

    def __init__(self, device: PyverbsDevice) -> None:
        """Fs3Error UNREACHABLE if no port is free, UNSUPPORTED without a manager."""
        source = device.port.ip
        assert source is not None
        self._device = device
        self._channel = _Channel()
        super().__init__(self._channel)
        for attempt in range(1, _ATTEMPTS + 1):
            made = None
            try:
                with _Refusal(f"{device.port.name}: no listener on {source}"):
                    made, self.port = self._channel.new_id(), _free_port(source)
                    made.bind_addr(_address(source, port=self.port))
                    made.listen(_BACKLOG)
            except Fs3Error:
                if made is not None:
                    made.close()
                if attempt == _ATTEMPTS:
                    self.close()
                    raise
            else:
                self._id = made
                self._objects = (made, self._channel)
                return

    def fileno(self) -> int:
        return self._channel.fd

    def take(self) -> list[Call]:
        from pyverbs import cm_enums
        from pyverbs.cmid import CMID

        found = []
        for event in self._channel.events():
            if event.event_type == cm_enums.RDMA_CM_EVENT_CONNECT_REQUEST:
                token = bytes(event.private_data or b"")[:_TOKEN_BYTES]
                found.append(Call(CMID(creator=event, listen_id=self._id), token, self._device))
            event.ack_cm_event()
        return found


def reached(device: str, port: int, addresses: Iterable[IpAddress]) -> tuple[list[IpAddress], str]:
    """Which of this machine's addresses the manager finds on a port; or why it cannot tell."""
    found = []
    try:
        channel = _Channel()
    except Fs3Error as error:
        return [], error.detail
    try:
        for address in addresses:
            made = None
            try:
                with _Refusal(str(address)):
                    made = channel.new_id()
                    made.bind_addr(_address(address))
                    if (_device_of(made), made.port_num) == (device, port):
                        found.append(address)
            except Fs3Error:
                continue  # it is on no device
            finally:
                if made is not None:
                    made.close()
    finally:
        channel.close()
    return found, ""


def _device_of(made: Any) -> str:  # noqa: ANN401
    name = made.dev_name
    return name.decode() if isinstance(name, bytes) else str(name)


def _free_port(source: IpAddress) -> int:
    """iWARP's ports are those of TCP."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.bind((str(source), 0))
        return int(probe.getsockname()[1])


class _Refusal:
    """What pyverbs raises, or the system, is Fs3Error UNREACHABLE."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from pyverbs.pyverbs_error import PyverbsError

        if isinstance(error, PyverbsError | OSError) and not isinstance(error, Fs3Error):
            raise Fs3Error(Code.UNREACHABLE, f"{self._what}: {error}") from error
