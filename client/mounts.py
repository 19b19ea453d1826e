"""FUSE mounts as processes: start one and wait for it, find it by its mount point, end it.

A registry is a directory with files for each mount: NAME.json (what it is), NAME.pid, NAME.log.
Mounts of a local cluster are recorded in that cluster's directory, so that it can end them; others
in the user's own state directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fs3 import durable
from fs3.errors import Code, Fs3Error

from . import processes
from .fuse.mount import Mount

STOP_GRACE_S = 15.0  # a mount may have data to write before it ends


@dataclass(frozen=True, slots=True)
class MountFiles:
    """Where a registry keeps one mount."""

    registry: Path
    mountpoint: str  # absolute

    def path(self, suffix: str) -> Path:
        """Its ``json``, ``pid`` or ``log``."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.mountpoint).strip("-")[-40:]
        digest = hashlib.blake2b(os.fsencode(self.mountpoint), digest_size=4).hexdigest()
        return self.registry / f"{readable}-{digest}.{suffix}"

    def forget(self) -> None:
        """Remove the record; the log stays."""
        for suffix in ("json", "pid"):
            self.path(suffix).unlink(missing_ok=True)


def user_registry() -> Path:
    """The registry of mounts of clusters that have no directory here."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "fs3" / "mounts"


def absolute(mountpoint: str | os.PathLike[str]) -> str:
    """The mount point as the kernel lists it. Looks into its parent only, never into a mount."""
    path = Path(os.path.abspath(mountpoint))
    return str(path if path == path.parent else path.parent.resolve() / path.name)


def mounted_devices(mountpoint: str) -> list[str]:
    """Device numbers of the FUSE file systems mounted on ``mountpoint``, the topmost last."""
    escaped = mountpoint.translate({ord(c): f"\\{ord(c):03o}" for c in " \t\n\\"})
    table = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    rows = (line.split(" ") for line in table.split("\n") if line)
    return [r[2] for r in rows if r[4] == escaped and r[r.index("-") + 1].startswith("fuse")]


def start(registry: Path, mountpoint: str, arguments: Sequence[str]) -> None:
    """Start a mount process with these arguments; returns when the mount can be used."""
    files = MountFiles(registry, mountpoint)
    if processes.living(files.path("pid")) or mounted_devices(mountpoint):
        dead = not processes.living(files.path("pid"))
        what = "; if nothing answers there: `fs3 umount` it first" if dead else ""
        raise Fs3Error(Code.EXISTS, f"{mountpoint} is mounted already{what}")
    try:
        registry.mkdir(parents=True, exist_ok=True)
        durable.write_file(files.path("json"), json.dumps({"mountpoint": mountpoint}) + "\n")
    except PermissionError as error:
        what = f"{registry} is another user's; mount with --address and --cluster-id instead"
        raise Fs3Error(Code.ACCESS, what) from error
    command = [sys.executable, "-m", "fs3.client.mount_process", "--mountpoint", mountpoint]
    command += ["--pid-file", str(files.path("pid")), "--log-file", str(files.path("log"))]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        files.forget()
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise Fs3Error(Code.NOT_READY, f"{mountpoint} was not mounted: {lines[-1]}")


def find(registries: Sequence[Path], mountpoint: str) -> MountFiles | None:
    """The record of the mount at ``mountpoint``."""
    candidates = (MountFiles(registry, mountpoint) for registry in registries)
    return next((files for files in candidates if files.path("json").exists()), None)


def recorded(registry: Path) -> list[MountFiles]:
    """Every mount recorded in ``registry``."""
    found = []
    for path in sorted(registry.glob("*.json")):
        with suppress(FileNotFoundError):  # unmounted meanwhile
            found.append(MountFiles(registry, json.loads(path.read_text())["mountpoint"]))
    return found


def unmount(files: MountFiles) -> None:
    """Unmount as ``umount`` does: Fs3Error BUSY if a program uses it, and nothing has changed.

    Returns when the process behind it has ended, everything written.
    """
    for device in reversed(mounted_devices(files.mountpoint)):
        if not _mount_of(files.mountpoint, device).unmount():
            what = "a program has a file or its working directory there; --force unmounts anyway"
            raise Fs3Error(Code.BUSY, f"{files.mountpoint} is in use ({what})")
    process = processes.living(files.path("pid"))
    if process is not None and not process.wait_gone(STOP_GRACE_S):
        processes.stop([files.path("pid")], STOP_GRACE_S)
    files.forget()


def force_unmount(files: MountFiles) -> list[str]:
    """Unmount whatever uses it. Returns the commands of processes that had to be killed.

    The process writes what it holds; programs that use the mount get ENOTCONN from then on.
    """
    killed = processes.stop([files.path("pid")], STOP_GRACE_S)
    for device in reversed(mounted_devices(files.mountpoint)):
        _mount_of(files.mountpoint, device).abort()
    files.forget()
    return killed


def unmount_all(registry: Path) -> list[str]:
    """Force every mount of ``registry`` off. Returns what had to be killed."""
    return [command for files in recorded(registry) for command in force_unmount(files)]


def _mount_of(mountpoint: str, device: str) -> Mount:
    return Mount(mountpoint, -1, device, os.geteuid() == 0)
