"""Devices, ports and addresses of a real driver: found whatever they are called, and chosen."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rdma_peers
import test_transport
from frame_peers import ECHO, PATTERN
from rdma_peers import Client, Server

from fs3.transport.rdma import discovery
from fs3.transport.rdma.ports import open_ports

pytestmark = [pytest.mark.rdma, pytest.mark.long]


@pytest.fixture(autouse=True, scope="module")
def in_guest() -> None:
    if "RDMA_VM" not in os.environ:
        pytest.skip("makes network interfaces and RDMA devices: in a guest only")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module")
def second() -> str:
    """A second device, with an IPv6 address, on an interface of any name.

    It goes with the guest: Linux 6.1 waits for ever for a soft device that is still open.
    """
    ip("link", "add", "uplink-b", "type", "dummy")
    ip("link", "set", "uplink-b", "up")
    ip("addr", "add", "fd00:5::1/64", "dev", "uplink-b", "nodad")
    add = ["rdma", "link", "add", "anyname", "type", "rxe", "netdev", "uplink-b"]
    subprocess.run(add, check=True)
    return "anyname"


def test_every_device_is_found_and_its_interface_named(second):
    found = {port.device: port for port in discovery.find_ports().ports}
    assert set(found) == {"rxe0", second}
    assert found[second].interface == "uplink-b"
    (gid,) = (gid for gid in found[second].gids if gid.ip is not None)
    assert (gid.ip, gid.prefix_bits) == (ipaddress.IPv6Address("fd00:5::1"), 64)


def test_without_sysfs_as_in_some_containers_the_same_addresses_are_found(second):
    def addresses(sysfs: Path) -> set[tuple[str, str, str]]:
        ports = discovery.find_ports(sysfs).ports
        return {(p.device, str(gid), gid.type.value) for p in ports for gid in p.gids}

    assert addresses(Path("/nowhere")) == addresses(discovery.SYSFS)


@pytest.mark.parametrize("wanted", ["fd00::/8", "uplink-b", "anyname:1"])
def test_payload_travels_over_an_ipv6_address_that_was_chosen(second, monkeypatch, wanted):
    rdma_peers.put_in_place(monkeypatch, test_transport)
    ports, why = open_ports([wanted])
    chosen = [one for one in ports if one.port.ip is not None]
    assert [str(one.port.ip) for one in chosen] == ["fd00:5::1"], why
    monkeypatch.setattr(rdma_peers, "chosen_ports", chosen)
    with Server() as server:
        client = Client(server)
        assert client.connection.up
        request_id = client.send(ECHO, b"", [PATTERN[:300_000]], [300_000])
        assert client.finish()[request_id].error is None
        assert client.body(request_id) == PATTERN[:300_000]
        client.connection.close()


_POOR = """
import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(24, 14, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_IPC_LOCK: root may lock all
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
doctor = "import sys; from fs3.client.cli.main import run; sys.exit(run(['doctor', 'rdma']))"
os.execv(sys.executable, [sys.executable, "-c", doctor])
"""


def test_who_may_lock_too_little_memory_is_told_how_to_allow_more():
    environ = os.environ | {"COLUMNS": "200"}
    ran = subprocess.run(
        [sys.executable, "-c", _POOR], capture_output=True, text=True, check=False, env=environ
    )
    assert ran.returncode == 1, ran.stderr
    assert "memory that may be locked: 64" in ran.stdout
    assert "LimitMEMLOCK=infinity" in ran.stdout
