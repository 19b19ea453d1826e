"""Runs the code blocks of a page of documentation, in order, as a reader would.

Blocks marked ``bash`` and ``python`` run, each as a process of its own, in one scratch directory
whose commands are those of the environment that runs the test. A comment in the line above a block
says something about it:

    <!-- file: train.py -->      it is written to that file and not run
    <!-- not run: needs a GPU -->

Blocks in other languages (``text``, ``toml``, ``console``) are only read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^(?:<!-- (?P<word>file|not run): (?P<what>.*?) -->\n)?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TIMEOUT_S = 300
_COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@dataclass(frozen=True)
class Block:
    """``line``: where its code begins in the page. ``file``: where to write it, instead."""

    line: int
    language: str
    code: str
    file: str | None = None


def blocks_of(text: str) -> list[Block]:
    """What is to be run, or written to a file."""
    found = []
    for match in _BLOCK.finditer(text):
        file = match["what"] if match["word"] == "file" else None
        if match["word"] != "not run" and (file or match["language"] in _COMMANDS):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(line, match["language"], match["code"], file))
    return found


def run_page(page: Path, directory: Path, **variables: str) -> list[str]:
    """Run it in ``directory``, with environment ``variables``; what each block printed.

    AssertionError, with what was printed, of the first block that failed. A local cluster that the
    page has started in ./fs3-data and left running is stopped.
    """
    blocks = blocks_of(page.read_text())
    assert blocks, f"{page.name} has no code to run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FS3_")}
    path = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", "")])
    environment |= {"PATH": path, **variables}
    printed = []
    try:
        for block in blocks:
            if block.file is not None:
                (directory / block.file).parent.mkdir(parents=True, exist_ok=True)
                (directory / block.file).write_text(block.code)
                continue
            done = subprocess.run(
                [*_COMMANDS[block.language], block.code],
                cwd=directory,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            where = f"{page.name}:{block.line}"
            assert done.returncode == 0, f"{where}: exit {done.returncode}\n{done.stdout}"
            printed.append(done.stdout)
    finally:
        if (directory / "fs3-data" / "cluster.json").exists():
            command = [sys.executable, "-m", "fs3.client.cli.main", "down"]
            subprocess.run(command, cwd=directory, env=environment, timeout=60, check=True)
    return printed
