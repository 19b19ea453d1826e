"""``fs3-storageserver --check``: every target's store examined while no server has it.

Everything is read: records against memory, blocks against records, bytes against checksums.
Nothing is repaired, since only other replicas have good bytes; the running server does that. What
opening a store does at every start (falling back to whole versions after a power cut) it does here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from fs3.core.types import ChunkId
from fs3.errors import Fs3Error

from .chunkstore.files import BOOT_ID_FILE, Files
from .chunkstore.interface import ChunkStore
from .opening import Opened, open_target
from .settings import TargetSettings

_PAGE_CHUNKS = 256


def check_targets(
    targets: Sequence[TargetSettings],
    cluster_id: str,
    say: Callable[[str], None],
    boot_id_file: Path = BOOT_ID_FILE,
) -> bool:
    """Whether all is well; says so target by target, and every problem on a line of its own.

    Raises Fs3Error BUSY if another process has one of them, WRONG_CLUSTER or INVALID if one is
    another target's directory.
    """
    with ExitStack() as stack:
        opened: list[tuple[TargetSettings, Opened | None]] = []
        for said in targets:
            there = _has_store(said)
            found = open_target(said, cluster_id, boot_id_file) if there else None
            if found is not None:
                stack.callback(found.close)
                stack.callback(found.store.close)
            opened.append((said, found))
        return all([_check(said, found, say) for said, found in opened])


def _has_store(said: TargetSettings) -> bool:
    names = Files().listdir(said.path)
    return any(name == "records" or name.startswith("blocks.") for name in names)


def _check(said: TargetSettings, opened: Opened | None, say: Callable[[str], None]) -> bool:
    head = f"target {said.id}  {said.path}"
    if opened is None:
        say(f"{head}  " + ("empty: nothing was ever stored" if said.path.is_dir() else "MISSING"))
        return said.path.is_dir()
    if opened.store.failed:
        say(f"{head}  LOST: {opened.store.failed}")
        return False
    try:
        problems = opened.store.check()
        chunks, length_bytes = _count(opened.store)
    except Fs3Error as error:
        say(f"{head}  LOST: {error.detail}")
        return False
    verdict = f"{len(problems)} PROBLEMS" if problems else "ok"
    say(f"{head}  {chunks:,} chunks  {length_bytes:,} bytes  {verdict}")
    for problem in problems:
        say(f"  {problem}")
    return not problems


def _count(store: ChunkStore) -> tuple[int, int]:
    """Chunks and the bytes in them."""
    chunks = length_bytes = 0
    after: ChunkId | None = None
    while page := store.scan(after, _PAGE_CHUNKS):
        chunks += len(page)
        length_bytes += sum(meta.length for _, meta in page)
        after = page[-1][0]
    return chunks, length_bytes
