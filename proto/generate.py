"""Generate the Python code of the .proto files: ``python proto/generate.py [OUTPUT_DIRECTORY]``.

The code is committed, so that installing fs3 needs no protoc; a test proves it is fresh.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Write ``*_pb2.py`` and ``*_pb2.pyi`` into ``output``; raises RuntimeError if protoc fails."""
    with tempfile.TemporaryDirectory() as scratch:
        # The import path inside the files is fs3/proto/, which is where the package is.
        package = Path(scratch, "fs3", "proto")
        package.mkdir(parents=True)
        sources = sorted(HERE.glob("*.proto"))
        for source in sources:
            shutil.copy(source, package)
        well_known = str(files("grpc_tools") / "_proto")
        arguments = ["protoc", f"-I{scratch}", f"-I{well_known}"]
        arguments += [f"--python_out={scratch}", f"--pyi_out={scratch}"]
        if protoc.main(arguments + [str(package / source.name) for source in sources]):
            raise RuntimeError("protoc failed; see its message above")
        for made in sorted(package.glob("*_pb2.py*")):
            shutil.copy(made, output)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
