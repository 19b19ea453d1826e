"""``fs3 bench loader``."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, locate
from .quantities import counts, size, sizes

if TYPE_CHECKING:
    from fs3.client.bench.loader import Line


def loader(
    samples: Annotated[str, typer.Option(help="Bytes of a sample.")] = "4KiB,16KiB,64KiB,256KiB",
    workers: Annotated[str, typer.Option(help="Processes that load.  0: the caller.")] = "0,4",
    records: Annotated[int, typer.Option(min=1, help="Records to choose from.")] = 1_000_000,
    record: Annotated[str, typer.Option(help="Bytes of a record; samples are many.")] = "1KiB",
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    seconds: Annotated[float, typer.Option(help="For each loader in one round.")] = 1.0,
    scratch: Annotated[
        Path | None, typer.Option(help="Where the local copy goes.  [default: a temporary folder]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result there, too.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw bars into an SVG file.")
    ] = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Measure PyTorch's DataLoader, on fs3 and on a local directory.

    It takes random samples.
    Both have the same record file, and warm caches; both copies are removed afterwards. Samples
    that cannot be read because servers are away are counted as missed. memcpy and
    a bare loopback TCP connection are measured in the same run. Needs PyTorch.

    \b
    Examples:
      fs3 bench loader --json result.json --plot result.svg
      fs3 bench loader --samples 64KiB --workers 4
    """
    try:
        from fs3.client.bench.loader import Plan, as_json, as_svg, make_records, run
    except ModuleNotFoundError as error:
        what = f"{error.name} is not installed: pip install 'fs3[torch]'"
        raise Fs3Error(Code.INVALID, what) from error
    from fs3.client.records.storage import locate as place_of

    location = locate(directory, address, cluster_id)
    addresses = ",".join(location.addresses)
    plan = Plan(
        sample_bytes=sizes(samples, "--samples"),
        workers=counts(workers, "--workers", minimum=0),
        records=records,
        record_bytes=size(record, "--record"),
        batch=batch,
        rounds=rounds,
        seconds=seconds,
    )
    plan.check()
    folder = f"/fs3-bench-{secrets.token_hex(4)}"
    with (
        tempfile.TemporaryDirectory(prefix="fs3-bench-", dir=scratch) as made,
        location.client() as client,
    ):
        local = f"{made}/records"
        try:
            storage, path = place_of(f"fs3://{folder}/records", addresses, location.cluster_id)
            make_records(plan, [place_of(local), (storage, path)])
            lines = run(plan, f"fs3://{path}", local, addresses, location.cluster_id, _progress)
        finally:
            if client.exists(folder):
                client.rmtree(folder)
    title = f"fs3 bench loader: medians of {rounds}, {os.cpu_count()} CPUs"
    _show(lines, title)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(lines, plan), indent=1) + "\n")
    if plot is not None:
        plot.write_text(as_svg(lines, title))


def _columns(line: Line) -> tuple[str, ...]:
    loads = line.who in ("fs3", "local")
    return (
        human_bytes(line.sample_bytes),
        line.who,
        str(line.workers) if loads else "",
        f"{line.samples_per_s:,.0f}",
        f"{line.gb_per_s:.2f}",
        f"{line.of_local:.2f}" if line.who == "fs3" else "",
        f"{line.missed:,}" if line.missed else "",
    )


def _progress(line: Line) -> None:
    typer.echo("  ".join(f"{text:>9}" for text in _columns(line)), err=True)


def _show(lines: list[Line], title: str) -> None:
    table = new_table(title)
    for column in ("sample", "who", "workers", "samples/s", "GB/s", "of local", "missed"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*_columns(line))
    show(table)
