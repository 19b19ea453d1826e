"""``fs3 scrub``: storageservers read all they store in turn; how far they are, what they found."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fs3.errors import Code, Fs3Error

from .appearance import human_age, human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, Location, locate
from .quantities import size

if TYPE_CHECKING:
    from fs3.client.administration import Administration, ScrubStatus
    from fs3.core.types import TargetId
    from fs3.routing import Routing

TargetOption = Annotated[
    list[int] | None,
    typer.Option("--target", "-t", help="Only this target; may be repeated.  [default: all]"),
]
Call = Callable[["Administration", "Routing", "TargetId"], "ScrubStatus"]

_HELP = """Read all that is stored in turn, to find and repair bad blocks.

\b
Example:  fs3 scrub status
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="scrub")


@commands.command()
def status(
    target: TargetOption = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show how far each target is, what was bad, what was repaired.

    Exit code 1 if bad chunks wait for repair, or a target cannot be asked.

    \b
    Example:  fs3 scrub status
    """
    location = locate(directory, address, cluster_id)
    _each(location, target, lambda calls, routing, one: calls.scrub_status(routing, one))


@commands.command()
def start(
    target: TargetOption = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Begin a pass now, from the first chunk on.

    \b
    Example:  fs3 scrub start --target 101
    """
    location = locate(directory, address, cluster_id)
    _each(location, target, lambda calls, routing, one: calls.set_scrub(routing, one, start=True))


@commands.command()
def rate(
    bytes_per_s: Annotated[
        str, typer.Argument(metavar="BYTES", help="Per second and target, as 64MiB; 0: rest.")
    ],
    target: TargetOption = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Change how fast is read.

    It counts until the storageserver's next start; then its settings do.

    \b
    Example:  fs3 scrub rate 100MiB
    """
    wanted = size(bytes_per_s, "BYTES")
    location = locate(directory, address, cluster_id)
    _each(
        location,
        target,
        lambda calls, routing, one: calls.set_scrub(routing, one, bytes_per_s=wanted),
    )


def _each(location: Location, chosen: list[int] | None, call: Call) -> None:
    """Call for each target, show what they say; exit code 1 if all is not well."""
    states: list[ScrubStatus] = []
    failures: list[str] = []
    with location.administration() as calls:
        routing = calls.routing()
        by_number = {int(target): target for target in sorted(routing.targets)}
        for number in chosen or by_number:
            if number not in by_number:
                known = ", ".join(map(str, by_number))
                raise Fs3Error(Code.INVALID, f"there is no target {number}; {known} are")
            try:
                states.append(call(calls, routing, by_number[number]))
            except Fs3Error as error:
                failures.append(f"target {number}: {error}")
    show(_table(states, time.time_ns()))
    for failure in failures:
        typer.echo(f"  {failure}", err=True)
    if failures or any(state.bad_waiting for state in states):
        raise typer.Exit(1)


def _table(states: list[ScrubStatus], now_ns: int) -> Table:
    table = new_table("Scrub, per target")
    for name in ("target", "pass"):
        table.add_column(name, no_wrap=True)
    for name in ("chunks", "rate", "last pass", "bad", "repaired", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    for state in states:
        table.add_row(
            str(state.target),
            _phase(state),
            f"{state.chunks:,} of {state.chunks_total:,}",
            f"{human_bytes(state.bytes_per_s)}/s" if state.bytes_per_s else "-",
            f"{human_age((now_ns - state.finished_ns) / 1e9)} ago"
            if state.finished_ns
            else "never",
            f"{state.bad_found:,}",
            f"{state.repaired:,}",
            Text(f"{state.bad_waiting:,}", "red" if state.bad_waiting else ""),
        )
    return table


def _phase(state: ScrubStatus) -> Text:
    if state.running and not state.bytes_per_s:
        return Text("held", "yellow")
    return Text("running", "cyan") if state.running else Text("resting")
