"""The ``fs3`` command: what it is made of, and how its failures look.

A failure is one line on stderr, ``fs3: error: ...``, and exit code 1; wrong usage, exit code 2.
With FS3_DEBUG=1 the traceback comes too. Commands import what they need when they run, so that
``--help`` and shell completion answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from fs3 import __version__
from fs3.errors import Fs3Error

from . import (
    bench,
    cluster,
    doctor,
    files,
    jobs,
    kv,
    membership,
    mount,
    records,
    replicas,
    resync,
    scrub,
)

_HELP = """
fs3, a distributed parallel file system for AI.

\b
  fs3 up                            start a cluster on this machine, in ./fs3-data
  fs3 status                        nodes, targets, chains
  fs3 mount /mnt/fs3                use it as a directory
  fs3 cp -r ./dataset fs3:/dataset  or without a mount
  fs3 down                          stop it; the data stays
"""

app = typer.Typer(
    name="fs3",
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cluster.register(app)
mount.register(app)
files.register(app)
replicas.register(app)
membership.register(app)
jobs.register(app)
scrub.register(app)
resync.register(app)
kv.register(app)
bench.register(app)
records.register(app)
doctor.register(app)


@app.command()
def version() -> None:
    """Print the releases of fs3 and Python, and which loops it uses.

    \b
    Example:  fs3 version
    """
    from fs3.compiled import WHICH

    typer.echo(f"fs3 {__version__} (Python {sys.version.split()[0]}, {WHICH})")


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    command = typer.main.get_command(app)
    try:
        result = command.main(list(arguments), prog_name="fs3", standalone_mode=False)
    except typer.TyperException as error:
        # "no_args_is_help" travels as an exception that carries the whole help text.
        text = error.format_message()
        typer.echo(text if "\n" in text else f"fs3: error: {text}", err=True)
        return error.exit_code
    except typer.Abort:
        typer.echo("fs3: stopped", err=True)
        return 130
    except OSError as error:
        if os.environ.get("FS3_DEBUG") == "1":
            raise
        typer.echo(f"fs3: error: {_one_line(error)}", err=True)
        return 1
    return result if isinstance(result, int) else 0


def _one_line(error: OSError) -> str:
    if isinstance(error, Fs3Error):
        return str(error).replace("\n", " ")
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else what


def main() -> None:
    """Entry point of ``fs3``."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
