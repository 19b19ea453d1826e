"""Mounts of a memory file system, one per front and test module."""

from __future__ import annotations

import pytest
from memory_mount import memory_mount


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    with memory_mount(tmp_path_factory.mktemp("direct") / "mount") as mountpoint:
        yield mountpoint


@pytest.fixture(scope="module")
def fusepy(tmp_path_factory):
    pytest.importorskip("mfusepy", exc_type=(ImportError, OSError))
    with memory_mount(tmp_path_factory.mktemp("fusepy") / "mount", "--front=fusepy") as mountpoint:
        yield mountpoint


def fresh(mountpoint, request):
    path = mountpoint / "".join(c if c.isalnum() else "_" for c in request.node.name)
    path.mkdir()
    return path


@pytest.fixture
def folder(direct, request):
    """A fresh directory on the direct front's mount."""
    return fresh(direct, request)


@pytest.fixture(params=["direct", "fusepy"])
def either(request):
    """A fresh directory on a mount of each front."""
    return fresh(request.getfixturevalue(request.param), request)
