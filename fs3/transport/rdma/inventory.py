"""Which RDMA ports there are, and which of them leads to whom. Pure: from a description.

Nothing is concluded from the names of devices or interfaces. A port has an address per GID; what a
GID is good for follows from its type and its bits:

    InfiniBand        reached by LID within its subnet, which the GID's upper half names
    RoCE v1           Ethernet frames: reaches the same link only
    RoCE v2, IPv4/6   UDP: reaches whatever its IP address reaches
    iWARP             TCP, brought up by the connection manager, which goes by IP addresses: these
                      stand in the place of its GIDs, which mean nothing
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fs3.errors import Code, Fs3Error
from fs3.routing import RdmaEndpoint

MTUS = (256, 512, 1024, 2048, 4096)
_V4_MAPPED = bytes(10) + b"\xff\xff"
_LINK_LOCAL = bytes.fromhex("fe80000000000000")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Route = Callable[[IpAddress], IpAddress | None]
"""The address here from which packets to that address leave; None: it cannot be reached."""


def ip_of(gid: bytes) -> IpAddress | None:
    """The IP address that a GID of RoCE v2 or iWARP stands for; None for link-local ones."""
    if gid[:12] == _V4_MAPPED:
        return ipaddress.IPv4Address(gid[12:])
    return None if gid[:8] == _LINK_LOCAL else ipaddress.IPv6Address(gid)


def gid_of(ip: IpAddress) -> bytes:
    """The GID that stands for an IP address."""
    return ip.packed if ip.version == 6 else _V4_MAPPED + ip.packed


class LinkLayer(Enum):
    """What the port is connected to."""

    INFINIBAND = "InfiniBand"
    ETHERNET = "Ethernet"


class GidType(Enum):
    """What packets with this GID look like. The values are those of sysfs."""

    IB = "IB/RoCE v1"  # RoCE v1 on Ethernet
    ROCE_V2 = "RoCE v2"
    IWARP = "iWARP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gid:
    """An entry of a port's GID table."""

    index: int
    gid: bytes
    type: GidType
    prefix_bits: int = 0  # of the interface's network; 0: not known

    @property
    def ip(self) -> IpAddress | None:
        """The IP address that it stands for; None of InfiniBand's and link-local ones."""
        found = ip_of(self.gid)
        return None if self.type is GidType.IB and found and found.version == 6 else found

    def __str__(self) -> str:
        address = self.ip or ipaddress.IPv6Address(self.gid)
        return str(address)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortDescription:
    """A port as it was found."""

    device: str
    number: int
    active: bool
    link_layer: LinkLayer
    mtu_bytes: int
    lid: int = 0
    gids: tuple[Gid, ...] = ()
    interface: str = ""  # the network interface behind it, for people
    problem: str = ""  # why it could not be described further

    @property
    def name(self) -> str:
        """As settings name it: ``mlx5_0:1``."""
        return f"{self.device}:{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port and the one of its addresses that is used."""

    device: str
    number: int
    gid_index: int
    gid: bytes
    gid_type: GidType
    link_layer: LinkLayer
    lid: int
    mtu_bytes: int
    prefix_bits: int = 0

    @property
    def name(self) -> str:
        """As settings name it."""
        return f"{self.device}:{self.number}"

    @property
    def ip(self) -> IpAddress | None:
        """The IP address of its GID, if it stands for one."""
        gid = Gid(index=self.gid_index, gid=self.gid, type=self.gid_type)
        return gid.ip

    def endpoint(self) -> RdmaEndpoint:
        """As it is announced to others."""
        return RdmaEndpoint(
            gid=self.gid,
            lid=self.lid,
            mtu_bytes=self.mtu_bytes,
            infiniband=self.link_layer is LinkLayer.INFINIBAND,
            roce_v2=self.gid_type is GidType.ROCE_V2,
            name=self.name,
            iwarp=self.gid_type is GidType.IWARP,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a port, and why: for ``fs3 doctor rdma``."""

    port: PortDescription
    taken: tuple[Port, ...] = ()
    reasons: tuple[str, ...] = field(default=())


def usable(ports: Sequence[PortDescription], wanted: Sequence[str] = ()) -> list[Verdict]:
    """For every port whether it can be used, with which addresses, the best first.

    ``wanted`` names devices (``mlx5_0``), ports (``mlx5_0:1``), interfaces (``eth4``) or networks
    (``10.1.0.0/16``, ``fd00::/8``); empty: all.
    """
    return [_verdict(port, wanted) for port in ports]


def _verdict(port: PortDescription, wanted: Sequence[str]) -> Verdict:
    if port.problem:
        return Verdict(port=port, reasons=(port.problem,))
    if not port.active:
        return Verdict(
            port=port, reasons=("the port is not active: no cable, or its link is down",)
        )
    reasons: list[str] = []
    found: list[Gid] = []
    for gid in port.gids:
        reason = _why_not(port, gid, wanted)
        if reason:
            reasons.append(f"GID {gid.index} ({gid}, {gid.type.value}): {reason}")
        else:
            found.append(gid)
    if not port.gids:
        reasons.append("the port has no GID: give its interface an address")
    found.sort(key=lambda gid: _rank(gid))
    taken = tuple(
        Port(
            device=port.device,
            number=port.number,
            gid_index=gid.index,
            gid=gid.gid,
            gid_type=gid.type,
            link_layer=port.link_layer,
            lid=port.lid,
            mtu_bytes=port.mtu_bytes,
            prefix_bits=gid.prefix_bits,
        )
        for gid in found
    )
    return Verdict(port=port, taken=taken, reasons=tuple(reasons))


def _why_not(port: PortDescription, gid: Gid, wanted: Sequence[str]) -> str:
    if wanted and not any(_names(said, port, gid) for said in wanted):
        return f"rdma.devices names {', '.join(wanted)}, none of which is this"
    return ""


def _names(said: str, port: PortDescription, gid: Gid) -> bool:
    if said in (port.device, port.name, port.interface):
        return True
    try:
        network = ipaddress.ip_network(said, strict=False)
    except ValueError:
        return False
    ip = gid.ip
    return ip is not None and ip.version == network.version and ip in network


def _rank(gid: Gid) -> tuple[int, int]:
    """Routable addresses first, IPv4 before IPv6, then RoCE v1 and link-local ones."""
    if gid.ip is None:
        return 3 if gid.type is GidType.ROCE_V2 else 2, gid.index
    kind = 2 if gid.type is GidType.IB else 0
    return kind + (0 if gid.ip.version == 4 else 1), gid.index


def choose(
    ports: Sequence[Port], endpoints: Sequence[RdmaEndpoint], route: Route
) -> tuple[Port, RdmaEndpoint]:
    """A port here and an endpoint there that reach each other, the best pair first.

    Of equals one in a network that both belong to is preferred to one behind a router. Fs3Error
    UNREACHABLE says, pair by pair, why none is.
    """
    best: tuple[int, Port, RdmaEndpoint] | None = None
    reasons: list[str] = []
    for endpoint in endpoints:
        for port in ports:
            distance, reason = _distance(port, endpoint, route)
            if reason:
                reasons.append(reason)
            elif best is None or distance < best[0]:
                best = distance, port, endpoint
    if best is not None:
        return best[1], best[2]
    if not ports:
        reasons = ["there is no usable RDMA port here"]
    raise Fs3Error(Code.UNREACHABLE, "; ".join(reasons) or "the node offers no RDMA")


def _distance(port: Port, there: RdmaEndpoint, route: Route) -> tuple[int, str]:
    """0: in one network, 1: routed; or why not at all."""
    pair = f"{port.name} and {there.name or 'its port'}"
    if (port.link_layer is LinkLayer.INFINIBAND) != there.infiniband:
        return 0, f"{pair}: one is InfiniBand, the other Ethernet"
    if there.infiniband:
        same = port.gid[:8] == there.gid[:8]
        return 0, "" if same else f"{pair}: in different InfiniBand subnets"
    other_type = kind_of(there)
    if port.gid_type is not other_type:
        return 0, f"{pair}: one speaks {_SPOKEN[port.gid_type]}, the other {_SPOKEN[other_type]}"
    here, other = port.ip, Gid(index=0, gid=there.gid, type=other_type).ip
    if (here is None) != (other is None) or (here and other and here.version != other.version):
        return 0, f"{pair}: their addresses are of different families"
    if here is None or other is None:
        return 2, ""  # link-local: nothing tells whether it is the same link; the handshake will
    near = port.prefix_bits and other in ipaddress.ip_network(
        f"{here}/{port.prefix_bits}", strict=False
    )
    if near:
        return 0, ""
    if other_type is GidType.IB:
        return 0, f"{pair}: no common subnet ({here}/{port.prefix_bits}, {other}), no routing in v1"
    source = route(other)
    if source != here:
        says = "there is no route" if source is None else f"packets leave from {source}"
        return 0, f"{pair}: no common subnet ({here}/{port.prefix_bits}), and to {other} {says}"
    return 1, ""


_SPOKEN = {GidType.IB: "RoCE v1", GidType.ROCE_V2: "RoCE v2", GidType.IWARP: "iWARP"}


def kind_of(endpoint: RdmaEndpoint) -> GidType:
    """What an endpoint's packets look like."""
    if endpoint.iwarp:
        return GidType.IWARP
    return GidType.ROCE_V2 if endpoint.roce_v2 else GidType.IB


def common_mtu(here_bytes: int, there_bytes: int) -> int:
    """The path MTU for two ports; Fs3Error UNREACHABLE if one of them says nonsense."""
    smaller = min(here_bytes, there_bytes)
    if smaller not in MTUS:
        raise Fs3Error(
            Code.UNREACHABLE,
            f"MTU {smaller} is not allowed: {', '.join(map(str, MTUS))} are; set both interfaces'"
            " MTU to 4200 or more for 4096",
        )
    return smaller
