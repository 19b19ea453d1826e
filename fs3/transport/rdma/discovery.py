"""What RDMA ports this machine has: from the verbs library, and sysfs where it is there.

In a container /sys/class/infiniband may be missing though devices can be opened, and interfaces
behind GIDs may be in another namespace: then what verbs say is enough, and less is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fs3.errors import Fs3Error
from fs3.transport.rdma import pyverbs_objects
from fs3.transport.rdma.inventory import (
    Gid,
    GidType,
    IpAddress,
    LinkLayer,
    Port,
    PortDescription,
    Verdict,
    gid_of,
    usable,
)

SYSFS = Path("/sys/class/infiniband")
_IF_INET6 = Path("/proc/net/if_inet6")
_SIOCGIFCONF, _SIOCGIFNETMASK = 0x8912, 0x891B
_IFREQ_BYTES = 40
_ROCE_PORT = 4791

_IWARP_NODE = 4  # IBV_NODE_RNIC
_GID_TYPES = {0: GidType.IB, 1: GidType.ROCE_V2}  # enum ibv_gid_type_sysfs


class Found(NamedTuple):
    """What there is, and why there is no more."""

    ports: list[PortDescription]
    problem: str  # empty: none


def find_ports(sysfs: Path = SYSFS) -> Found:
    """Every port of every RDMA device that can be seen."""
    try:
        pyverbs_objects.load()
    except Fs3Error as error:
        return Found([], error.detail)
    from pyverbs.device import get_device_list
    from pyverbs.pyverbs_error import PyverbsError

    try:
        devices = get_device_list()
    except PyverbsError as error:
        return Found([], f"no RDMA device: {error}")
    if not devices:
        return Found([], "no RDMA device: /dev/infiniband has none that this process may open")
    ports: list[PortDescription] = []
    for device in devices:
        name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
        ports += _device_ports(name, int(device.node_type) == _IWARP_NODE, sysfs)
    return Found(ports, "")


def _device_ports(device: str, iwarp: bool, sysfs: Path) -> list[PortDescription]:
    from pyverbs.device import Context
    from pyverbs.pyverbs_error import PyverbsError

    try:
        context = Context(name=device)
    except PyverbsError as error:
        problem = f"the device does not open: {error}"
        return [
            PortDescription(
                device=device,
                number=1,
                active=False,
                link_layer=LinkLayer.ETHERNET,
                mtu_bytes=0,
                problem=problem,
            )
        ]
    try:
        count = context.query_device().phys_port_cnt
        return [_port(context, device, n, iwarp, sysfs) for n in range(1, count + 1)]
    finally:
        context.close()


def _iwarp_port(device: str, number: int, port: Any, active: bool) -> PortDescription:  # noqa: ANN401
    """Its addresses are those that the connection manager finds there."""
    from fs3.transport.rdma.pyverbs_manager import reached

    local = local_addresses()
    found, problem = reached(device, number, local)
    if not found and not problem:
        problem = "no IP address leads to it: give its interface one"
    return PortDescription(
        device=device,
        number=number,
        active=active,
        link_layer=LinkLayer.ETHERNET,
        mtu_bytes=128 << int(port.active_mtu),
        gids=tuple(
            Gid(
                index=0,
                gid=gid_of(ip),
                type=GidType.IWARP,
                prefix_bits=_prefix_bits(local[ip], ip),
            )
            for ip in found
        ),
        interface=local[found[0]] if found else "",
        problem=f"iWARP: {problem}" if problem and active else "",
    )


def local_addresses() -> dict[IpAddress, str]:
    """Of this machine, and on which interface each is; without loopback and link-local ones."""
    found: dict[IpAddress, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        room = bytearray(1024 * _IFREQ_BYTES)
        where = np.frombuffer(room, np.uint8).__array_interface__["data"][0]
        reply = fcntl.ioctl(asking, _SIOCGIFCONF, struct.pack("iP", len(room), where))
    for start in range(0, struct.unpack_from("i", reply)[0], _IFREQ_BYTES):
        name = bytes(room[start : start + 16]).split(b"\0")[0].decode()
        found[ipaddress.IPv4Address(bytes(room[start + 20 : start + 24]))] = name
    for line in _read(_IF_INET6).splitlines():
        address, _, _, _, _, name = line.split()
        found[ipaddress.IPv6Address(bytes.fromhex(address))] = name
    return {ip: name for ip, name in found.items() if not ip.is_loopback and not ip.is_link_local}


def _port(context: Any, device: str, number: int, iwarp: bool, sysfs: Path) -> PortDescription:  # noqa: ANN401
    constants = pyverbs_objects.load()
    port = context.query_port(number)
    if iwarp:
        return _iwarp_port(device, number, port, port.state == constants.IBV_PORT_ACTIVE)
    base = sysfs / device / "ports" / str(number)
    ethernet = port.link_layer == constants.IBV_LINK_LAYER_ETHERNET
    gids: list[Gid] = []
    interface = ""
    for index in range(port.gid_tbl_len):
        raw = _query_gid(context, number, index)
        if raw is None:
            continue
        netdev = _read(base / "gid_attrs" / "ndevs" / str(index))
        interface = interface or netdev
        kind = _gid_type(context, number, index, base)
        gid = Gid(index=index, gid=raw, type=kind)
        gids.append(Gid(index=index, gid=raw, type=kind, prefix_bits=_prefix_bits(netdev, gid.ip)))
    return PortDescription(
        device=device,
        number=number,
        active=port.state == constants.IBV_PORT_ACTIVE,
        link_layer=LinkLayer.ETHERNET if ethernet else LinkLayer.INFINIBAND,
        mtu_bytes=128 << int(port.active_mtu),
        lid=port.lid,
        gids=tuple(gids),
        interface=interface,
    )


def _query_gid(context: Any, number: int, index: int) -> bytes | None:  # noqa: ANN401
    from pyverbs.pyverbs_error import PyverbsError

    try:
        text = str(context.query_gid(number, index))
    except PyverbsError:
        return None
    raw = bytes.fromhex(text.strip().replace(":", ""))
    return raw if len(raw) == 16 and any(raw) else None


def _gid_type(context: Any, number: int, index: int, base: Path) -> GidType:  # noqa: ANN401
    said = _read(base / "gid_attrs" / "types" / str(index))
    for kind in GidType:
        if said == kind.value:
            return kind
    from pyverbs.pyverbs_error import PyverbsError

    try:
        return _GID_TYPES.get(int(context.query_gid_type(number, index)), GidType.IB)
    except PyverbsError:
        return GidType.IB


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""  # an entry that is not set says EINVAL


def _prefix_bits(interface: str, ip: IpAddress | None) -> int:
    """Of the network that the address belongs to; 0 if nothing tells."""
    if not interface or ip is None:
        return 0
    if ip.version == 6:
        for line in _read(_IF_INET6).splitlines():
            address, _, bits, _, _, name = line.split()
            if name == interface and bytes.fromhex(address) == ip.packed:
                return int(bits, 16)
        return 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            reply = fcntl.ioctl(asking, _SIOCGIFNETMASK, request)
        except OSError:
            return 0
    mask = int.from_bytes(reply[20:24], "big")
    return mask.bit_count()


def route(ip: IpAddress) -> IpAddress | None:
    """The address from which packets to ``ip`` leave, by this machine's routes."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((str(ip), _ROCE_PORT))  # sends nothing
        return ipaddress.ip_address(probe.getsockname()[0])
    return None


def survey(wanted: Sequence[str] = (), sysfs: Path = SYSFS) -> tuple[list[Verdict], str]:
    """What became of every port; and what keeps more from being found."""
    found = find_ports(sysfs)
    return usable(found.ports, wanted), found.problem


def usable_ports(wanted: Sequence[str] = ()) -> tuple[list[Port], str]:
    """Every address that can be used here, the best first; if there is none, why."""
    verdicts, problem = survey(wanted)
    taken = [port for verdict in verdicts for port in verdict.taken]
    if taken:
        return taken, ""
    reasons = [f"{v.port.name}: {reason}" for v in verdicts for reason in v.reasons]
    return [], problem or "; ".join(reasons) or "no RDMA device"


def may_have_devices() -> bool:
    """Cheap: false where no device can be, so that pyverbs is not even imported."""
    return os.path.isdir("/dev/infiniband") or SYSFS.is_dir()
