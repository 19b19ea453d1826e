"""Build the guest's kernel from Debian's linux-source package: about five minutes of two cores.

Needs apt-get, and the packages gcc make flex bison bc xz-utils libc6-dev. No patch is applied.
INFINIBAND wants IOMEM and DMA, RDMA_RXE wants PCI: UML_PCI_OVER_VIRTIO provides all three, though
nothing is ever attached to that bus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = "linux-source-6.1"
WANTED = """
64BIT PRINTK BUG MULTIUSER BINFMT_ELF BINFMT_SCRIPT POSIX_TIMERS FUTEX EPOLL SIGNALFD TIMERFD
EVENTFD AIO IO_URING ADVISE_SYSCALLS MEMBARRIER FILE_LOCKING FSNOTIFY INOTIFY_USER SYSVIPC
POSIX_MQUEUE CROSS_MEMORY_ATTACH HIGH_RES_TIMERS NO_HZ_IDLE NAMESPACES UTS_NS PID_NS NET_NS IPC_NS
USER_NS BLOCK SHMEM TMPFS TMPFS_XATTR TMPFS_POSIX_ACL PROC_FS PROC_SYSCTL SYSFS DEVTMPFS OVERLAY_FS
FUSE_FS HOSTFS TTY UNIX98_PTYS STDERR_CONSOLE STDIO_CONSOLE NULL_CHAN FD_CHAN MAGIC_SYSRQ KALLSYMS
NET PACKET UNIX INET IPV6 NETDEVICES NET_CORE DUMMY VETH VIRTIO_MENU VIRTIO_UML
UML_PCI_OVER_VIRTIO INFINIBAND INFINIBAND_USER_ACCESS INFINIBAND_USER_MEM
INFINIBAND_ON_DEMAND_PAGING INFINIBAND_ADDR_TRANS RDMA_RXE RDMA_SIW CRYPTO CRYPTO_CRC32
CRYPTO_CRC32C LIBCRC32C SMP
"""
MORE = """
CONFIG_LOCALVERSION="-rdma"
CONFIG_UML_PCI_OVER_VIRTIO_DEVICE_ID=1234
CONFIG_NR_CPUS=8
CONFIG_CON_ZERO_CHAN="null"
CONFIG_CON_CHAN="null"
CONFIG_SSL_CHAN="null"
CONFIG_SSL=n
"""
MUST_STICK = ("INFINIBAND_USER_ACCESS", "RDMA_RXE", "RDMA_SIW", "OVERLAY_FS", "HOSTFS", "64BIT")
# User-Mode Linux has no /proc/sysrq-trigger, and poweroff(8) may want an init system.
POWEROFF = """
#include <sys/reboot.h>
#include <unistd.h>
int main(void) { sync(); reboot(RB_POWER_OFF); for (;;) pause(); }
"""


def build(into: Path) -> None:
    """Put ``uml-linux`` and ``uml-poweroff`` there; SystemExit says what is missing or failed."""
    missing = [
        tool
        for tool in ("apt-get", "gcc", "make", "flex", "bison", "bc", "xz")
        if not shutil.which(tool)
    ]
    if missing:
        raise SystemExit(f"missing: {' '.join(missing)}")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        _build(into, Path(scratch))


def _build(into: Path, scratch: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", SOURCE], cwd=scratch, check=True)
    package = next(scratch.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, scratch / "package"], check=True)
    archive = next((scratch / "package/usr/src").glob("*.tar.xz"))
    tree = scratch / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-xJf", archive, "-C", tree, "--strip-components=1"], check=True)
    (tree / "wanted").write_text("".join(f"CONFIG_{w}=y\n" for w in WANTED.split()) + MORE)
    environ = {**os.environ, "KCONFIG_ALLCONFIG": "wanted", "KBUILD_BUILD_TIMESTAMP": "@1"}
    environ |= {"KBUILD_BUILD_USER": "x", "KBUILD_BUILD_HOST": "x"}
    make = ["make", "-s", "ARCH=um", f"-j{os.cpu_count()}"]
    subprocess.run([*make, "allnoconfig"], cwd=tree, env=environ, check=True)
    settled = (tree / ".config").read_text()
    lost = [name for name in MUST_STICK if f"CONFIG_{name}=y" not in settled]
    if lost:
        raise SystemExit(f"this source cannot do CONFIG_{lost[0]}")
    with (into / "build.log").open("w") as log:
        if subprocess.run(
            [*make, "linux"], cwd=tree, env=environ, stdout=log, stderr=log
        ).returncode:
            raise SystemExit(f"the kernel does not build: {into / 'build.log'}")
    (scratch / "off.c").write_text(POWEROFF)
    off = ["gcc", "-Os", "-static", "-o", into / "uml-poweroff", scratch / "off.c"]
    subprocess.run(off, check=True)
    subprocess.run(["strip", "-o", into / "uml-linux.new", tree / "linux"], check=True)
    (into / "uml-linux.new").rename(into / "uml-linux")
