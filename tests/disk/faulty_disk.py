"""A disk for real daemons that tests can make slow, make fail, and cut the power of.

    with Disk(tmp_path / "disk") as disk:
        ...                                          # daemons live below disk.path
        disk.add_rule(path="node-1", operations=["sync"], delay_s=0.2)
        disk.add_rule(path="node-2", operations=["write"], errno="EIO")
        disk.clear_rules()
        ...                                          # kill -9 everybody who uses the disk
        disk.cut_power(seed=7)                       # what was not synced is gone
        ...                                          # start them again

A FUSE file system in memory (:mod:`disk_filesystem`), served by a process of its own. Paths in
rules are relative to ``disk.path``. Root or fusermount3 is needed: see ``why_no_mount``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memory_mount import STOP_TIMEOUT_S, why_no_mount

__all__ = ["Disk", "why_no_mount"]

_SERVER = Path(__file__).with_name("serve_disk.py")
CAPACITY_BYTES = 4 << 30  # said to those who ask; memory is taken by what is written


class Disk:
    """Mounted from its making on until :meth:`close`; or use it as a context manager."""

    def __init__(self, path: Path, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """``path``: a directory to mount on, made if missing."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._log = path.with_name(f"{path.name}.log")
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, str(_SERVER), str(path), str(capacity_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the test, which then ends it
            )
        assert self._server.stdout is not None
        ready = self._server.stdout.readline()
        assert ready == "ready\n", self._log.read_text()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount. Nobody may use it any more."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        code = self._server.wait(STOP_TIMEOUT_S)
        self._server.stdout.close()
        logged = self._log.read_text()
        assert code == 0, logged
        assert "ERROR" not in logged, logged
        assert not os.path.ismount(self.path)

    def add_rule(
        self,
        *,
        path: str = "",
        operations: list[str] | None = None,
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
        errno: str = "",
        pretend: bool = False,
    ) -> None:
        """What lies below ``path`` is slow, fails with ``errno``, or ("pretend") does not sync.

        ``operations``: some of "read", "write", "sync" (fsync of files and directories) and "name"
        (create, unlink, rename, mkdir); all of them unless said. The first that applies counts.
        """
        rule: dict[str, Any] = {"path": path, "delay_s": delay_s, "bytes_per_s": bytes_per_s}
        if operations is not None:
            rule["operations"] = operations
        self._order("add_rule", **rule, errno=errno, pretend=pretend)

    def clear_rules(self) -> None:
        """A good disk again."""
        self._order("clear_rules")

    def freeze_after(self, changes: int) -> None:
        """So many changes (writes, syncs, names) from now on the disk stands still."""
        self._order("freeze_after", changes=changes)

    def is_frozen(self) -> bool:
        """Whether it stands still now."""
        return bool(self._order("is_frozen"))

    def changes(self) -> int:
        """How many changes it has been asked for so far."""
        return int(self._order("changes"))

    def cut_power(self, seed: int, *, keep_some: bool = True) -> None:
        """Lose what was not synced; with ``keep_some`` a part of it, which the seed chooses, stays.

        Everybody who uses the disk must have been killed; who waits for a frozen disk dies now.
        """
        self._order("cut_power", seed=seed, keep_some=keep_some)

    def _order(self, method: str, **arguments: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([method, arguments]) + "\n")
        self._server.stdin.flush()
        good, value = json.loads(self._server.stdout.readline())
        assert good, value
        return value
