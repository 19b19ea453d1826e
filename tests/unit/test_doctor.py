"""fs3 doctor rdma: what it says of machines that have nothing, and of ports that do not work."""

import importlib

import pytest
from test_rdma_inventory import ROCE, ethernet

from fs3.client.cli.main import run
from fs3.errors import Code, Fs3Error
from fs3.transport.rdma import discovery, pyverbs_device
from fs3.transport.rdma.inventory import usable


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def test_without_pyverbs_it_says_how_to_get_it(monkeypatch, capsys):
    real = importlib.import_module

    def without_pyverbs(name, package=None):
        if name.startswith("pyverbs"):
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_pyverbs)
    assert run(["doctor", "rdma"]) == 1
    said = capsys.readouterr().out
    assert "python3-pyverbs on Debian" in said
    assert "over TCP" in said


def test_every_port_is_shown_with_what_is_wrong_with_it(monkeypatch, capsys):
    ports = [ROCE, ethernet(device="down0", active=False)]
    monkeypatch.setattr(discovery, "survey", lambda wanted: (usable(ports, wanted), ""))

    class Refusing:
        def __init__(self, port):
            raise Fs3Error(Code.NO_SPACE, f"{port.name} cannot lock memory")

    monkeypatch.setattr(pyverbs_device, "PyverbsDevice", Refusing)
    assert run(["doctor", "rdma"]) == 1
    said = capsys.readouterr().out
    assert "bnxt_re_bond0:1 cannot lock memory" in said
    assert "the port is not active" in said
