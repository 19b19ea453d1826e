"""Serve a memory file system on a directory until it is unmounted: the server process of the tests.

    python serve_memory.py MOUNTPOINT [--front direct|fusepy] [--workers N] [--direct-io]
                           [--writeback-cache] [--constant]

Prints "ready" when it serves; SIGTERM unmounts. ``--constant`` answers reads
with zeros and drops what is written: an empty loop, to measure what the front itself costs.
"""

from __future__ import annotations

import argparse
import logging

from memory_filesystem import MemoryFileSystem

from fs3.client.filesystem_interface import Buffer
from fs3.client.fuse import front as direct_front
from fs3.client.fuse import fusepy_front
from fs3.client.fuse.negotiation import FrontOptions

CONSTANT = memoryview(bytes(1 << 20))


class ConstantFileSystem(MemoryFileSystem):
    """Reads give zeros, writes go nowhere; names are real."""

    def read(self, handle: int, offset: int, length: int) -> Buffer | list[Buffer]:
        return CONSTANT[:length]

    def write(
        self, handle: int, offset: int, data: memoryview, append: bool, clear_privileges: bool
    ) -> int:
        return len(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--front", choices=["direct", "fusepy"], default="direct")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--direct-io", action="store_true")
    parser.add_argument("--writeback-cache", action="store_true")
    parser.add_argument("--constant", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    filesystem = (ConstantFileSystem if options.constant else MemoryFileSystem)(
        options.direct_io, on_attach=lambda: print("ready", flush=True)
    )
    front_options = FrontOptions(workers=options.workers, writeback_cache=options.writeback_cache)
    front = fusepy_front if options.front == "fusepy" else direct_front
    front.serve(filesystem, options.mountpoint, front_options)


if __name__ == "__main__":
    main()
