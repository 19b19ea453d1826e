"""Making a record file: records go in one after another, the index follows at :meth:`close`."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import TracebackType
from typing import IO

import numpy as np

from fs3.checksum import crc32c
from fs3.errors import Code, Fs3Error

from .format import (
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    Footer,
    Header,
    Kind,
    encode_footer,
    encode_header,
    encode_index,
    encode_sample,
)


class RecordWriter:
    """Writes to ``file``, from its position, which must be 0, and closes it at the end.

    A file whose writer was not closed has no footer, and is refused by readers.
    """

    def __init__(self, file: IO[bytes], header: Header | None = None) -> None:
        self.header = header or Header()
        if not 0 <= self.header.record_bytes <= RECORD_BYTES_MAX:
            raise Fs3Error(
                Code.INVALID,
                f"records of {self.header.record_bytes} bytes; 0 (each its own) to"
                f" {RECORD_BYTES_MAX} are allowed",
            )
        self._file = file
        self._lengths = array("I")
        self._crcs = array("I")
        self._data_bytes = 0
        file.write(encode_header(self.header))

    def __len__(self) -> int:
        return len(self._crcs)

    def append(self, record: bytes | memoryview) -> None:
        """Add one; Fs3Error INVALID if its length is not allowed."""
        length, fixed = len(record), self.header.record_bytes
        if (fixed and length != fixed) or length > RECORD_BYTES_MAX:
            allowed = f"{fixed} bytes are" if fixed else f"up to {RECORD_BYTES_MAX} bytes are"
            raise Fs3Error(
                Code.INVALID, f"record {len(self)} has {length} bytes; {allowed} allowed"
            )
        self._file.write(record)
        self._lengths.append(length)
        self._crcs.append(crc32c(record))
        self._data_bytes += length

    def append_sample(self, parts: Mapping[str, bytes | memoryview]) -> None:
        """Add one of named parts, to a file of the kind SAMPLE."""
        if self.header.kind is not Kind.SAMPLE:
            raise Fs3Error(Code.INVALID, f"a sample in a file of kind {self.header.kind.name}")
        self.append(encode_sample(parts))

    def close(self) -> None:
        """Write the index and the footer; idempotent."""
        if self._file.closed:
            return
        with self._file:
            lengths = np.frombuffer(self._lengths, np.uint32)
            crcs = np.frombuffer(self._crcs, np.uint32)
            index = encode_index(self.header, lengths, crcs)
            footer = Footer(
                records=len(self),
                data_bytes=self._data_bytes,
                index_offset=HEADER_BYTES + self._data_bytes,
                index_bytes=len(index),
                index_crc=crc32c(index),
            )
            self._file.write(index + encode_footer(footer))

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()  # without a footer: it is not whole
