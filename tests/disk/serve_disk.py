"""Serve a faulty disk on a directory: a process of its own, which :mod:`faulty_disk` starts.

    python serve_disk.py MOUNTPOINT CAPACITY_BYTES

Says "ready" when it serves. Then a line of JSON on standard input, ``[method, {arguments}]``, is a
call of :class:`disk_filesystem.FaultyDisk`, answered by a line: ``[true, value]`` or
``[false, error]``. At the end of the input it unmounts and ends: so it does not outlive its test.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "posix"))

from disk_filesystem import FaultyDisk

from fs3.client.fuse.front import Front
from fs3.client.fuse.negotiation import FrontOptions

ORDERS = ("add_rule", "clear_rules", "freeze_after", "is_frozen", "cut_power", "changes")
_WORKERS = 64  # slow and frozen operations hold one each


def _answer(disk: FaultyDisk, line: str) -> tuple[bool, object]:
    method, arguments = json.loads(line)
    assert method in ORDERS, method
    try:
        found = getattr(disk, method)
        return True, found(**arguments) if callable(found) else found
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        return False, repr(error)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    mountpoint, capacity_bytes = sys.argv[1], int(sys.argv[2])
    disk = FaultyDisk(capacity_bytes, lambda: print("ready", flush=True))
    front = Front(disk, mountpoint, FrontOptions(workers=_WORKERS))

    def obey() -> None:
        for line in sys.stdin:
            print(json.dumps(_answer(disk, line)), flush=True)
        front.stop()

    front.start()
    threading.Thread(target=obey, name="orders").start()
    front.join()


if __name__ == "__main__":
    main()
