"""docs/training.md does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from code_blocks import run_page

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(600)
def test_page_runs_from_nothing_to_a_training_loop(tmp_path):
    printed = "".join(run_page(ROOT / "docs" / "training.md", tmp_path))
    assert "100 records" in printed
    assert "0 damaged" in printed
    assert "['/data/images.rec', '/data/labels.csv', '/data/tokens.rec']" in printed
    assert "[b'name', b'label']" in printed
    assert "16.0 KiB" in printed
    for name in ("result.json", "result.svg"):
        assert (tmp_path / name).stat().st_size > 0
