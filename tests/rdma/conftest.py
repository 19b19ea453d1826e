"""Tests that need an RDMA device run in a guest that has one, and are reported one by one.

A file's tests run together in one guest (vm.py), when the first of them is due; what each of them
did there is reported here as if it had run here. Its module may name the guest's DRIVERS. Where
RDMA devices are found on this machine the tests run on these, without a guest, unless
FS3_TEST_RDMA=guest; FS3_TEST_RDMA=here forces that.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from vm import CACHE, DIED, TIMEOUT, Guest, why_not

if TYPE_CHECKING:
    from running_cluster import RunningCluster

HERE = Path(__file__).resolve().parent
# What tests of real clusters and of the transport share.
sys.path += [str(HERE.parent / "cluster"), str(HERE.parent / "contract")]
REPORTS = "FS3_TEST_RDMA_REPORTS"  # set in the guest: where the reports go
GUEST_S = 600  # a file's tests in the guest; a busy host slows it down tenfold
DEBIAN_PACKAGES = Path("/usr/lib/python3/dist-packages")
PACKAGES = "python3-pyverbs libibverbs1 ibverbs-providers librdmacm1 iproute2"


def runs_here() -> bool:
    """The tests find their device on this machine (which may be the guest)."""
    said = os.environ.get("FS3_TEST_RDMA", "")
    devices = Path("/sys/class/infiniband")
    return said == "here" or (said != "guest" and devices.is_dir() and any(devices.iterdir()))


def pyverbs_directory() -> Path | None:
    """A directory for sys.path with Debian's pyverbs alone in it; None if that is not installed.

    Debian installs it for its own Python; this Python may be another one of the same version.
    """
    built = list((DEBIAN_PACKAGES / "pyverbs").glob(f"device.{sys.implementation.cache_tag}-*.so"))
    if not built:
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    link = CACHE / "python" / "pyverbs"
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        scratch = link.with_name(f"pyverbs.{os.getpid()}")
        scratch.symlink_to(DEBIAN_PACKAGES / "pyverbs")
        scratch.rename(link)
    return link.parent


def pytest_configure(config: pytest.Config) -> None:
    """In the guest every report is also written where the host reads it."""
    if path := os.environ.get(REPORTS):
        config.pluginmanager.register(_ReportWriter(config, Path(path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a file waits for all of them."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("rdma"):
            item.add_marker(pytest.mark.timeout(GUEST_S + 60))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report what happened in the guest instead of running the test here."""
    if not item.get_closest_marker("rdma") or runs_here():
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports_of(item):
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class _ReportWriter:
    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._file = path.open("w")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(json.dumps(data) + "\n")
        self._file.flush()  # the guest may die


_Outcome = dict[str, list[pytest.TestReport]]
_outcomes: pytest.StashKey[dict[Path, tuple[_Outcome, str]]] = pytest.StashKey()


def _reports_of(item: pytest.Item) -> list[pytest.TestReport]:
    known = item.config.stash.setdefault(_outcomes, {})
    if item.path not in known:
        known[item.path] = _run_in_guest(
            item.config,
            [
                other.nodeid
                for other in item.session.items
                if other.path == item.path and other.get_closest_marker("rdma")
            ],
            getattr(getattr(item, "module", None), "DRIVERS", "rxe"),
        )
    reports, why = known[item.path]
    if item.nodeid in reports:
        return reports[item.nodeid]
    outcome: Any = "skipped" if why.startswith("skip: ") else "failed"
    text: Any = (str(item.path), 0, why) if outcome == "skipped" else why
    return [
        pytest.TestReport(item.nodeid, item.location, {}, outcome, text, when, [], 0.0)
        for when in ("setup",)
    ]


def _run_in_guest(config: pytest.Config, nodeids: list[str], drivers: str) -> tuple[_Outcome, str]:
    """Reports by test, and what to say of those without."""
    if reason := why_not():
        return {}, f"skip: {reason}"
    packages = pyverbs_directory()
    if packages is None:
        return {}, f"skip: no pyverbs for this Python: apt-get install {PACKAGES}"
    with tempfile.TemporaryDirectory(prefix="fs3-rdma-") as scratch:
        reports, output = Path(scratch, "reports"), Path(scratch, "output")
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environ |= {"PYTHONPATH": str(packages), REPORTS: str(reports), "FS3_TEST_RDMA": "here"}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
        with output.open("wb") as file:
            guest = Guest(
                [*command, *nodeids], writable=[Path(scratch)], drivers=drivers, environ=environ
            )
            status = guest.run(GUEST_S, file.fileno(), file.fileno())
        ended = {TIMEOUT: f"stopped after {GUEST_S} s", DIED: "died"}.get(status, f"said {status}")
        said = output.read_text(errors="replace")[-6000:]
        why = f"no report from the guest, which {ended}\n{said}\n{guest.console[-2000:]}"
        return dict(_read(config, reports)), why


def _read(config: pytest.Config, path: Path) -> Iterator[tuple[str, list[pytest.TestReport]]]:
    found: _Outcome = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        hook = config.hook.pytest_report_from_serializable
        report = hook(config=config, data=json.loads(line))
        found.setdefault(report.nodeid, []).append(report)
    # One that began and did not end is what the guest died of, or was stopped in.
    for nodeid, reports in found.items():
        if any(report.when == "teardown" for report in reports):
            yield nodeid, reports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """One machine plays all: without RDMA clients would read its files themselves."""
    from running_cluster import RunningCluster

    running = RunningCluster(
        tmp_path_factory.mktemp("cluster") / "data",
        storageserver_settings={"local": {"enabled": False}},
    )
    try:
        with running:
            yield running
    finally:
        running.print_logs()
        running.local.down()
