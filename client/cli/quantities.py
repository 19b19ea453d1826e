"""Sizes, numbers and choices as people type them; a slip gets one line with what is allowed."""

from __future__ import annotations

from collections.abc import Collection

import typer

NUMBER_MAX = (1 << 32) - 1  # of nodes, targets, chains and tables, on the wire
BYTES_MAX = (1 << 63) - 1


def size(text: str, option: str) -> int:
    """``64KiB`` is 65536. typer.BadParameter, which names ``option``, for what is no size."""
    from fs3.settings import parse_size

    try:
        found = parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=repr(option)) from error
    if found > BYTES_MAX:
        raise typer.BadParameter(f"{text!r} is more than 8191 PiB", param_hint=repr(option))
    return found


def sizes(text: str, option: str) -> list[int]:
    """Sizes with commas between them, none of them 0."""
    found = [size(part, option) for part in text.split(",")]
    if 0 in found:
        raise typer.BadParameter(f"{text!r}: sizes begin at 1 byte", param_hint=repr(option))
    return found


def counts(text: str, option: str, minimum: int = 1) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < minimum:
        what = f"{text!r}: whole numbers from {minimum} on are allowed, with commas: 1,8,64"
        raise typer.BadParameter(what, param_hint=repr(option))
    return found


def choices(text: str, option: str, allowed: Collection[str]) -> list[str]:
    """Words with commas between them, each one of ``allowed``."""
    found = [part.strip() for part in text.split(",")]
    for word in found:
        if word not in allowed:
            what = f"{word!r}: {', '.join(allowed)} are allowed"
            raise typer.BadParameter(what, param_hint=repr(option))
    return found


def number(value: int | list[int] | None) -> int | list[int] | None:
    """Callback of options and arguments: what the wire has no room for is refused."""
    for one in value if isinstance(value, list) else [value or 0]:
        if not 0 <= one <= NUMBER_MAX:
            raise typer.BadParameter(f"{one}: 0 to {NUMBER_MAX} are allowed")
    return value
