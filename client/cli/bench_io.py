"""``fs3 bench io``."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .appearance import human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, Location, locate
from .quantities import choices, counts, size
from .quantities import sizes as wanted_sizes

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from fs3.client.bench.io import Line, Place, Report


def io(
    sizes: Annotated[str, typer.Option(help="Bytes of an I/O.")] = "4KiB,64KiB,1MiB,4MiB",
    depths: Annotated[str, typer.Option(help="I/Os under way at once.")] = "1,8,64",
    operations: Annotated[str, typer.Option(help="read, write.")] = "read,write",
    fronts: Annotated[
        str,
        typer.Option(help="native: one at a time; batch; ring; fuse: a mount, with O_DIRECT."),
    ] = "native,batch,ring,fuse",
    transports: Annotated[
        str, typer.Option(help="Those that lead to every node are measured.")
    ] = "tcp,local,rdma",
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    seconds: Annotated[float, typer.Option(help="For each in one round.")] = 0.1,
    file_size: Annotated[str, typer.Option(help="Of the file to read and the one to write.")] = (
        "128MiB"
    ),
    own: Annotated[
        bool, typer.Option("--own", help="Start a cluster for it, and remove it afterwards.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option(help="Where local files go.  [default: a temporary directory]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result there, too.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it into an SVG file.")
    ] = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Measure reads and writes of one file, by every way there is.

    At random offsets, by every front and transport.
    Limits are measured in the same run, turn by turn: memcpy, a bare loopback TCP connection, bare
    preadv and pwritev of a local file, a mount with nothing behind it. Caches are warm.

    \b
    Examples:
      fs3 bench io --json result.json --plot result.svg
      fs3 bench io --own --sizes 1MiB --depths 1,8 --fronts ring --transports tcp
    """
    from fs3.client.bench.io import FRONTS, OPERATIONS, Plan, as_json, run, scratch_check
    from fs3.client.bench.io_plot import as_svg

    plan = Plan(
        sizes=wanted_sizes(sizes, "--sizes"),
        depths=counts(depths, "--depths"),
        operations=choices(operations, "--operations", OPERATIONS),
        fronts=choices(fronts, "--fronts", FRONTS),
        transports=transports.split(","),
        rounds=rounds,
        seconds=seconds,
        file_bytes=size(file_size, "--file-size"),
    )
    with tempfile.TemporaryDirectory(prefix="fs3-bench-", dir=scratch) as made:
        scratch_check(Path(made), plan)
        with _cluster(own, Path(made), directory, address, cluster_id) as location:
            report = run(_place(location, Path(made)), plan, _progress)
    title = f"fs3 bench io: medians of {rounds}, {os.cpu_count()} CPUs"
    _show(report, title)
    if json_file is not None:
        about = {"bench": "io", "cpus": os.cpu_count(), "system": platform.platform()}
        json_file.write_text(json.dumps(as_json(report, about), indent=1) + "\n")
    if plot is not None:
        plot.write_text(as_svg(report.lines, title))


@contextmanager
def _cluster(
    own: bool, made: Path, directory: Path | None, address: str | None, cluster_id: str
) -> Iterator[Location]:
    if not own:
        yield locate(directory, address, cluster_id)
        return
    from fs3.client.cluster_directory import Shape
    from fs3.client.local_cluster import LocalCluster

    local = LocalCluster(made / "cluster")
    try:
        local.up(Shape())
        yield locate(made / "cluster", None, cluster_id)
    finally:
        local.down()


def _place(location: Location, scratch: Path) -> Place:
    from fs3.client.bench.io import Place

    addresses = ",".join(location.addresses)
    arguments = ["--address", addresses, "--cluster-id", location.cluster_id]
    return Place(connect=location.client, mount_arguments=arguments, scratch=scratch)


def _progress(line: Line) -> None:
    typer.echo("  ".join(f"{text:>9}" for text in _columns(line)), err=True)


def _columns(line: Line) -> Sequence[str]:
    return (
        line.operation,
        human_bytes(line.size),
        str(line.depth),
        line.who,
        f"{line.gb_per_s:.3f}",
        f"{line.ios_per_s:,.0f}",
        f"{line.p50_us:,.0f}",
        f"{line.ratio:.2f}" if line.limit else "",
        line.limit,
    )


def _show(report: Report, title: str) -> None:
    table = new_table(title)
    for column in ("", "size", "depth", "who", "GB/s", "I/Os/s", "p50 us", "of", "limit"):
        side: JustifyMethod = "left" if column in ("", "who", "limit") else "right"
        table.add_column(column, justify=side, no_wrap=True)
    before = None
    for line in report.lines:
        cell = (line.operation, line.size, line.depth)
        if before not in (None, cell):
            table.add_section()
        before = cell
        table.add_row(*_columns(line))
    show(table)
    for note in report.notes:
        typer.echo(f"not measured: {note}")
