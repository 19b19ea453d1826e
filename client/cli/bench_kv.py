"""``fs3 bench kv``."""

from __future__ import annotations

import json
import os
import platform
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, Location, locate
from .quantities import choices, counts, number, size

if TYPE_CHECKING:
    from fs3.client.bench.kv import Plan
    from fs3.client.bench.measure import Line

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result there, too.")
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw bars into an SVG file.")
]


def kv(
    sizes: Annotated[
        str,
        typer.Option(
            help="Value sizes; mla: a page of 64 tokens of DeepSeek-V3 (4.5 MB), layer: one layer"
            " of it."
        ),
    ] = "64KiB,1MiB,4MiB,mla,layer",
    batches: Annotated[str, typer.Option(help="Keys in a call.")] = "1,32,128",
    replicas: Annotated[
        int, typer.Option(min=1, callback=number, help="Copies of every value.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    transports: Annotated[str, typer.Option(help="Each is measured alone.")] = "tcp,local",
    beside: Annotated[
        str, typer.Option(help="`redis`: start one and do the same with it.", show_default=False)
    ] = "",
    trace: Annotated[
        Path | None,
        typer.Option(help="Replay this trace of requests instead (JSON lines with hash_ids)."),
    ] = None,
    page: Annotated[str, typer.Option(help="With --trace: bytes of a page.")] = "64KiB",
    requests: Annotated[
        int, typer.Option(min=0, help="With --trace: at most so many.  0: all.")
    ] = 0,
    capacity: Annotated[str, typer.Option(help="Of the namespace.  0: what the disks have.")] = "0",
    json_file: JsonOption = None,
    plot: PlotOption = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Measure the KV cache, in a namespace of its own.

    The namespace is dropped afterwards.
    memcpy and a bare loopback TCP connection are measured in the same run: what is possible here.
    "memcpy" copies one batch over and over, which may stay in the processor's caches, "memcpy cold"
    as many different bytes as the gets read.
    Every byte that a get brings is compared. Values that a storageserver took with it are counted
    as missed, and the bench goes on.

    \b
    Examples:
      fs3 bench kv --beside redis --json result.json
      fs3 bench kv --trace conversation_trace.jsonl --page 64KiB --capacity 1GiB
    """
    from fs3.client.bench.kv import SIZES, Plan
    from fs3.client.kv_administration import NamespaceSettings, create_namespace, drop_namespace
    from fs3.client.links import TRANSPORTS

    if beside not in ("", "redis"):
        raise Fs3Error(Code.INVALID, f"--beside {beside!r}: redis is allowed")
    plan = Plan(
        sizes=[SIZES.get(text) or size(text, "--sizes") for text in sizes.split(",")],
        batches=counts(batches, "--batches"),
        rounds=rounds,
        transports=choices(transports, "--transports", [one.name for one in TRANSPORTS]),
        beside_redis=beside == "redis",
    )
    page_bytes, capacity_bytes = size(page, "--page"), size(capacity, "--capacity")
    location = locate(directory, address, cluster_id)
    name = f"bench-{secrets.token_hex(4)}"
    with location.administration() as calls:
        settings = NamespaceSettings(replicas=replicas, capacity_bytes=capacity_bytes)
        create_namespace(calls.manager, name, settings)
        try:
            if trace is not None:
                _replay(location, name, trace, page_bytes, requests, json_file)
            else:
                _measure(location, name, plan, json_file, plot)
        finally:
            drop_namespace(calls.manager, name)


def _measure(
    location: Location, name: str, plan: Plan, json_file: Path | None, plot: Path | None
) -> None:
    from fs3.client.bench.kv import run
    from fs3.client.bench.measure import as_json, as_svg
    from fs3.client.kvcache import KVCache

    with location.client() as client, KVCache(client, name, deadline_s=plan.deadline_s) as cache:
        lines = run(cache, plan, lambda line: typer.echo(_row(line), err=True))
    _show(lines)
    if json_file is not None:
        about = {"bench": "kv", "cpus": os.cpu_count(), "system": platform.platform()}
        json_file.write_text(json.dumps(as_json(lines, about), indent=1) + "\n")
    if plot is not None:
        plot.write_text(as_svg(lines, f"fs3 bench kv, {os.cpu_count()} CPUs"))


def _row(line: Line) -> str:
    rate = f"{line.gb_per_s:6.2f} GB/s" if line.gb_per_s else f"{line.keys_per_s:9,.0f} keys/s"
    what = f"{line.operation:7} {human_bytes(line.value_bytes):>9} x {line.batch:<4}"
    missed = f"  {line.misses:,} missed" if line.misses else ""
    return f"{what} {line.who:11} {rate}  p50 {line.p50_us:9.0f} us{missed}"


def _show(lines: list[Line]) -> None:
    table = new_table("fs3 bench kv: medians")
    for column in (
        "operation",
        "value",
        "batch",
        "who",
        "GB/s",
        "keys/s",
        "p50 of a call",
        "missed",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.operation,
            human_bytes(line.value_bytes),
            str(line.batch),
            line.who,
            f"{line.gb_per_s:.2f}" if line.gb_per_s else "",
            f"{line.keys_per_s:,.0f}",
            f"{line.p50_us:,.0f} us",
            f"{line.misses:,}" if line.misses else "",
        )
    show(table)


def _replay(
    location: Location,
    name: str,
    trace: Path,
    page_bytes: int,
    requests_max: int,
    json_file: Path | None,
) -> None:
    from dataclasses import asdict

    from fs3.client.bench.kv_trace import read_trace, replay
    from fs3.client.kvcache import KVCache

    with location.client() as client, KVCache(client, name, deadline_s=30) as cache:
        found = replay(cache, read_trace(trace), page_bytes, requests_max)
    typer.echo(
        f"{found.requests} requests, {found.pages} pages of {human_bytes(page_bytes)} in"
        f" {found.seconds:.1f} s: {100 * found.hit_ratio:.1f} % of the pages were there\n"
        f"the pages before the first token: p50 {found.first_token_p50_ms:.1f} ms,"
        f" p99 {found.first_token_p99_ms:.1f} ms"
    )
    if json_file is not None:
        fields = {**asdict(found), "hit_ratio": found.hit_ratio}
        json_file.write_text(json.dumps(fields, indent=1) + "\n")
