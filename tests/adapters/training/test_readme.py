"""README.md does what it says, its two commands apart, which are run by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from code_blocks import run_page

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(300)
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")
def test_every_block_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "one").write_bytes(os.urandom(100_000))
    (tmp_path / "mnt").mkdir()
    text = (ROOT / "README.md").read_text()
    for line, instead in {
        "bash deploy/demo.sh ": ": ",
        "bash tests/run.sh ": ": ",
        "pip install -e .": ":",  # the environment has it
        "/mnt/fs3 ": f"{tmp_path / 'mnt'} ",
        "fs3 down ": "ls mnt/dataset # ",  # what follows needs the cluster
    }.items():
        assert line in text
        text = text.replace(line, instead)
    page = tmp_path / "README.md"
    page.write_text(text)
    printed = run_page(page, tmp_path)
    cluster, python, cache, training = printed[1], printed[2], printed[4], printed[6]
    assert cluster.endswith("one\n")
    assert python.startswith("16 ['notes.txt', 'tokens.bin']")
    assert cache == "2\n[65536 65536    -1]\n"
    assert training == "2000 2000\n"
