"""The data plane's records: what docs/formats.md shows, and heads that make no sense."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fs3 import dataplane, frames
from fs3.core.types import chunk_id
from fs3.errors import Code, Fs3Error

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_documented_example_is_what_is_sent() -> None:
    item = np.zeros(1, dataplane.READ_ITEM)
    item["chunk"] = np.frombuffer(chunk_id(7, 1), "V24")
    item["chain"], item["chain_version"], item["offset"], item["length"] = 3, 2, 4096, 100
    head = item.tobytes()
    tag = frames.cluster_tag("demo")
    header = frames.encode(frames.FrameKind.REQUEST, dataplane.READ_BATCH, tag, 9, head, 0)
    text = FORMATS.read_text().partition("A READ_BATCH of one item")[2]
    shown = "".join(re.findall(r"^((?:[0-9a-f]{2,32} )+)", text.split("```")[1], re.MULTILINE))
    assert shown.replace(" ", "") == (header + head).hex()


def test_documented_sizes_are_the_real_ones() -> None:
    sizes = {
        "READ item": dataplane.READ_ITEM,
        "READ result": dataplane.READ_RESULT,
        "WRITE item": dataplane.WRITE_ITEM,
        "WRITE result": dataplane.WRITE_RESULT,
    }
    for name, dtype in sizes.items():
        assert f"{name} ({dtype.itemsize})" in FORMATS.read_text()


def test_results_come_with_the_details_of_those_that_failed() -> None:
    results = np.zeros(2, dataplane.WRITE_RESULT)
    results[1]["code"] = Code.NO_SPACE
    head = dataplane.encode_results(results, [(1, "the disk is full")])
    found, details = dataplane.decode_results(head, dataplane.WRITE_RESULT, 2)
    assert found.tolist() == results.tolist()
    assert details == {1: "the disk is full"}


def test_a_head_of_broken_items_is_refused() -> None:
    with pytest.raises(Fs3Error, match="whole items of 40") as error:
        dataplane.decode_items(bytes(41), dataplane.READ_ITEM)
    assert error.value.code is Code.PROTOCOL
    with pytest.raises(Fs3Error, match="at most 4096") as error:
        dataplane.decode_items(bytes(40 * 4097), dataplane.READ_ITEM)
    assert error.value.code is Code.TOO_LARGE
    with pytest.raises(Fs3Error, match="24 expected"):
        dataplane.decode_results(bytes(23), dataplane.READ_RESULT, 1)
