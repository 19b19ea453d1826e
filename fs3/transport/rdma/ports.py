"""The RDMA ports that this process has opened: each once, used by all its threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.transport.rdma.inventory import GidType, Port
from fs3.transport.rdma.loans import Lender
from fs3.transport.rdma.regions import Regions
from fs3.transport.rdma.verbs import Device

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPort:
    """A port in use."""

    port: Port
    device: Device
    regions: Regions
    lender: Lender = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lender", Lender(self.regions))


_lock = threading.Lock()
# By the settings they were opened for; of a process: a forked child opens its own.
_opened: dict[tuple[int, tuple[str, ...]], tuple[list[OpenPort], str]] = {}


def open_ports(wanted: Sequence[str] = ()) -> tuple[list[OpenPort], str]:
    """Every address that can be used here; if there is none, why. Looked up once per process."""
    key = os.getpid(), tuple(wanted)
    with _lock:
        if key not in _opened:
            _opened[key] = _open(wanted)
        return _opened[key]


def _open(wanted: Sequence[str]) -> tuple[list[OpenPort], str]:
    from fs3.transport.rdma import discovery
    from fs3.transport.rdma.pyverbs_device import PyverbsDevice

    if not discovery.may_have_devices():
        return [], "no RDMA device: there is no /dev/infiniband"
    ports, problem = discovery.usable_ports(wanted)
    made: list[OpenPort] = []
    for port in ports:
        try:
            device = PyverbsDevice(port)
        except Fs3Error as error:
            problem = error.detail
            continue
        made.append(OpenPort(port=port, device=device, regions=Regions(device)))
    if made:
        _log.info("rdma_ports", ports=[f"{one.port.name} {one.port.ip}" for one in made])
    else:
        _log.info("rdma_unavailable", reason=problem)
    return made, problem


def find(ports: Sequence[OpenPort], gid: bytes, kind: GidType) -> OpenPort:
    """The one with this address; Fs3Error UNREACHABLE names those that there are.

    Ports, and RoCE v1 and v2 of one port, may have the same.
    """
    for one in ports:
        if one.port.gid == gid and one.port.gid_type is kind:
            return one
    there = ", ".join(one.port.gid.hex() for one in ports) or "none"
    raise Fs3Error(
        Code.UNREACHABLE,
        f"no RDMA port here has the {kind.value} GID {gid.hex()}; there are: {there}",
    )
