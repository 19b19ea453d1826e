#!/usr/bin/env python3
"""Run one command in a throwaway Linux guest that has a real kernel RDMA device.

    python tests/rdma/vm.py run [--driver rxe,siw] [--rw DIR] [--timeout S] -- COMMAND [ARG...]
    python tests/rdma/vm.py prepare        build the guest's kernel from Debian's source instead

The guest is User-Mode Linux: a plain process, without KVM, qemu or root, that boots in under a
second. The host's / is the guest's / (read-only, with a tmpfs over it), so its Python, this
checkout and the virtual environment are all there; ``--rw DIR`` is the host's own directory. There
is one network interface, ``rdma0`` with 10.77.0.1/24, and on it a soft-RoCE device ``rxe0`` (or
soft-iWARP, ``siw0``). The command's exit status is this program's; 124: timeout, 125: the guest
died.

The kernel here, uml-linux.xz, was made by ``prepare`` from linux-source-6.1 6.1.192-2 of Debian 12
(NOTICE says more). Only the standard library is used.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / "build" / "rdma-vm"
ADDRESS = "10.77.0.1"
TIMEOUT, DIED = 124, 125  # exit statuses
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER

# The guest's pid 1: its / is the host's, read-only.
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs -o size=90% tmpfs /mnt
mkdir /mnt/u /mnt/w /mnt/new
mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w overlay /mnt/new
cd /mnt/new
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t devtmpfs devtmpfs dev
mount -t tmpfs tmpfs run
mkdir -p run/vm; mount -t hostfs -o @JOB@ none run/vm
while read -r d; do mount -t hostfs -o "$d" none "./$d"; done < run/vm/rw
exec chroot . /bin/sh /run/vm/main
"""

# Pipes between the command and the two terminals, so that output is plain and kept apart.
_MAIN = """export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
J=/run/vm
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts; mount -t tmpfs -o mode=1777 tmpfs /dev/shm
[ -e /dev/fd ] || { ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin
    ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr; }
@PYTHON@ -I -S -c "@SEED@"
ip link set lo up
ulimit -l unlimited; ulimit -n 65536
ip link add rdma0 type dummy; ip link set rdma0 mtu @MTU@ up; ip addr add @ADDRESS@/24 dev rdma0
for d in @DRIVERS@; do rdma link add ${d}0 type $d netdev rdma0 || echo "vm: no $d" >&2; done
stty raw -echo </dev/tty1; stty raw -echo </dev/tty2
mkfifo /run/o /run/e
cat /run/o >/dev/tty1 & CO=$!
cat /run/e >/dev/tty2 & CE=$!
sh $J/command >/run/o 2>/run/e </dev/null
echo $? >$J/status.new; mv $J/status.new $J/status
( sleep 1; kill $CO $CE 2>/dev/null ) &  # if the command left children that hold its output open
wait $CO $CE
sync -f $J/status
exec @POWEROFF@
"""

# A guest has no source of chance of its own: getrandom(2) would block. RNDADDENTROPY, 256 bytes.
_SEED = (
    "import fcntl, struct;"
    "fcntl.ioctl(open('/dev/urandom', 'wb'), 0x40085203,"
    " struct.pack('ii', 2048, 256) + open('/run/vm/seed', 'rb').read())"
)


class Guest:
    """One run of one command."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        writable: Sequence[Path] = (),
        drivers: str = "rxe",
        mtu: int = 9000,
        memory_mib: int = 2048,
        environ: dict[str, str] | None = None,
    ) -> None:
        self._command = command
        self._writable = [Path(d).resolve() for d in writable]
        self._drivers, self._mtu, self._memory_mib = drivers, mtu, memory_mib
        self._environ = os.environ if environ is None else environ
        self._job = Path(tempfile.mkdtemp(prefix="rdma-vm-"))
        self.console = ""

    def run(self, timeout_s: float | None, out: int = 1, err: int = 2) -> int:
        """The command's exit status; what it prints goes to these descriptors."""
        try:
            return self._run(timeout_s, out, err)
        finally:
            log = self._job / "console"
            self.console = log.read_text(errors="replace") if log.exists() else ""
            shutil.rmtree(self._job, ignore_errors=True)

    def _run(self, timeout_s: float | None, out: int, err: int) -> int:
        kernel, poweroff = kernel_and_poweroff()
        self._write_job(poweroff)
        ends = [os.pipe(), os.pipe()]
        with (self._job / "console").open("ab") as log:
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # its processes outlive it for a moment
            guest = subprocess.Popen(
                self._boot(kernel, [write for _, write in ends]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[write for _, write in ends],
                start_new_session=True,
                env={**os.environ, "TMPDIR": self._memory_directory()},
            )
        for _, write in ends:
            os.close(write)
        pumps = [
            threading.Thread(target=_pump, args=(read, to), daemon=True)
            for (read, _), to in zip(ends, (out, err), strict=True)
        ]
        for pump in pumps:
            pump.start()
        try:
            guest.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return TIMEOUT
        finally:
            _end(guest)
            for pump in pumps:
                pump.join(60)
        status = self._job / "status"
        return int(status.read_text()) if status.exists() else DIED

    def _write_job(self, poweroff: Path) -> None:
        environ = {k: v for k, v in self._environ.items() if re.fullmatch(r"[A-Za-z_]\w*", k)}
        environ |= {"RDMA_VM": "uml", "RDMA_VM_ADDRESS": ADDRESS, "TMPDIR": "/tmp"}
        said = " ".join(shlex.quote(f"{k}={v}") for k, v in environ.items())
        here = shlex.quote(os.getcwd())
        main = _MAIN.replace("@MTU@", str(self._mtu)).replace("@ADDRESS@", ADDRESS)
        main = main.replace("@DRIVERS@", self._drivers.replace(",", " "))
        main = main.replace("@PYTHON@", shlex.quote(sys.executable)).replace("@SEED@", _SEED)
        files = {
            "init": _INIT.replace("@JOB@", str(self._job)),
            "main": main.replace("@POWEROFF@", shlex.quote(str(poweroff))),
            "command": f"cd {here} && exec env -i {said} {shlex.join(self._command)}\n",
            "rw": "".join(f"{directory}\n" for directory in self._writable),
        }
        for name, text in files.items():
            (self._job / name).write_text(text)
        (self._job / "init").chmod(0o755)
        (self._job / "seed").write_bytes(os.urandom(256))

    def _boot(self, kernel: Path, outputs: Sequence[int]) -> list[str]:
        said = [str(kernel), f"mem={self._memory_mib}M", f"uml_dir={self._job}/", "umid=g"]
        said += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        said += [f"init={self._job}/init", "con=null", "ssl=null", "con0=null,fd:1"]
        said += [f"con{n}=null,fd:{fd}" for n, fd in enumerate(outputs, 1)]
        said += ["seccomp=auto", "console=tty0", "loglevel=3"]
        if shutil.which("taskset"):
            # Kernel and traced user code alternate; waking another core costs more than that.
            cpus = sorted(os.sched_getaffinity(0))
            said = ["taskset", "-c", str(cpus[os.getpid() % len(cpus)]), *said]
        return said

    def _memory_directory(self) -> str:
        """Where the guest's memory lies as a file: in memory, if there is room."""
        try:
            shm = os.statvfs("/dev/shm")
        except OSError:
            return str(self._job)
        room = shm.f_bavail * shm.f_frsize
        return "/dev/shm" if room > self._memory_mib << 20 else str(self._job)


def _pump(source: int, destination: int) -> None:
    while data := os.read(source, 65_536):
        while data:
            data = data[os.write(destination, data) :]
    os.close(source)


def _end(guest: subprocess.Popen[bytes]) -> None:
    """Nothing of it is left when this returns."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)
    guest.wait()
    end_s = time.monotonic() + 30  # on a loaded machine they take a moment to end
    while time.monotonic() < end_s:
        try:
            if os.waitpid(-guest.pid, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return


def kernel_and_poweroff() -> tuple[Path, Path]:
    """Executables: what ``prepare`` built, or what lies here."""
    if (CACHE / "uml-linux").exists():
        return CACHE / "uml-linux", CACHE / "uml-poweroff"
    packed = (HERE / "uml-linux.xz").read_bytes()
    kernel = CACHE / hashlib.sha256(packed).hexdigest()[:16]
    if not kernel.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = kernel.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(lzma.decompress(packed))
        scratch.chmod(0o755)
        scratch.rename(kernel)
    return kernel, HERE / "uml-poweroff"


def why_not() -> str:
    """Why no guest can run here; empty: it can."""
    machine = os.uname()
    if (machine.sysname, machine.machine) != ("Linux", "x86_64"):
        return f"the guest's kernel is for Linux on x86_64, not {machine.sysname} {machine.machine}"
    missing = [tool for tool in ("ip", "rdma") if not shutil.which(tool, path=_TOOL_PATH)]
    return f"{missing[0]} is missing: install iproute2" if missing else ""


_TOOL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("prepare")
    run = commands.add_parser("run")
    run.add_argument("--driver", default="rxe", help="rxe, siw or rxe,siw")
    run.add_argument("--mtu", type=int, default=9000)
    run.add_argument("--memory", type=int, default=2048, metavar="MIB")
    run.add_argument("--rw", action="append", default=[], type=Path, metavar="DIR")
    run.add_argument("--timeout", type=float, metavar="SECONDS")
    run.add_argument("--console", action="store_true", help="show what the guest's kernel says")
    run.add_argument("command", nargs="+")
    said = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # takes the guest along
    if said.what == "prepare":
        from kernel_build import build

        build(CACHE)
        return 0
    guest = Guest(
        said.command,
        writable=said.rw,
        drivers=said.driver,
        mtu=said.mtu,
        memory_mib=said.memory,
    )
    status = guest.run(said.timeout)
    if said.console or status == DIED:
        sys.stderr.write(guest.console[-20_000:])
    return status


if __name__ == "__main__":
    sys.exit(main())
