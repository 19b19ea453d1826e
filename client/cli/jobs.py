"""``fs3 job``: orders that take a while; and how every command that gives one waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, locate
from .quantities import number

if TYPE_CHECKING:
    from fs3.client.administration import Administration
    from fs3.jobs import JobProgress

_POLL_S = 0.5
_AWAY = (Code.UNREACHABLE, Code.MAYBE_APPLIED, Code.NOT_READY)  # a metaserver that restarts
_WORDS = {"ADD": "add to", "REMOVE": "remove from", "REPLACE": "replace in", "ROTATE": "rotate"}

JobArgument = Annotated[
    int, typer.Argument(metavar="JOB", callback=number, help="The job's number.")
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Give the order and return; see `fs3 job list`.")
]

_HELP = """Orders that take a while: how far they are, and how long yet.

\b
Examples:
  fs3 job list
  fs3 job watch 3
  fs3 job cancel 3
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="job")


@commands.command("list")
def list_jobs(
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show jobs that run, and the last ones that are over.

    \b
    Example:  fs3 job list
    """
    with locate(directory, address, cluster_id).administration() as calls:
        found = calls.jobs()
    if not found:
        typer.echo("there are no jobs")
        return
    table = new_table("Jobs")
    for name in ("job", "what", "state", "moves", "data", "left"):
        table.add_column(name, no_wrap=True)
    table.add_column("remarks")
    for progress in found:
        table.add_row(
            str(progress.job.number),
            _what(progress),
            progress.job.state.name,
            f"{progress.job.moves_done} of {progress.moves_total}",
            _data(progress),
            _left(progress),
            progress.waits_for,
        )
    show(table)


@commands.command()
def watch(
    job: JobArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Follow a job until it is over. Ctrl-C ends the watching, not the job.

    Exit code 1 if the job was cancelled.

    \b
    Example:  fs3 job watch 3
    """
    with locate(directory, address, cluster_id).administration() as calls:
        follow(calls, _find(calls, job))


@commands.command()
def cancel(
    job: JobArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Stop a job: what it has begun is undone, or ends in good order.

    Chains it is through with stay as they are. After a drain that is over or cancelled the node may
    get targets again.

    \b
    Example:  fs3 job cancel 3
    """
    with locate(directory, address, cluster_id).administration() as calls:
        found = calls.cancel_job(job)
    typer.echo(f"job {job}: {_what(found)} is {found.job.state.name}")


def order(
    directory: DirOption,
    address: AddressOption,
    cluster_id: str,
    detach: bool,
    give: Callable[[Administration], JobProgress],
) -> None:
    """Give an order and, unless told to ``detach``, wait until it is carried out."""
    with locate(directory, address, cluster_id).administration() as calls:
        progress = give(calls)
        number = progress.job.number
        if detach:
            typer.echo(f"job {number}: {_what(progress)}; `fs3 job watch {number}` follows it")
        else:
            follow(calls, progress)


def follow(calls: Administration, progress: JobProgress) -> None:
    """Show a job until it is over; exit code 1 if it was cancelled."""
    began_s = time.monotonic()
    number = progress.job.number
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
    said = ""
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(_what(progress), total=1.0, now="")
        try:
            while progress.job.is_open:
                bars.update(bar, completed=_share(progress), now=_now(progress))
                if progress.waits_for != said:
                    said = progress.waits_for
                    bars.print(f"waits: {said}" if said else "goes on")
                time.sleep(_POLL_S)
                progress = _again(calls, progress)
        except KeyboardInterrupt:
            bars.stop()
            typer.echo(f"job {number} goes on; `fs3 job cancel {number}` stops it", err=True)
            raise
        bars.update(bar, completed=_share(progress), now=_now(progress))
    moves, spent_s = progress.job.moves_done, time.monotonic() - began_s
    what = f"{moves} {'move' if moves == 1 else 'moves'}, {_data(progress)}, {spent_s:.1f} s"
    typer.echo(f"job {number}: {_what(progress)} is {progress.job.state.name}: {what}")
    if progress.job.state.name != "DONE":
        raise typer.Exit(1)


def _again(calls: Administration, before: JobProgress) -> JobProgress:
    try:
        return _find(calls, before.job.number)
    except Fs3Error as error:
        if error.code not in _AWAY:
            raise
        return before


def _find(calls: Administration, number: int) -> JobProgress:
    for progress in calls.jobs():
        if progress.job.number == number:
            return progress
    raise Fs3Error(Code.NOT_FOUND, f"there is no job {number}; see `fs3 job list`")


def _what(progress: JobProgress) -> str:
    kind, subject = progress.job.kind.name, progress.job.subject
    if kind == "DRAIN":
        return f"drain node {subject}"
    return f"{_WORDS[kind]} {f'chain {subject}' if subject else 'all chains'}"


def _share(progress: JobProgress) -> float:
    if not progress.job.is_open:
        return 1.0
    if progress.bytes_total:
        return progress.bytes_done / progress.bytes_total
    return progress.job.moves_done / progress.moves_total if progress.moves_total else 0.0


def _now(progress: JobProgress) -> str:
    return f"{_data(progress)}  {_left(progress)}"


def _data(progress: JobProgress) -> str:
    if not progress.bytes_total:
        return f"{progress.job.moves_done} of {progress.moves_total} moves"
    return f"{human_bytes(progress.bytes_done)} of {human_bytes(progress.bytes_total)}"


def _left(progress: JobProgress) -> str:
    if not progress.job.is_open:
        return ""
    if progress.remaining_ms is None:
        return "estimating"
    minutes, seconds = divmod(round(progress.remaining_ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    left_bytes = progress.bytes_total - progress.bytes_done
    rate = ""
    if left_bytes > 0 and progress.remaining_ms:
        rate = f", {human_bytes(left_bytes * 1000 // progress.remaining_ms)}/s"
    return f"{hours}:{minutes:02}:{seconds:02} left{rate}"
