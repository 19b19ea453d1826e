"""Exactly once, at the head: was this update applied before, or has it nothing to do?"""

from __future__ import annotations

from fs3.core.chunks import ChannelRecord, ChunkMeta, ChunkTable, UpdateKind
from fs3.core.codes import Code
from fs3.core.messages import Reply, Write
from fs3.core.types import ChunkVersion

_V0 = ChunkVersion(0)


def known_result(write: Write, table: ChunkTable) -> Reply | None:
    """The reply to give without doing anything, or None. Asked when the chunk's lane is free."""
    tag = write.tag
    known = None if tag is None else table.channel(tag.client, tag.channel)
    if tag is not None and known is not None:
        if known.sequence == tag.sequence and not _dropped(known, write):
            result = (known.version, known.length, known.checksum, "")
            return Reply(write.request, Code.OK, *result)
        if known.sequence > tag.sequence:
            detail = f"channel {tag.channel} is at sequence {known.sequence}, not {tag.sequence}"
            return Reply(write.request, Code.STALE_UPDATE, _V0, 0, 0, detail)
    meta = table.meta(write.chunk)
    absent = meta is None or not meta.version
    if write.kind is UpdateKind.REMOVE:
        # With a tag it leaves its record: a copy of it that comes late must find it done, and not
        # remove what has been made since.
        nothing = tag is None
    else:
        nothing = write.kind is UpdateKind.EXTEND and write.length == 0
    return Reply(write.request, Code.OK, _V0, 0, 0, "") if absent and nothing else None


def settle_create(write: Write, meta: ChunkMeta) -> Write:
    """What a CREATE is, now that its turn has come: a WRITE, or nothing if the chunk is there.

    Nothing leaves its record, too: a copy of it that comes late, when the chunk has been removed,
    must find it done. So the rest of the chain knows no CREATE.
    """
    if not meta.version:
        return write._replace(kind=UpdateKind.WRITE, offset=0)
    return write._replace(kind=UpdateKind.EXTEND, offset=0, length=0, checksum=0, data=None)


def _dropped(known: ChannelRecord, write: Write) -> bool:
    """The record is that of a pending version, and nobody works on it: it was refused.

    The store has not come to dropping it yet.
    """
    return known.pending and known.chunk == write.chunk
