"""``fs3 bench``: how fast a cluster is, beside what bounds it."""

from __future__ import annotations

import typer

from .bench_io import io
from .bench_kv import kv
from .bench_loader import loader

_HELP = """How fast a cluster is, beside what bounds it in the same run.

\b
Examples:
  fs3 bench io --own
  fs3 bench kv --beside redis
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)
commands.command()(io)
commands.command()(loader)
commands.command()(kv)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="bench")


@commands.callback()
def _bench() -> None:
    """See the commands."""
