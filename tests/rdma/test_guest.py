"""The guest that RDMA tests run in: what it offers, and that its failures are noticed."""

import sys
from pathlib import Path

import pytest
from vm import DIED, TIMEOUT, Guest, why_not

GUEST_S = 100  # a busy host slows it down tenfold
needs_guest = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can run here")


@pytest.mark.rdma
def test_there_is_a_device_and_pyverbs_sees_it():
    from pyverbs.device import get_device_list

    assert [device.name for device in get_device_list()]


@pytest.mark.rdma
def test_the_doctor_finds_a_port_that_works(capsys):
    from fs3.client.cli.main import run

    assert run(["doctor", "rdma"]) == 0
    assert "RoCE v2" in capsys.readouterr().out


@pytest.fixture
def output(tmp_path):
    with (tmp_path / "output").open("w+b") as file:
        yield file


@needs_guest
def test_a_command_runs_in_this_file_tree_and_its_status_comes_back(output, tmp_path):
    (tmp_path / "shared").mkdir()
    code = f"open({str(tmp_path / 'shared' / 'x')!r}, 'w').write('from the guest'); exit(7)"
    guest = Guest([sys.executable, "-c", code], writable=[tmp_path / "shared"])
    assert guest.run(GUEST_S, output.fileno(), output.fileno()) == 7
    assert (tmp_path / "shared" / "x").read_text() == "from the guest"


@needs_guest
def test_what_is_written_elsewhere_stays_in_the_guest(output, tmp_path):
    guest = Guest(["touch", str(tmp_path / "elsewhere")])
    assert guest.run(GUEST_S, output.fileno(), output.fileno()) == 0
    assert not (tmp_path / "elsewhere").exists()


@needs_guest
def test_a_command_that_takes_too_long_is_stopped(output):
    assert Guest(["sleep", "1000"]).run(2, output.fileno(), output.fileno()) == TIMEOUT


@needs_guest
def test_a_guest_that_dies_is_told_from_a_command_that_fails(output):
    poweroff = Path(__file__).with_name("uml-poweroff")
    guest = Guest([str(poweroff)])
    assert guest.run(GUEST_S, output.fileno(), output.fileno()) == DIED


@needs_guest
def test_nothing_of_a_guest_is_left(output):
    before = children()  # other tests of this process may have some
    guest = Guest(["sh", "-c", "sleep 1000 & echo $RDMA_VM_ADDRESS"])
    assert guest.run(GUEST_S, output.fileno(), output.fileno()) == 0
    output.seek(0)
    assert output.read() == b"10.77.0.1\n"
    assert children() <= before


def children() -> set[str]:
    """Processes that this one has started and not seen the end of."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}
