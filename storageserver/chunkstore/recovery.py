"""Opening a store: records into memory, and after a power cut the fall-back to what is whole.

Only a power cut needs more than loading: then every record newer than the durable mark is checked
against its bytes (see store.py). Pending versions are checked whatever their epoch, since a dropped
one's block may be written again while its record is still on the disk.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TypeAlias

from fs3.core.chunks import ChannelRecord
from fs3.core.types import ChunkId
from fs3.errors import Code, Fs3Error
from fs3.watermark import Watermark

from .allocator import Allocator
from .datafiles import DataFiles
from .files import FileLayer, Operation, Records
from .index import Index
from .reading import Reader
from .records import (
    CHANNEL_PREFIX,
    CHUNK_PREFIX,
    DURABLE_KEY,
    EPOCH_MAX,
    FORMAT_KEY,
    NO_CLASS,
    OPEN_KEY,
    SEGMENT_PREFIX,
    ChunkRecord,
    Version,
    channel_epoch,
    channel_key,
    chunk_key,
    decode_channel,
    decode_channel_key,
    decode_chunk,
    decode_epoch,
    decode_segment_key,
    encode_chunk,
    encode_epoch,
)
from .scanning import channel_record

WATERMARK_FILE = "synced"
_RECORDS = "records"
Loaded: TypeAlias = dict[ChunkId, ChunkRecord]
ChannelKey: TypeAlias = tuple[int, int]
Channels: TypeAlias = dict[ChannelKey, ChannelRecord]
_FORMAT_VALUE = b"fs3 chunk store 2"
_FORMAT_BEFORE = b"fs3 chunk store 1"  # without the classes that have room for a header
_VERIFY_BYTES = 1 << 20


def open_records(files: FileLayer, root: Path) -> Records:
    """The records of the store in ``root``, made if nothing is there; Fs3Error if they are lost.

    A store of the format before is taken; it becomes one of this when it has been recovered.
    """
    files.make_directory(root)
    has_data = any(name.startswith("blocks.") for name in files.listdir(root))
    records = files.open_records(root / _RECORDS, create=not has_data)
    found = records.get(FORMAT_KEY)
    if found is None and not has_data:
        records.write([(FORMAT_KEY, _FORMAT_VALUE)])
        records.sync()
        files.sync_directory(root)
    elif found not in (_FORMAT_VALUE, _FORMAT_BEFORE):
        records.close()
        raise Fs3Error(
            Code.UNSUPPORTED,
            f"chunk store {root} has format {found!r}: this release opens {_FORMAT_VALUE!r}",
        )
    return records


def check_watermark(records: Records, watermark: Watermark, file: Path) -> None:
    """Fs3Error CORRUPT if the records are behind what was on stable storage once.

    RocksDB notices a table or a manifest that is missing, but not that its log has lost its end.
    """
    durable = decode_epoch(records.get(DURABLE_KEY) or b"")
    if durable < watermark.value:
        raise Fs3Error(
            Code.CORRUPT,
            f"its records have lost their end: they know of syncs up to {durable}, and"
            f" {watermark.value} had been done. A file of RocksDB's log is gone or damaged."
            " Empty the directory to have it filled again; to use what is left as it is, remove"
            f" {file}",
        )


def recover(
    boot_id: str,
    records: Records,
    data: DataFiles,
    index: Index,
    allocator: Allocator,
    reader: Reader,
) -> int:
    """Fill the index and the allocator, make all of it durable; the epoch that now is."""
    durable = decode_epoch(records.get(DURABLE_KEY) or b"")
    opened_by = records.get(OPEN_KEY)
    loaded, channels, channel_epochs = _load(records, data)
    epochs = [record.committed.epoch for record in loaded.values()]
    epochs += [record.pending.version.epoch for record in loaded.values() if record.pending]
    epochs += [epoch for epoch in channel_epochs.values() if epoch != EPOCH_MAX]
    newest = max(epochs, default=durable)
    repairs: list[Operation] = []
    if opened_by and opened_by != boot_id.encode():
        at_risk = {key for key, epoch in channel_epochs.items() if epoch > durable}
        loaded, repairs = _fall_back(loaded, channels, at_risk, durable, data, reader)
    _fill(loaded, channels, data, index, allocator)
    if opened_by:  # not closed cleanly: nobody knows what was synced
        data.sync(data.all_classes())
    newest = max(newest, durable)
    # From here on only this release and later ones open it.
    repairs += [
        (FORMAT_KEY, _FORMAT_VALUE),
        (DURABLE_KEY, encode_epoch(newest)),
        (OPEN_KEY, boot_id.encode()),
    ]
    records.write(repairs)
    records.sync()
    return newest


def _load(records: Records, data: DataFiles) -> tuple[Loaded, Channels, dict[ChannelKey, int]]:
    """Chunks, channels, and the epochs in which the channels' records were written."""
    loaded: Loaded = {}
    channels: Channels = {}
    epochs: dict[ChannelKey, int] = {}
    for key, value in records.items(b""):
        kind = key[:1]
        try:
            if kind == CHUNK_PREFIX:
                chunk = ChunkId(key[1:])
                loaded[chunk] = decode_chunk(chunk, value)
            elif kind == SEGMENT_PREFIX:
                data.load_segment(*decode_segment_key(key), value)
            elif kind == CHANNEL_PREFIX:
                channels[decode_channel_key(key)] = decode_channel(value)
                epochs[decode_channel_key(key)] = channel_epoch(value)
        except (struct.error, ValueError, IndexError) as error:
            raise Fs3Error(Code.CORRUPT, f"the record of key {key.hex()}: {error}") from error
    return loaded, channels, epochs


def _fall_back(
    loaded: Loaded,
    channels: Channels,
    at_risk: set[ChannelKey],
    durable: int,
    data: DataFiles,
    reader: Reader,
) -> tuple[Loaded, list[Operation]]:
    """Each chunk's newest version that is whole; the records to write where it is not the last.

    ``at_risk``: channels whose record was not on stable storage.
    """
    scratch = memoryview(bytearray(_VERIFY_BYTES))

    def whole(version: Version) -> bool:
        return _in_file(version, data) and reader.verify_version(version, scratch) is None

    kept: dict[ChunkId, ChunkRecord] = {}
    repairs: list[Operation] = []
    numbers: dict[ChunkId, int] = {}  # of the version that chunks went back to; 0: removed
    for chunk, record in loaded.items():
        committed = next(
            (v for v in (record.committed, *record.undo) if v.epoch <= durable or whole(v)),
            None,
        )
        pending = record.pending
        if committed is not record.committed:
            numbers[chunk] = committed.version if committed else 0
            pending = None  # it was built on the version that is lost
        elif pending and not whole(pending.version):
            pending = None
        if committed is None or not (committed.version or pending):
            repairs.append((chunk_key(chunk), None))
            continue
        kept[chunk] = ChunkRecord(committed, pending, ())
        if kept[chunk][:2] != record[:2]:
            repairs.append((chunk_key(chunk), encode_chunk(committed, pending)))
    # An update that is undone must not look done to the client that asks for it again; one that
    # was on stable storage was done, whatever became of a later chunk of the same name.
    for key in at_risk:
        channel = channels[key]
        if channel.version > numbers.get(channel.chunk, channel.version):
            del channels[key]
            repairs.append((channel_key(*key), None))
    return kept, repairs


def _in_file(version: Version, data: DataFiles) -> bool:
    return version.size_class == NO_CLASS or version.block < data.blocks[version.size_class]


def _fill(
    loaded: Loaded,
    channels: Channels,
    data: DataFiles,
    index: Index,
    allocator: Allocator,
) -> None:
    for size_class, blocks in enumerate(data.blocks):
        allocator.rebuild(size_class, blocks)
    index.channels.update(channels)
    for chunk, (committed, pending, _) in loaded.items():
        own: set[tuple[int, int]] = set()
        for version in (committed, pending.version) if pending else (committed,):
            if version.size_class == NO_CLASS:
                continue
            _check_block(chunk, version, data, allocator, own)
            allocator.restore(version.size_class, version.block)
            own.add((version.size_class, version.block))
        index.put(chunk, committed, pending)
        if pending and pending.tag:
            index.note_pending(pending.tag, channel_record(chunk, pending, pending=True))
    allocator.settle(data.allocated_bytes)


def _check_block(
    chunk: ChunkId,
    version: Version,
    data: DataFiles,
    allocator: Allocator,
    own: set[tuple[int, int]],
) -> None:
    place = (version.size_class, version.block)
    if not _in_file(version, data):
        raise Fs3Error(
            Code.CORRUPT,
            f"chunk {chunk.hex()} lies in block {version.block} of data file"
            f" blocks.{version.size_class:02}, which has {data.blocks[version.size_class]} blocks",
        )
    if place not in own and allocator.holders(*place):
        raise Fs3Error(
            Code.CORRUPT,
            f"chunk {chunk.hex()} lies in block {version.block} of data file"
            f" blocks.{version.size_class:02}, where another chunk lies, too",
        )
