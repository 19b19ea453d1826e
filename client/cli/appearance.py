"""How tables and sizes look, in every command."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))
_GAP = 2  # spaces between columns


def human_bytes(length_bytes: float) -> str:
    """``1536`` is "1.5 KiB"."""
    power = 0
    while length_bytes >= 1024 and power < len(_UNITS) - 1:
        length_bytes /= 1024
        power += 1
    return f"{length_bytes:.{1 if power else 0}f} {_UNITS[power]}"


def counted(count: int, what: str) -> str:
    """``1 chain``, ``2 chains``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def human_age(seconds: float) -> str:
    """``200`` is "3 min"."""
    for unit_s, unit in _AGES:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return f"{int(seconds)} s"


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


def show(*parts: RenderableType) -> None:
    """Print, and cut nothing: a table is wrapped in columns that allow it, or by the terminal.

    A pipe gets a line for each row, whatever its length. Nothing in names is taken for markup.
    """
    console = Console(markup=False, emoji=False)
    piped = not console.is_terminal and "COLUMNS" not in os.environ
    for part in _flat(parts):
        if isinstance(part, Table):
            for column in part.columns:
                column.overflow = "fold"
            needed = _needed(part, whole=piped)
            part.width = needed if piped or needed > console.width else None
            # Rich would wrap it to the table's width.
            console.print(Text(str(part.title), "bold"), soft_wrap=True)
            part.title = None
            console.print(part, crop=False)
        else:
            console.print(part, soft_wrap=piped)


def _flat(parts: tuple[RenderableType, ...] | list[RenderableType]) -> Iterator[RenderableType]:
    for part in parts:
        if isinstance(part, Group):
            yield from _flat(part.renderables)
        else:
            yield part


def _needed(table: Table, whole: bool) -> int:
    """The columns without which something of the table would be cut, or wrapped if ``whole``."""
    widths = [_column_width(column, whole or column.no_wrap) for column in table.columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def _column_width(column: Column, whole: bool) -> int:
    """Of its longest line, or of its longest word if it is not to be ``whole``."""
    texts = [str(cell) for cell in (column.header, *column.cells) if isinstance(cell, str | Text)]
    pieces = [piece for text in texts for piece in (text.split("\n") if whole else text.split())]
    return max(map(cell_len, pieces), default=0)
