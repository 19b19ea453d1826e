"""Many ranges of many files in one go: a few requests per storageserver, whatever their number.

The ranges are cut into pieces, column by column in numpy; per piece Python makes a memoryview and a
checksum and nothing else. Paths are resolved in pipelined calls; files that are open are not asked
for at all.

A path's file is not opened: no session keeps it. So when a piece turns out to be a hole, the inode
is asked for once more: a file that was removed meanwhile is an error, not zeros.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.compiled import plain_lengths
from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import Credentials, FileKind, Inode

from .context import ClientContext, Handle
from .data import Items
from .file import File
from .open_inodes import OpenInode
from .paths import Path, plain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

ReadRequest: TypeAlias = "tuple[Path | File, int, int | WriteableBuffer]"
WriteRequest: TypeAlias = "tuple[Path | File, int, ReadableBuffer]"

Column = NDArray[np.int64]
_CHUNK_ID = np.dtype([("owner", ">u8"), ("slot_high", ">u8"), ("slot", ">u8")])
_READ_BIT, _WRITE_BIT = 4, 2
_NOTHING = memoryview(b"")


class Ranges(NamedTuple):
    """Ranges of files, as columns: which file (an index into ``inodes``), where, how long."""

    inodes: Sequence[Inode]
    files: Column
    offsets: Column
    lengths: Column


def pieces_of(ranges: Ranges) -> tuple[Items, Column, Column]:
    """The pieces of all ranges, in order; of which range each is, and where in it it begins."""
    inodes, file = ranges.inodes, ranges.files
    layouts = [inode.layout for inode in inodes]
    sizes = np.array([layout.chunk_bytes for layout in layouts], np.int64)
    size = sizes[file]
    index = ranges.offsets // size
    starts, ends = ranges.offsets, ranges.offsets + ranges.lengths
    borders = (index + 1) * size
    if bool(ranges.lengths.all()) and bool((ends <= borders).all()):  # the common case
        of_range, begins = np.arange(len(file)), np.zeros(len(file), np.int64)
        stops = ends
    else:
        counts = np.where(ranges.lengths > 0, (ends - 1) // size + 1 - index, 0)
        of_range = np.repeat(np.arange(len(file)), counts)
        nth = np.arange(len(of_range)) - np.repeat(np.cumsum(counts) - counts, counts)
        file, index, size = file[of_range], index[of_range] + nth, size[of_range]
        starts = np.maximum(ranges.offsets[of_range], index * size)
        stops = np.minimum(ends[of_range], (index + 1) * size)
        begins = starts - ranges.offsets[of_range]

    items = np.zeros(len(of_range), dataplane.READ_ITEM)
    ids = np.zeros(len(of_range), _CHUNK_ID)
    ids["owner"] = np.array([i.inode for i in inodes], np.uint64)[file]
    ids["slot"] = index
    items["chunk"] = ids.view("V24")
    items["chain"] = _chains_of(layouts, file, index)
    items["offset"] = starts - index * size
    items["length"] = stops - starts
    return items, of_range, begins


def _chains_of(layouts: Sequence[Layout], file: Column, index: Column) -> NDArray[np.uint32]:
    """Of the chunk of this index of each file."""
    lists = [layout.chains for layout in layouts]
    widths = np.array(list(map(len, lists)), np.int64)
    chains = np.frombuffer(array("I", chain.from_iterable(lists)), np.uint32)
    found: NDArray[np.uint32] = chains[(np.cumsum(widths) - widths)[file] + index % widths[file]]
    return found


def read_batch(context: ClientContext, requests: Iterable[ReadRequest]) -> list[memoryview]:
    """See :meth:`fs3.client.api.Client.read_batch`."""
    asked = list(requests)
    if not asked:
        return []
    keys, starts, wanted = zip(*asked, strict=True)
    files, paths, opened = _distinct(keys)
    held = [inode for file in opened if (inode := file.opened) is not None]
    if len(held) < len(opened):
        raise ValueError("I/O operation on closed file")
    dirty = [place for place, inode in enumerate(held) if inode.dirty]
    inodes = [inode.view() for inode in held] if dirty else [inode.said for inode in held]
    if paths:
        inodes += _resolve(context, paths, _READ_BIT)
    offsets = np.array(starts, np.int64)
    if offsets.min() < 0:
        raise Fs3Error(Code.INVALID, f"offset {int(offsets.min())} is not allowed: 0 or more is")
    ends = np.array([i.length_bytes for i in inodes], np.int64)[files]
    lengths, buffers = _buffers(wanted, ends - offsets)
    for place in dirty:
        _send_gathered(held[place], offsets[files == place], lengths[files == place])
    items, of_range, begins = pieces_of(Ranges(inodes, files, offsets, lengths))
    if len(items):
        views = views_of(buffers, items, of_range, begins)
        found = context.data.read_pieces(items, views)
        holes = found < items["length"]
        if paths and holes.any():
            suspects = np.unique(files[of_range[holes]])
            _check_alive(context, [inodes[i] for i in suspects.tolist() if i >= len(opened)])
    return buffers


def write_batch(context: ClientContext, requests: Iterable[WriteRequest], *, sync: bool) -> None:
    """See :meth:`fs3.client.api.Client.write_batch`."""
    asked = list(requests)
    if not asked:
        return
    files, paths, opened = _distinct([request[0] for request in asked])
    for file in opened:
        if not file.writable():
            raise Fs3Error(Code.INVALID, f"{file.name}: not opened for writing")
    handles = [f.handle for f in opened]
    wanted = [(i.inode, context.new_session()) for i in _resolve(context, paths, _WRITE_BIT)]
    made = _open_all(context, wanted)
    try:
        _write(context, [*handles, *made], files, asked, sync=sync)
    finally:
        context.drop_many(made)
    for handle in handles:
        handle.opened.flush(handle.session)


def _open_all(context: ClientContext, wanted: Sequence[tuple[InodeId, int]]) -> list[Handle]:
    """All, or none: inode and session each, for writing."""
    try:
        inodes = context.metadata.open_many(wanted)
    except BaseException:
        context.abandon(wanted)
        raise
    return [
        context.hold(inode, session, writer=True)
        for inode, (_, session) in zip(inodes, wanted, strict=True)
    ]


def _write(
    context: ClientContext,
    handles: Sequence[Handle],
    files: Column,
    asked: Sequence[WriteRequest],
    *,
    sync: bool,
) -> None:
    offsets = np.array([request[1] for request in asked], np.int64)
    if (offsets < 0).any():
        raise Fs3Error(Code.INVALID, f"offset {int(offsets.min())} is not allowed: 0 or more is")
    buffers = [memoryview(request[2]).cast("B") for request in asked]
    lengths = np.array([len(buffer) for buffer in buffers], np.int64)
    inodes = [handle.opened.view() for handle in handles]
    items, of_range, begins = pieces_of(Ranges(inodes, files, offsets, lengths))
    versions = [handle.opened.trimmed_version for handle in handles]
    for handle in handles:
        handle.opened.send_gathered()
    if len(items):
        views = views_of(buffers, items, of_range, begins)
        context.data.write_pieces(items, views, sync=sync)
    for place, handle in enumerate(handles):
        mine = files == place
        written = lengths[mine] > 0
        if written.any():
            end = int((offsets[mine] + lengths[mine])[written].max())
            chunks = _indices(items, inodes[place].inode) if not sync else set()
            handle.opened.wrote_elsewhere(end, chunks, versions[place])


def chunk_numbers(items: Items) -> Column:
    """The place in its file of each item's chunk."""
    numbers = np.ascontiguousarray(items["chunk"]).view(_CHUNK_ID)["slot"]
    return numbers.astype(np.int64)


def _indices(items: Items, inode: InodeId) -> set[int]:
    ids = np.ascontiguousarray(items["chunk"]).view(_CHUNK_ID)
    return set(ids["slot"][ids["owner"] == inode].tolist())


def _distinct(keys: Sequence[Path | File]) -> tuple[Column, list[str], list[File]]:
    """Each different file once, the open ones first; per request, which of them it means."""
    found = dict.fromkeys(keys)
    opened = [key for key in found if isinstance(key, File)]
    paths: list[Any] = []
    if len(opened) < len(found):
        paths = [key for key in found if not isinstance(key, File)]
    places = dict(zip([*opened, *paths], count(), strict=False))
    files = np.array(list(map(places.__getitem__, keys)), np.int64)
    return files, [plain(path) for path in paths], opened


def _resolve(context: ClientContext, paths: list[str], bit: int) -> list[Inode]:
    inodes = []
    for path, resolved in zip(paths, context.metadata.resolve_many(paths), strict=True):
        inode = resolved.inode
        if inode is None:
            raise Fs3Error(Code.NOT_FOUND, f"{path}: no such file or directory")
        if inode.kind is not FileKind.FILE:
            code = Code.IS_DIRECTORY if inode.kind is FileKind.DIRECTORY else Code.INVALID
            raise Fs3Error(code, f"{path}: a {inode.kind.name.lower()}, not a regular file")
        if not _may(inode, context.metadata.who, bit):
            raise Fs3Error(
                Code.ACCESS, f"{path}: permissions {inode.permissions:o} do not allow it"
            )
        opened = context.files.find(inode.inode)
        if opened is not None:
            opened.settle()
            inode = opened.view()
        inodes.append(inode)
    return inodes


def _may(inode: Inode, who: Credentials, bit: int) -> bool:
    if who.uid == 0:
        return True
    if who.uid == inode.uid:
        return bool(inode.permissions & bit << 6)
    if inode.gid == who.gid or inode.gid in who.gids:
        return bool(inode.permissions & bit << 3)
    return bool(inode.permissions & bit)


def _check_alive(context: ClientContext, inodes: Sequence[Inode]) -> None:
    """A hole in a file that was removed meanwhile is no hole."""
    ids = [inode.inode for inode in inodes]
    for inode, now in zip(inodes, context.metadata.getattr_many(ids), strict=True):
        if now is None or not now.links:
            raise Fs3Error(Code.NOT_FOUND, f"inode {inode.inode} was removed while it was read")


def _send_gathered(inode: OpenInode, offsets: Column, lengths: Column) -> None:
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        inode.prepare_read(offset, length)


def _buffers(wanted: tuple[Any, ...], rest: Column) -> tuple[Column, list[memoryview]]:
    """A buffer per request: the caller's, or a slice of one fresh allocation.

    ``rest``: how far each file goes on behind the offset asked for; nothing is longer.
    """
    rest = np.maximum(rest, 0)
    if (found_lengths := plain_lengths(wanted)) is not None:
        lengths = np.frombuffer(found_lengths, np.int64)
        if bool((lengths <= rest).all()):
            return lengths, list(wanted)
    if not any([isinstance(want, int) for want in wanted]):
        found = [
            _writable(at, want, room)
            for at, (want, room) in enumerate(zip(wanted, rest.tolist(), strict=True))
        ]
        return np.array(list(map(len, found)), np.int64), found
    fresh = np.array([want if isinstance(want, int) else 0 for want in wanted], np.int64)
    if fresh.min() < 0:
        raise Fs3Error(Code.INVALID, f"length {fresh.min()} is not allowed: 0 or more is")
    ends = np.cumsum(np.minimum(fresh, rest)).tolist()
    if ends[-1]:
        memory = np.empty(ends[-1], np.uint8).data
        buffers = [memory[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    else:
        buffers = [_NOTHING] * len(ends)
    for position, (want, room) in enumerate(zip(wanted, rest.tolist(), strict=True)):
        if not isinstance(want, int):
            buffers[position] = _writable(position, want, room)
    return np.array(list(map(len, buffers)), np.int64), buffers


def _writable(position: int, want: WriteableBuffer, room: int) -> memoryview:
    """The caller's buffer, cut at what there is to be read."""
    buffer = memoryview(want)
    if buffer.format != "B" or buffer.ndim != 1:
        buffer = buffer.cast("B")
    if buffer.readonly:
        raise Fs3Error(Code.INVALID, f"buffer {position} is read-only")
    return buffer if len(buffer) <= room else buffer[:room]


def views_of(
    buffers: Sequence[memoryview], items: Items, of_range: Column, begins: Column
) -> Sequence[memoryview]:
    """The part of its range's buffer that each piece fills."""
    if len(items) == len(buffers) and bool((of_range == np.arange(len(items))).all()):
        return buffers
    ends = begins + items["length"]
    return [
        buffers[i][begin:end]
        for i, begin, end in zip(of_range.tolist(), begins.tolist(), ends.tolist(), strict=True)
    ]
