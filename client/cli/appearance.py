"""How tables and sizes look, in every command."""

from __future__ import annotations

from rich import box
from rich.table import Table

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_bytes(length_bytes: float) -> str:
    """``1536`` is "1.5 KiB"."""
    power = 0
    while length_bytes >= 1024 and power < len(_UNITS) - 1:
        length_bytes /= 1024
        power += 1
    return f"{length_bytes:.{1 if power else 0}f} {_UNITS[power]}"


def new_table(title: str) -> Table:
    """Without vertical lines, so that it fits into 80 columns."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
