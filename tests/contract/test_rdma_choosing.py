"""Which nodes a client tries to reach by RDMA."""

import dataclasses

import pytest
from fake_verbs import GID, Fabric

from fs3.core.types import NodeId
from fs3.routing import NodeInfo
from fs3.transport.rdma import choosing
from fs3.transport.rdma.choosing import Rdma

PLAIN = NodeInfo(
    node=NodeId(3),
    host="",
    data_address="127.0.0.1:1",
    control_address="",
    incarnation=1,
    alive=True,
)


@pytest.fixture
def opened(monkeypatch):
    """What the ports were opened for; there is one port."""
    asked = []

    def open_ports(wanted):
        asked.append(list(wanted))
        return [port], ""

    port = Fabric().port()
    monkeypatch.setattr(choosing, "open_ports", open_ports)
    monkeypatch.delenv("FS3_RDMA", raising=False)
    return asked


@pytest.fixture
def node(opened):
    endpoint = Fabric().port(GID[:-1] + b"\x02").port.endpoint()
    return dataclasses.replace(PLAIN, rdma=(endpoint,))


def test_nothing_is_opened_for_nodes_that_offer_no_rdma(opened):
    assert not Rdma().reaches(PLAIN)
    assert opened == []


def test_a_node_in_the_same_network_is_reached_and_looked_at_once(node, opened):
    rdma = Rdma()
    assert [rdma.reaches(node) for _ in range(3)] == [True] * 3
    assert opened == [[]]
    again = dataclasses.replace(node, incarnation=2)
    assert rdma.reaches(again)
    assert len(opened) == 2


def test_the_environment_turns_it_off_or_names_what_is_used(node, opened, monkeypatch):
    monkeypatch.setenv("FS3_RDMA", "off")
    assert not Rdma().reaches(node)
    assert opened == []
    monkeypatch.setenv("FS3_RDMA", "mlx5_0, 10.0.0.0/8")
    assert Rdma().reaches(node)
    assert opened == [["mlx5_0", "10.0.0.0/8"]]


def test_a_node_that_no_port_leads_to_is_not_tried(node, monkeypatch):
    monkeypatch.setattr(choosing.discovery, "route", lambda ip: None)
    far = dataclasses.replace(node.rdma[0], gid=GID[:-4] + bytes([10, 0, 0, 1]))
    assert not Rdma().reaches(dataclasses.replace(node, rdma=(far,)))


def test_without_devices_nothing_is_reached(node, monkeypatch):
    monkeypatch.setattr(choosing, "open_ports", lambda wanted: ([], "no RDMA device"))
    assert not Rdma().reaches(node)
