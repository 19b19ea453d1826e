"""fs3 doctor rdma: what it says of machines that have nothing, and of ports that do not work."""

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
    monkeypatch.setattr(pyverbs_device.importlib, "import_module", _missing)
    assert run(["doctor", "rdma"]) == 1
    said = capsys.readouterr().out
    assert "python3-pyverbs on Debian" in said
    assert "over TCP" in said


def _missing(name):
    raise ModuleNotFoundError(name)


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
