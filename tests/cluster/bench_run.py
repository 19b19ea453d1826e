"""``fs3 bench ...`` as a program that runs while a test kills servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from running_cluster import RunningCluster


def run_bench(
    cluster: RunningCluster,
    json_file: Path,
    *arguments: str,
    shows: str,
    then: Callable[[], None],
) -> list[dict[str, Any]]:
    """Run it to its end; when a line of its progress ``shows`` something, ``then()``, once.

    Returns the lines of its result.
    """
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FS3_")}
    command = [sys.executable, "-m", "fs3.client.cli.main", "bench", *arguments]
    seen: list[str] = []
    with subprocess.Popen(
        [*command, "--json", str(json_file)],
        env={**environ, "FS3_DIR": str(cluster.dir), "COLUMNS": "200"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        assert bench.stderr is not None
        done = False
        for line in bench.stderr:
            seen.append(line)
            if shows in line and not done:
                done = True
                then()
    print(*seen, sep="")
    assert bench.returncode == 0, "".join(seen)
    assert done, "it never came to what was waited for"
    lines: list[dict[str, Any]] = json.loads(json_file.read_text())["lines"]
    return lines
