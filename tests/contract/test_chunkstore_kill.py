"""The chunk store in a real process on real files, killed with SIGKILL."""

import signal
import subprocess
import sys

from fs3.checksum import crc32c
from fs3.core.types import chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Piece
from fs3.storageserver.chunkstore.store import DiskChunkStore

WRITER = """
import sys
from pathlib import Path
from fs3.checksum import crc32c
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.types import chunk_id
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit, StageRequest
from fs3.storageserver.chunkstore.store import DiskChunkStore

store = DiskChunkStore(Files(), Path(sys.argv[1]))
version = max([meta.version for _, meta in store.scan(None, 10)], default=0)
while True:
    version += 1
    chunk = chunk_id(1, version % 3)
    data = version.to_bytes(8, "big") * 4000
    store.stage([StageRequest(chunk, UpdateKind.REPLACE, version, 0, len(data), memoryview(data),
                              crc32c(data), 1, Tag(1, 0, version))])
    store.commit([Commit(chunk, version, 1)])
    print(version, flush=True)
"""


def test_killed_process_loses_nothing_it_has_said(tmp_path):
    said = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "target")], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            for _ in range(300):
                said = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().split(b"\n")[:-1])])
        store = DiskChunkStore(Files(), tmp_path / "target")
        try:
            assert store.check() == []
            versions = [store.meta(chunk_id(1, slot)).version for slot in range(3)]
            assert max(versions) in (said, said + 1)
            assert sorted(versions) == [max(versions) - 2, max(versions) - 1, max(versions)]
            for slot, version in enumerate(versions):
                buffer = bytearray(32_000)
                [result] = store.read([Piece(chunk_id(1, slot), 0, 32_000)], [memoryview(buffer)])
                assert (result.code, result.crc) == (Code.OK, crc32c(buffer))
                assert buffer == version.to_bytes(8, "big") * 4000
            record = store.channel(1, 0)  # killed between stage and commit it is one ahead
            assert record.sequence - record.pending == max(versions)
        finally:
            store.close()
