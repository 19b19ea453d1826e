"""Mount and unmount: a descriptor of /dev/fuse tied to a directory.

As root by mount(2) itself; otherwise through ``fusermount3``, which is set-uid and hands the
descriptor back over a unix socket. The kernel checks permissions (``default_permissions``), honours
neither set-uid bits nor device nodes, and lets other users in (``allow_other``; for ordinary users
only if /etc/fuse.conf has ``user_allow_other``).

A mount is known by its device number from /proc/self/mountinfo, so that :meth:`Mount.unmount` never
unmounts what somebody has mounted there since. Nothing here looks into the mounted file system:
that would ask a server which may not run yet, or no more.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Code, Fs3Error

log = logging.getLogger(__name__)

DEVICE = "/dev/fuse"
SOURCE = "fs3"
SUBTYPE = "fs3"
REQUEST_BYTES_MAX = 1 << 20  # of data in one read or write

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Mount:
    """A mounted directory; ``fd`` is the server's end and belongs to whoever serves it."""

    mountpoint: str  # absolute
    fd: int
    device: str  # "major:minor" of the mounted file system
    by_root: bool

    def unmount(self) -> bool:
        """Take the mount out of the tree; False if a program is using it, then nothing changes."""
        if self.device not in _devices_mounted_at(self.mountpoint):
            return True
        if self.by_root:
            return _umount2(self.mountpoint, 0) == 0
        return _fusermount("-u", "--", self.mountpoint) == ""

    def abort(self) -> None:
        """End the connection at once and unmount: requests under way fail, and all later ones."""
        minor = self.device.partition(":")[2]
        control = Path(f"/sys/fs/fuse/connections/{minor}/abort")
        if self.device not in _devices_mounted_at(self.mountpoint):
            return
        if self.by_root:
            _umount2(self.mountpoint, _MNT_FORCE | _MNT_DETACH)
            return
        if control.exists():  # an ordinary user may abort only through the control file system
            control.write_text("1")
        _fusermount("-u", "-z", "--", self.mountpoint)

    def set_readahead(self, length_bytes: int) -> bool:
        """How far the kernel reads ahead of a sequential reader; False if sysfs does not let us.

        The protocol can only lower the kernel's 128 KiB; raising it takes root and sysfs.
        """
        setting = Path(f"/sys/class/bdi/{self.device}/read_ahead_kb")
        try:
            setting.write_text(f"{length_bytes >> 10}\n")
        except OSError as reason:
            log.info("readahead_unchanged device=%s reason=%s", self.device, reason)
            return False
        return True


def mount(
    mountpoint: str | os.PathLike[str], *, read_only: bool = False, allow_other: bool = True
) -> Mount:
    """Mount an empty directory; the first request then waits on the returned descriptor."""
    path = os.path.realpath(mountpoint)
    mode = os.stat(path).st_mode
    if not stat.S_ISDIR(mode):
        raise Fs3Error(Code.NOT_DIRECTORY, f"mount point {path}: not a directory")
    by_root = os.geteuid() == 0
    if by_root:
        fd = _mount_as_root(path, mode, read_only, allow_other)
    else:
        fd = _mount_by_fusermount(path, read_only, allow_other)
    devices = _devices_mounted_at(path)
    if not devices:
        os.close(fd)
        raise Fs3Error(Code.BUG, f"mount point {path}: mounted, but not in /proc/self/mountinfo")
    return Mount(path, fd, devices[-1], by_root)


def _options(allow_other: bool) -> list[str]:
    options = ["default_permissions", f"max_read={REQUEST_BYTES_MAX}"]
    return [*options, "allow_other"] if allow_other else options


def _mount_as_root(path: str, mode: int, read_only: bool, allow_other: bool) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as reason:
        raise Fs3Error(
            Code.UNSUPPORTED, f"cannot open {DEVICE} ({reason}): is the fuse module loaded?"
        ) from reason
    identity = [
        *(f"fd={fd}", f"rootmode={stat.S_IFMT(mode):o}"),
        *(f"user_id={os.getuid()}", f"group_id={os.getgid()}"),
    ]
    data = ",".join(identity + _options(allow_other))
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    failed = _libc.mount(
        SOURCE.encode(), os.fsencode(path), f"fuse.{SUBTYPE}".encode(), flags, data.encode()
    )
    if failed:
        number = ctypes.get_errno()
        os.close(fd)
        raise Fs3Error(Code.PERMISSION, f"mount on {path} refused: {os.strerror(number)} ({data})")
    return fd


def _mount_by_fusermount(path: str, read_only: bool, allow_other: bool) -> int:
    options = [f"fsname={SOURCE}", f"subtype={SUBTYPE}", *_options(allow_other)]
    if read_only:
        options.append("ro")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        refused = _fusermount("-o", ",".join(options), "--", path, reply_to=theirs)
        if refused:
            raise Fs3Error(Code.PERMISSION, f"mount on {path} refused: {refused}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise Fs3Error(Code.BUG, f"mount on {path}: fusermount3 sent no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _fusermount(*arguments: str, reply_to: socket.socket | None = None) -> str:
    """Run fusermount3: "" if it went well, else what it says."""
    program = shutil.which("fusermount3")
    if program is None:
        raise Fs3Error(
            Code.UNSUPPORTED, "fusermount3 not found: install the package fuse3, or mount as root"
        )
    descriptors = [] if reply_to is None else [reply_to.fileno()]
    environment = {"_FUSE_COMMFD": str(descriptors[0])} if descriptors else {}
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, **environment},
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"


def _umount2(path: str, flags: int) -> int:
    """0, or EBUSY; what is not mounted counts as unmounted; anything else is raised."""
    if not _libc.umount2(os.fsencode(path), flags | _UMOUNT_NOFOLLOW):
        return 0
    number = ctypes.get_errno()
    if number == errno.EINVAL:
        return 0
    if number == errno.EBUSY:
        return number
    raise Fs3Error(Code.PERMISSION, f"umount of {path} refused: {os.strerror(number)}")


def _devices_mounted_at(path: str) -> list[str]:
    """Device numbers of what is mounted on ``path``, the topmost last."""
    escaped = path.translate({ord(c): f"\\{ord(c):03o}" for c in " \t\n\\"})
    table = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    rows = (line.split(" ", 5) for line in table.split("\n") if line)
    return [row[2] for row in rows if row[4] == escaped]
