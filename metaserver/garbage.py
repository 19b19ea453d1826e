"""What is left to do at the storageservers: files to free, and files to cut.

A file without a name and without a session is *garbage*: it lies in a queue, ordered by time, until
its chunks are freed, and nothing brings it back. Its record stays readable until then.

A shrink leaves a *trim*: the length in the record is already the new one, the chunks past it are
still there. It must be done before the shrink is acknowledged, and, as the process may die in
between, the row says so to whoever comes next: open for writing returns it, the collector lists it.
Only when the row is gone may bytes be written past the cut, as a late cut would take them too; so
one trim of a file must be carried out by one worker at a time.
"""

from __future__ import annotations

from typing import NamedTuple

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FileKind, Inode

from . import keys, records
from .inodes import erase_inode, find_record
from .kv.interface import Transaction


class Garbage(NamedTuple):
    """A file whose chunks may be freed, all of them whatever its length says."""

    queued_ns: int
    inode: Inode


class Trim(NamedTuple):
    """Chunks to drop and one chunk to cut. ``inode`` is the file after the shrink."""

    inode: Inode
    truncate_version: int
    keep_bytes: int

    @property
    def first_dropped(self) -> int:
        """Every chunk of the file from this index on is to be removed, past its old length too."""
        return -(-self.keep_bytes // self.inode.layout.chunk_bytes)

    @property
    def last_chunk_bytes(self) -> int:
        """Chunk ``first_dropped - 1`` is to be cut to this length; 0: it stays as it is."""
        return self.keep_bytes % self.inode.layout.chunk_bytes


def has_sessions(txn: Transaction, inode: InodeId) -> bool:
    """Whether anybody holds the file open, so far as is recorded."""
    return bool(txn.range(*keys.range_of(keys.SESSION, inode), limit=1))


def collect_if_unused(txn: Transaction, record: Inode, now_ns: int) -> None:
    """Let go of an inode that has no name, unless it is held open."""
    if record.links > 0 or has_sessions(txn, record.inode):
        return
    if record.kind is FileKind.FILE:
        txn.set(keys.of(keys.GARBAGE, now_ns, record.inode), records.EMPTY)
    else:
        erase_inode(txn, record)


def gc_next(txn: Transaction, limit: int, now_ns: int, delay_ns: int = 0) -> list[Garbage]:
    """Up to ``limit`` files that became garbage ``delay_ns`` ago or earlier, oldest first."""
    begin, _ = keys.range_of(keys.GARBAGE)
    end = keys.of(keys.GARBAGE, max(now_ns - delay_ns, 0) + 1)
    found = []
    for key, _ in txn.range(begin, end, limit):
        record = find_record(txn, InodeId(keys.number_at(key, 1)))
        if record is not None:
            found.append(Garbage(keys.number_at(key, 0), record))
    return found


def gc_done(txn: Transaction, garbage: Garbage) -> None:
    """Forget a file whose chunks are freed. Doing it twice is fine."""
    row = keys.of(keys.GARBAGE, garbage.queued_ns, garbage.inode.inode)
    if txn.get(row) is None:
        return
    txn.clear(row)
    txn.clear(keys.of(keys.TRIM, garbage.inode.inode))
    erase_inode(txn, garbage.inode)


def add_trim(txn: Transaction, record: Inode, keep_bytes: int) -> Trim:
    """Note that ``record`` was cut to ``keep_bytes``; the trim now to be done."""
    pending = _find(txn, record.inode)
    if pending is not None:
        keep_bytes = min(keep_bytes, pending.keep_bytes)
    trim = records.TrimRecord(record.truncate_version, keep_bytes)
    txn.set(keys.of(keys.TRIM, record.inode), records.encode_trim(trim))
    return Trim(record, *trim)


def find_trim(txn: Transaction, record: Inode) -> Trim | None:
    """The trim of ``record`` that is still to be done, if any."""
    pending = _find(txn, record.inode)
    return None if pending is None else Trim(record, *pending)


def check_trimmed(txn: Transaction, inode: InodeId) -> None:
    """BUSY while a trim of ``inode`` is to be carried out.

    For answers to writers: one that hears of a cut goes on behind it, and would lose what it wrote
    to a trim that comes late.
    """
    if _find(txn, inode) is not None:
        raise Fs3Error(Code.BUSY, f"inode {inode} was cut a moment ago and is being trimmed")


def trims_next(txn: Transaction, limit: int, after: int = 0) -> list[Trim]:
    """Up to ``limit`` trims still to be done, of inodes above ``after``, in their order."""
    _, end = keys.range_of(keys.TRIM)
    found = []
    for key, value in txn.range(keys.of(keys.TRIM, after + 1), end, limit):
        record = find_record(txn, InodeId(keys.number_at(key, 0)))
        if record is not None:
            found.append(Trim(record, *records.decode_trim(value)))
    return found


def trim_done(txn: Transaction, trim: Trim) -> None:
    """Forget a trim, unless another shrink followed meanwhile."""
    pending = _find(txn, trim.inode.inode)
    if pending is not None and pending.truncate_version == trim.truncate_version:
        txn.clear(keys.of(keys.TRIM, trim.inode.inode))


def _find(txn: Transaction, inode: InodeId) -> records.TrimRecord | None:
    value = txn.get(keys.of(keys.TRIM, inode))
    return None if value is None else records.decode_trim(value)
