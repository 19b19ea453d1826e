"""The structs, numbers and flags of the kernel's FUSE protocol, as in <linux/fuse.h>, version 7.38.

Every request is ``IN_HEADER``, then a struct that depends on the opcode, then NUL-terminated names
or data; every reply is ``OUT_HEADER``, then a struct, then data. All numbers are in the machine's
byte order and every struct is padded to 8 bytes by explicit fields, so "=" formats are exact.
Field order is given beside each struct; names are the kernel's. Times are pairs of seconds and
nanoseconds. ``x`` is padding.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 38  # the newest that we speak
MINOR_MIN = 23  # Linux 3.15; older ones have shorter replies
ROOT = 1


class Opcode(IntEnum):
    """What a request asks."""

    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47


class Init(IntFlag):
    """Abilities negotiated by INIT. The upper 32 bits travel in ``flags2``."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36  # Linux 6.6


# setattr: which fields of SETATTR_IN hold
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_KILL_SUIDGID = 1 << 11

GETATTR_FH = 1 << 0
OPEN_KILL_SUIDGID = 1 << 0
WRITE_CACHE = 1 << 0  # delayed write from the page cache
WRITE_KILL_SUIDGID = 1 << 2
RELEASE_FLOCK_UNLOCK = 1 << 1
FSYNC_FDATASYNC = 1 << 0
LK_FLOCK = 1 << 0
IOCTL_DIRECTORY = 1 << 4

# the reply of OPEN, CREATE and OPENDIR
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3

IN_HEADER = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen x
OUT_HEADER = Struct("=IiQ")  # len error unique

INIT_IN = Struct("=IIII")  # major minor max_readahead flags
INIT_IN_FLAGS2 = Struct("=I44x")  # from 7.36 on, behind INIT_IN
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages
# map_alignment flags2
INIT_OUT = Struct("=IIIIHHIIHHI28x")

# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize
# flags
ATTR_FORMAT = "QQQqqqIIIIIIIIII"
# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec attr
ENTRY_FORMAT = "QQQQII" + ATTR_FORMAT
ENTRY_OUT = Struct("=" + ENTRY_FORMAT)
ATTR_OUT = Struct("=QI4x" + ATTR_FORMAT)  # attr_valid attr_valid_nsec x attr
OPEN_OUT = Struct("=QI4x")  # fh open_flags x
CREATE_OUT = Struct("=" + ENTRY_FORMAT + "QI4x")  # entry_out, open_out
DIRENT = Struct("=QQII")  # ino off namelen type; then the name, padded to 8 bytes
DIRENTPLUS = Struct("=" + ENTRY_FORMAT + "QQII")

FORGET_IN = Struct("=Q")  # nlookup
FORGET_ONE = Struct("=QQ")  # nodeid nlookup
BATCH_FORGET_IN = Struct("=I4x")  # count x; then FORGET_ONE each
GETATTR_IN = Struct("=I4xQ")  # getattr_flags x fh
# valid x fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode x uid gid x
SETATTR_IN = Struct("=I4xQQQqqqIIII4xII4x")
MKNOD_IN = Struct("=III4x")  # mode rdev umask x
MKDIR_IN = Struct("=II")  # mode umask
RENAME_IN = Struct("=Q")  # newdir
RENAME2_IN = Struct("=QI4x")  # newdir flags x
LINK_IN = Struct("=Q")  # oldnodeid
OPEN_IN = Struct("=II")  # flags open_flags
CREATE_IN = Struct("=IIII")  # flags mode umask open_flags
RELEASE_IN = Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN = Struct("=Q8xQ")  # fh x lock_owner
READ_IN = Struct("=QQIIQI4x")  # fh offset size read_flags lock_owner flags x
WRITE_IN = Struct("=QQIIQI4x")  # fh offset size write_flags lock_owner flags x; then the data
WRITE_OUT = Struct("=I4x")  # size x
STATFS_OUT = Struct("=QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize x
FSYNC_IN = Struct("=QI4x")  # fh fsync_flags x
SETXATTR_IN = Struct("=II")  # size flags; then the name, then the value
GETXATTR_IN = Struct("=I4x")  # size x; then the name
GETXATTR_OUT = Struct("=I4x")  # size x
LK_IN = Struct("=QQQQIII4x")  # fh owner start end type pid lk_flags x
LK_OUT = Struct("=QQII")  # start end type pid
INTERRUPT_IN = Struct("=Q")  # unique
IOCTL_IN = Struct("=QIIQII")  # fh flags cmd arg in_size out_size; then the data
IOCTL_OUT = Struct("=iIII")  # result flags in_iovs out_iovs; then the data
FALLOCATE_IN = Struct("=QQQI4x")  # fh offset length mode x
LSEEK_IN = Struct("=QQI4x")  # fh offset whence x
LSEEK_OUT = Struct("=Q")  # offset
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags

NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")  # ino off len
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")  # parent namelen flags; then the name and a NUL
