"""What a record file is made from: lines, pieces, files, and samples in directories and tars.

A *sample* is all files whose names agree up to the first dot of the last part: ``cat/1.jpg`` and
``cat/1.json`` are the parts ``jpg`` and ``json`` of the sample ``cat/1``, whose name is its part
``__key__``. In a tar (a WebDataset shard) they must stand side by side.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import groupby

from fs3.errors import Code, Fs3Error

from .format import Header, Kind, encode_sample
from .storage import Storage
from .writer import RecordWriter

KEY = "__key__"
_READ_BYTES = 64 << 20  # of small files, in one batch
_TARS = (".tar", ".tar.gz", ".tgz")
_LINES = (".jsonl", ".ndjson", ".txt", ".csv", ".tsv")


class Form(StrEnum):
    """What becomes one record."""

    SAMPLES = "samples"  # files of one name, in a directory or a tar
    LINES = "lines"  # a line, without its end
    FILES = "files"  # a file
    PIECES = "pieces"  # so many bytes of a file


def form_of(storage: Storage, path: str, record_bytes: int) -> Form:
    """The form that a source's name suggests; Fs3Error INVALID if none."""
    if record_bytes:
        return Form.PIECES
    if storage.isdir(path) or path.endswith(_TARS):
        return Form.SAMPLES
    if path.endswith(_LINES):
        return Form.LINES
    raise Fs3Error(
        Code.INVALID, f"{path}: what is a record of it? one of {', '.join(Form)} is to be named"
    )


def header_of(form: Form, record_bytes: int) -> Header:
    """The header of a file made of such sources."""
    if (form is Form.PIECES) != bool(record_bytes):
        raise Fs3Error(
            Code.INVALID,
            f"{record_bytes} bytes per record, and {form}: a length is for pieces, which need one",
        )
    kind = Kind.SAMPLE if form is Form.SAMPLES else Kind.OPAQUE
    return Header(kind=kind, record_bytes=record_bytes)


def pack(writer: RecordWriter, form: Form, storage: Storage, path: str) -> None:
    """Append all records of one source."""
    for record in records_of(form, storage, path, writer.header.record_bytes):
        writer.append(record)


def records_of(form: Form, storage: Storage, path: str, record_bytes: int) -> Iterator[bytes]:
    """All records of one source. Fs3Error INVALID if pieces leave a rest."""
    match form:
        case Form.SAMPLES:
            samples = folder_samples if storage.isdir(path) else tar_samples
            yield from (encode_sample(parts) for parts in samples(storage, path))
        case Form.LINES:
            with storage.open(path) as file:
                yield from (line.rstrip(b"\r\n") for line in file)
        case Form.FILES:
            paths = storage.files(path) if storage.isdir(path) else [(path, storage.size(path))]
            yield from (content for _, content in contents(storage, paths))
        case Form.PIECES:
            with storage.open(path) as file:
                while piece := file.read(record_bytes):
                    if len(piece) < record_bytes:
                        raise Fs3Error(
                            Code.INVALID,
                            f"{path}: {len(piece)} bytes are left; {record_bytes} make a record",
                        )
                    yield piece


def split_name(path: str) -> tuple[str, str]:
    """The name of the sample that a file belongs to, and of the part that it is."""
    folder, name = posixpath.split(path)
    stem, _, part = name.partition(".")
    return posixpath.join(folder, stem), part or "data"


def contents(storage: Storage, files: Iterable[tuple[str, int]]) -> Iterator[tuple[str, bytes]]:
    """The whole content of every file, read in batches of bounded size."""
    batch: list[tuple[str, int]] = []
    total = 0
    for path, size in files:
        if batch and total + size > _READ_BYTES:
            yield from _read_whole(storage, batch)
            batch, total = [], 0
        batch.append((path, size))
        total += size
    yield from _read_whole(storage, batch)


def _read_whole(storage: Storage, files: list[tuple[str, int]]) -> Iterator[tuple[str, bytes]]:
    buffers = [bytearray(size) for _, size in files]
    ranges = zip(files, buffers, strict=True)
    storage.read([(path, 0, memoryview(buffer)) for (path, _), buffer in ranges])
    for (path, _), buffer in zip(files, buffers, strict=True):
        yield path, bytes(buffer)


def folder_samples(storage: Storage, folder: str) -> Iterator[dict[str, bytes]]:
    """The samples of a directory, in the order of their names, which are relative to it."""
    files = sorted(storage.files(folder), key=lambda file: split_name(file[0]))
    named = ((posixpath.relpath(p, folder), c) for p, c in contents(storage, files))
    yield from _grouped(named)


def tar_samples(storage: Storage, path: str) -> Iterator[dict[str, bytes]]:
    """The samples of a tar, as they stand in it."""
    with storage.open(path) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        members = (
            (member.name, taken.read())
            for member in tar
            if member.isfile() and (taken := tar.extractfile(member)) is not None
        )
        yield from _grouped(members)


def _grouped(files: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    for key, group in groupby(files, key=lambda file: split_name(file[0])[0]):
        parts = {KEY: key.encode()}
        for name, content in group:
            part = split_name(name)[1]
            if part in parts:
                raise Fs3Error(Code.INVALID, f"{name}: sample {key} has such a part already")
            parts[part] = content
        yield parts


def key_of(parts: Mapping[str, bytes | memoryview]) -> str:
    """The name of a sample; "" if it has none."""
    return bytes(parts.get(KEY, b"")).decode()
