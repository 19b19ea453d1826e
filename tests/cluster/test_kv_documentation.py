"""docs/kv-cache.md does what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "docs"))
from code_blocks import run_page  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]


def test_the_page_about_the_kv_cache_runs(tmp_path):
    printed = run_page(ROOT / "docs" / "kv-cache.md", tmp_path)
    assert "known pages: 0" in printed[1]
    assert "b'first', b'second', None" in printed[2]
    assert (tmp_path / "result.svg").read_text().startswith("<svg")
