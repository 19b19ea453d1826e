"""``fs3 resync``: how fast targets that come back are brought up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes
from .location import AddressOption, ClusterIdOption, DirOption, locate
from .quantities import size

if TYPE_CHECKING:
    from fs3.core.types import TargetId

_HELP = """Steer how targets that come back are brought up to date.

\b
`fs3 status` shows how far they are.
Example:  fs3 resync rate 200MiB
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="resync")


@commands.command()
def rate(
    bytes_per_s: Annotated[
        str,
        typer.Argument(metavar="BYTES", help="Per second, as 64MiB; 0: as fast as it goes."),
    ],
    target: Annotated[
        list[int] | None,
        typer.Option(
            "--target",
            "-t",
            help="Only what this target sends to the next one of its chain; may be repeated."
            "  [default: all]",
            show_default=False,
        ),
    ] = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Limit what each target that is brought up to date gets.

    Also while it is under way. It counts until a storageserver's next start; then its settings do.
    Exit code 1 if a target cannot be asked.

    \b
    Example:  fs3 resync rate 200MiB
    """
    wanted = size(bytes_per_s, "BYTES")
    changed: list[TargetId] = []
    failures: list[str] = []
    with locate(directory, address, cluster_id).administration() as calls:
        routing = calls.routing()
        by_number = {int(one): one for one in sorted(routing.targets)}
        unknown = [number for number in target or () if number not in by_number]
        if unknown:
            known = ", ".join(map(str, by_number))
            raise Fs3Error(Code.INVALID, f"there is no target {unknown[0]}; {known} are")
        for number in target or by_number:
            try:
                calls.set_resync(routing, by_number[number], wanted)
                changed.append(by_number[number])
            except Fs3Error as error:
                failures.append(f"target {number}: {error}")
    limit = f"at most {human_bytes(wanted)}/s" if wanted else "as fast as it goes"
    typer.echo(f"{len(changed)} targets bring others up to date {limit}")
    for failure in failures:
        typer.echo(f"  {failure}", err=True)
    if failures:
        raise typer.Exit(1)
