"""A file's length by what is stored of it, for writers whose word does not count.

A writer tells how far it wrote. If the file was cut meanwhile nobody knows whether its bytes are
from before the cut or after, and a writer that died tells nothing. Then the chunks are asked.
"""

from __future__ import annotations

from fs3.clock import Clock
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FileKind, Inode

from .chunk_control import ChunkControl
from .inodes import find_record
from .kv.interface import Engine
from .sessions import Wrote, settle_length
from .truncations import Truncations

_ATTEMPTS = 8  # each lost one means that somebody cut the file in the meantime


class Lengths:
    """Any thread may call."""

    def __init__(
        self,
        engine: Engine,
        control: ChunkControl,
        truncations: Truncations,
        clock: Clock,
        wait_s: float,
    ) -> None:
        self._engine = engine
        self._control = control
        self._truncations = truncations
        self._clock = clock
        self._wait_s = wait_s

    def settle_as_written(self, inode: InodeId, mtime_ns: int = 0) -> Inode | None:
        """Let the length reach the end of the last chunk; the inode, None if it is gone."""
        for _ in range(_ATTEMPTS):
            self._truncations.finish(inode)
            record = self._engine.run(find_record, inode)
            if record is None or record.kind is not FileKind.FILE:
                return record
            length_bytes = self._control.written_length(record, self._wait_s)
            wrote = Wrote(length_bytes, record.truncate_version, mtime_ns)
            settled = self._engine.run(settle_length, inode, wrote, self._clock.wall_ns())
            if settled.truncate_version == record.truncate_version:
                return settled
        raise Fs3Error(
            Code.CONFLICT, f"inode {inode} was cut {_ATTEMPTS} times while its length was measured"
        )
