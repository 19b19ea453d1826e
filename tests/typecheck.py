"""Run mypy over the package as it is installed: ``python tests/typecheck.py [mypy's arguments]``.

The packages fs3.client, fs3.metaserver, ... stand beside ./fs3, and mypy does not read the mapping
in pyproject.toml. So it gets a tree of links in which they stand where an installation has them.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "types"


def link_packages() -> None:
    """Make ``build/types/fs3`` what an installation would make of this checkout."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = TREE / "fs3"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {
        name.partition(".")[2]: ROOT / folder
        for name, folder in mapping["package-dir"].items()
        if name != "fs3"
    }
    wanted |= {entry.name: entry for entry in (ROOT / "fs3").iterdir() if entry.name[0] != "_"}
    wanted["__init__.py"] = ROOT / "fs3" / "__init__.py"
    for link in package.iterdir():
        if link.name not in wanted:
            link.unlink()
    for name, target in wanted.items():
        if not (package / name).is_symlink():
            (package / name).symlink_to(target)


def main() -> int:
    """mypy's exit status."""
    link_packages()
    arguments = sys.argv[1:] or ["-p", "fs3"]
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *arguments]
    return subprocess.run(command, cwd=TREE, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
