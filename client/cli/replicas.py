"""``fs3 chunks`` and ``fs3 verify``: what each replica really holds."""

from __future__ import annotations

import stat as stat_bits
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes, new_table, show
from .files import PathArgument, remote_path
from .location import AddressOption, ClusterIdOption, DirOption, locate

if TYPE_CHECKING:
    from fs3.client.administration import Administration, ChunkState
    from fs3.core.types import Chain
    from fs3.routing import Routing

_ASK_AGAIN_S = 0.5


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(chunks)
    app.command()(verify)


def chunks(
    path: PathArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show the chunks of a file: chain, replicas, versions, checksums.

    \b
    Example:  fs3 chunks /models/model.bin
    """
    from fs3.core.types import chunk_slot

    location = locate(directory, address, cluster_id)
    with location.client() as client:
        what = client.stat(remote_path(path))
    if not stat_bits.S_ISREG(what.st_mode):
        raise Fs3Error(Code.INVALID, f"{path} is not a file: only those have chunks")
    inode = what.st_ino
    table = new_table(f"Chunks of {path} (inode {inode})")
    for name in ("chunk", "chain", "length", "replica: version checksum"):
        table.add_column(name, no_wrap=True)
    rows: list[tuple[int, str, str, Text]] = []
    with location.administration() as calls:
        routing = calls.routing()
        for chain in routing.chains.values():
            for found in _side_by_side(calls, routing, chain, owner=inode):
                first = next(iter(found.values()))
                slot = chunk_slot(first.chunk)
                length = human_bytes(first.length_bytes)
                rows.append((slot, str(chain.chain), length, _copies(found)))
    for slot, chain_id, length, copies in sorted(rows, key=lambda row: row[0]):
        table.add_row(str(slot), chain_id, length, copies)
    show(table)


def _side_by_side(
    calls: Administration, routing: Routing, chain: Chain, owner: int | None = None
) -> Iterator[dict[int, ChunkState]]:
    from fs3.client.comparison import side_by_side

    scans = {int(r.target): calls.scan(routing, r.target, owner) for r in chain.serving}
    return side_by_side(scans)


def _copies(found: dict[int, ChunkState]) -> Text:
    lines = [f"{t}: v{c.version} {c.checksum:08x}" for t, c in found.items()]
    same = len({(c.version, c.checksum, c.length_bytes) for c in found.values()}) == 1
    return Text("\n".join(lines), "" if same else "red")


def verify(
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    patience_s: Annotated[
        float, typer.Option("--patience", help="Seconds to give writes that are under way.")
    ] = 5.0,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to give replicas that do not serve yet.")
    ] = 0.0,
) -> None:
    """Compare the replicas of every chunk.

    Versions, lengths and checksums must be equal.
    Exit code 1 if a chunk differs, or if a replica cannot be asked or does not serve.

    \b
    Examples:
      fs3 verify
      fs3 verify --wait 60      behind a crash: when all replicas are up to date again
    """
    from fs3.client.comparison import compare_chain

    location = locate(directory, address, cluster_id)
    deadline_s = time.monotonic() + wait_s
    bad = 0
    with location.administration() as calls:
        routing = calls.routing()
        if not routing.chains:
            raise Fs3Error(Code.NOT_READY, "there are no chains to compare")
        for chain in sorted(routing.chains.values(), key=lambda c: c.chain):
            result = compare_chain(calls, routing, chain, patience_s)
            while result.incomplete and time.monotonic() < deadline_s:
                time.sleep(_ASK_AGAIN_S)
                routing = calls.routing()
                result = compare_chain(
                    calls, routing, routing.chains.get(chain.chain, chain), patience_s
                )
            replicas = ", ".join(str(t) for t in result.compared)
            typer.echo(
                f"chain {chain.chain}: {result.chunks:,} chunks"
                f" ({human_bytes(result.data_bytes)}) on targets {replicas}:"
                f" {result.verdict}"
            )
            for problem in result.problems:
                typer.echo(f"  {problem}", err=True)
            bad += len(result.problems)
    if bad:
        raise typer.Exit(1)
    typer.echo("every replica of every chunk is the same")
