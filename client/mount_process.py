"""The process behind a mount: ``python -m fs3.client.mount_process``, started by ``fs3 mount``.

It detaches, and its starter returns once the mount can be used. SIGTERM and SIGINT unmount, as does
anybody's umount. Everything written is stored before the process ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from fs3.errors import Fs3Error
from fs3.log import configure_logging

from . import processes

_FIRST_CALL_S = 5.0  # a cluster that does not answer now is better reported than mounted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fs3.client.mount_process", description=__doc__)
    parser.add_argument("--mountpoint", required=True, help="absolute path of the directory")
    parser.add_argument("--address", required=True, help="metaservers' frame ports, with commas")
    parser.add_argument("--cluster-id", required=True)
    parser.add_argument("--front", choices=("direct", "fusepy"), default="direct")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--allow-other", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--writeback-cache", action="store_true")
    parser.add_argument("--pid-file", type=Path, help="detach, and record the process here")
    parser.add_argument("--log-file", type=Path, help="with --pid-file: where output goes")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one mount until it is unmounted."""
    given = _parser().parse_args(arguments)
    detached = given.pid_file is not None
    # Before anything that starts threads is even imported: it forks.
    ready = processes.detach(given.pid_file, given.log_file) if detached else _nobody_waits
    configure_logging()
    try:
        _serve(given, ready)
    except Fs3Error as error:
        if not detached:
            raise
        raise SystemExit(str(error)) from None  # the last line of the log is what the starter says


def _nobody_waits() -> None:
    """In the foreground."""


def _serve(given: argparse.Namespace, ready: Callable[[], None]) -> None:
    from .administration import Administration
    from .api import connect
    from .filesystem import MountedFileSystem
    from .filesystem_interface import Notifier
    from .fuse import front, fusepy_front
    from .fuse.negotiation import FrontOptions

    class Announced(MountedFileSystem):
        """Tells when the mount can be used."""

        def attach(self, notifier: Notifier) -> None:
            super().attach(notifier)
            ready()

    addresses = given.address.split(",")
    with Administration(addresses, given.cluster_id, _FIRST_CALL_S) as calls:
        calls.routing()
    options = FrontOptions(
        workers=given.workers,
        read_only=given.read_only,
        allow_other=given.allow_other,
        writeback_cache=given.writeback_cache,
    )
    client = connect(addresses, cluster_id=given.cluster_id)
    filesystem = Announced(client.context, read_only=given.read_only)
    serve = fusepy_front.serve if given.front == "fusepy" else front.serve
    serve(filesystem, given.mountpoint, options)


if __name__ == "__main__":
    main()
