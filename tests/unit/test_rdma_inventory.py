"""Which ports are usable and which leads where: made-up machines of many kinds."""

import dataclasses
import ipaddress

import pytest

from fs3.errors import Fs3Error
from fs3.transport.rdma.inventory import (
    Gid,
    GidType,
    LinkLayer,
    Port,
    PortDescription,
    choose,
    common_mtu,
    usable,
)

LOCAL = bytes.fromhex("fe80000000000000") + bytes(7) + b"\x01"


def v4(address):
    return bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(address).packed


def v6(address):
    return ipaddress.IPv6Address(address).packed


def ethernet(*gids, device="anything", number=1, **more):
    return PortDescription(
        device=device,
        number=number,
        active=more.pop("active", True),
        link_layer=LinkLayer.ETHERNET,
        mtu_bytes=more.pop("mtu_bytes", 4096),
        gids=tuple(
            Gid(index=i, gid=gid, type=kind, prefix_bits=bits)
            for i, (gid, kind, bits) in enumerate(gids)
        ),
        **more,
    )


def infiniband(subnet, device="ib7", lid=3):
    gid = bytes.fromhex(subnet) + bytes(7) + bytes([lid])
    return PortDescription(
        device=device,
        number=1,
        active=True,
        link_layer=LinkLayer.INFINIBAND,
        mtu_bytes=4096,
        lid=lid,
        gids=(Gid(index=0, gid=gid, type=GidType.IB),),
    )


ROCE = ethernet(
    (LOCAL, GidType.IB, 0),
    (LOCAL, GidType.ROCE_V2, 0),
    (v4("10.1.0.1"), GidType.IB, 24),
    (v4("10.1.0.1"), GidType.ROCE_V2, 24),
    (v6("fd00::1"), GidType.ROCE_V2, 64),
    device="bnxt_re_bond0",
    interface="storage0",
)


def taken(description, wanted=()):
    (verdict,) = usable([description], wanted)
    return verdict.taken


def only(description, wanted=()):
    (port,) = taken(description, wanted)
    return port


def no_route(_ip):
    return None


def test_routable_addresses_come_first_whatever_their_index():
    assert [port.gid_index for port in taken(ROCE)] == [3, 4, 0, 2, 1]


@pytest.mark.parametrize(
    ("wanted", "indexes"),
    [
        (["bnxt_re_bond0"], [3, 4, 0, 2, 1]),
        (["bnxt_re_bond0:1"], [3, 4, 0, 2, 1]),
        (["bnxt_re_bond0:2"], []),
        (["storage0"], [3, 4, 0, 2, 1]),
        (["10.1.0.0/16"], [3, 2]),
        (["fd00::/8", "10.9.0.0/16"], [4]),
        (["mlx5_0"], []),
    ],
)
def test_settings_name_devices_ports_interfaces_or_networks(wanted, indexes):
    assert [port.gid_index for port in taken(ROCE, wanted)] == indexes


def test_what_is_not_taken_says_why():
    down = ethernet((v4("10.0.0.1"), GidType.ROCE_V2, 24), active=False)
    bare = ethernet()
    broken = ethernet(problem="the device does not open: EPERM")
    verdicts = usable([down, bare, broken, ROCE], ["10.1.0.0/16"])
    said = [" ".join(verdict.reasons) for verdict in verdicts]
    assert "not active" in said[0]
    assert "no GID" in said[1]
    assert "EPERM" in said[2]
    assert "10.1.0.0/16" in said[3]
    assert [len(verdict.taken) for verdict in verdicts] == [0, 0, 0, 2]


def test_iwarp_meets_iwarp_in_its_network_and_behind_routers():
    iwarp = only(ethernet((v4("10.1.0.1"), GidType.IWARP, 24)))
    near = only(ethernet((v4("10.1.0.2"), GidType.IWARP, 24))).endpoint()
    far = only(ethernet((v4("10.9.0.2"), GidType.IWARP, 24))).endpoint()
    assert (near.iwarp, near.roce_v2) == (True, False)
    assert choose([iwarp], [far, near], lambda ip: iwarp.ip) == (iwarp, near)
    assert choose([iwarp], [far], lambda ip: iwarp.ip) == (iwarp, far)
    with pytest.raises(Fs3Error, match="speaks iWARP, the other RoCE v2"):
        choose(
            [iwarp], [only(ethernet((v4("10.1.0.2"), GidType.ROCE_V2, 24))).endpoint()], no_route
        )


def test_a_container_without_sysfs_knows_no_interfaces_and_works():
    port = only(ethernet((v4("10.1.0.9"), GidType.ROCE_V2, 0)))
    there = only(ethernet((v4("10.1.0.1"), GidType.ROCE_V2, 24))).endpoint()
    source = ipaddress.IPv4Address("10.1.0.9")
    assert choose([port], [there], lambda ip: source) == (port, there)


def test_of_several_ports_the_one_in_the_same_network_is_taken():
    ports = [
        only(ethernet((v4(f"10.{n}.0.1"), GidType.ROCE_V2, 24), device=f"d{n}")) for n in range(4)
    ]
    there = [only(ethernet((v4(f"10.{n}.0.2"), GidType.ROCE_V2, 24))).endpoint() for n in (9, 2)]
    assert choose(ports, there, no_route) == (ports[2], there[1])


def test_a_routed_network_is_reached_only_through_the_port_that_routes_lead_through():
    ports = [
        only(ethernet((v4(f"10.{n}.0.1"), GidType.ROCE_V2, 24), device=f"d{n}")) for n in range(2)
    ]
    there = only(ethernet((v4("10.7.0.2"), GidType.ROCE_V2, 24))).endpoint()
    port, _ = choose(ports, [there], lambda ip: ipaddress.IPv4Address("10.1.0.1"))
    assert port is ports[1]
    with pytest.raises(Fs3Error, match=r"no common subnet .* no route"):
        choose(ports, [there], no_route)


def test_ipv6_meets_ipv6_only():
    both = taken(ROCE)
    there = only(ethernet((v6("fd00::2"), GidType.ROCE_V2, 64))).endpoint()
    port, _ = choose(both, [there], no_route)
    assert port.gid == v6("fd00::1")
    four = only(ethernet((v4("10.1.0.1"), GidType.ROCE_V2, 24)))
    with pytest.raises(Fs3Error, match="different families"):
        choose([four], [there], no_route)


def test_roce_versions_do_not_mix_and_v1_does_not_route():
    one = only(ethernet((v4("10.1.0.1"), GidType.IB, 24)))
    two = only(ethernet((v4("10.1.0.2"), GidType.ROCE_V2, 24)))
    near = only(ethernet((v4("10.1.0.3"), GidType.IB, 24)))
    far = only(ethernet((v4("10.2.0.3"), GidType.IB, 24)))
    with pytest.raises(Fs3Error, match="RoCE v1, the other RoCE v2"):
        choose([one], [two.endpoint()], no_route)
    assert choose([one], [near.endpoint()], no_route)[0] is one
    with pytest.raises(Fs3Error, match="no routing in v1"):
        choose([one], [far.endpoint()], lambda ip: ipaddress.IPv4Address("10.1.0.1"))


def test_infiniband_ports_meet_within_their_subnet():
    here = [only(infiniband("fe80000000000000")), only(infiniband("fec0000000000001"))]
    there = only(infiniband("fec0000000000001", lid=9)).endpoint()
    port, endpoint = choose(here, [there], no_route)
    assert (port, endpoint.lid) == (here[1], 9)
    with pytest.raises(Fs3Error, match="different InfiniBand subnets"):
        choose(here[:1], [there], no_route)
    roce = only(ethernet((v4("10.1.0.1"), GidType.ROCE_V2, 24)))
    with pytest.raises(Fs3Error, match="InfiniBand, the other Ethernet"):
        choose([roce], [there], no_route)


def test_without_ports_or_endpoints_the_reason_is_plain():
    there = only(infiniband("fe80000000000000")).endpoint()
    with pytest.raises(Fs3Error, match="no usable RDMA port here"):
        choose([], [there], no_route)
    port = only(infiniband("fe80000000000000"))
    with pytest.raises(Fs3Error, match="offers no RDMA"):
        choose([port], [], no_route)


def test_the_smaller_mtu_counts_and_nonsense_is_refused():
    assert common_mtu(4096, 1024) == 1024
    with pytest.raises(Fs3Error, match="MTU 1500 is not allowed"):
        common_mtu(4096, 1500)


def test_a_port_is_announced_as_it_is():
    port = Port(
        device="x",
        number=2,
        gid_index=5,
        gid=v4("10.0.0.1"),
        gid_type=GidType.ROCE_V2,
        link_layer=LinkLayer.ETHERNET,
        lid=0,
        mtu_bytes=1024,
    )
    endpoint = dataclasses.asdict(port.endpoint())
    assert endpoint == {
        "gid": v4("10.0.0.1"),
        "lid": 0,
        "mtu_bytes": 1024,
        "infiniband": False,
        "roce_v2": True,
        "name": "x:2",
        "iwarp": False,
    }
