"""Logs: key-value events, one line each, on stderr or in a file.

An event's name is constant snake_case; what varies goes into keys::

    log = get_logger(__name__)
    log.warning("peer_lost", peer=address, reason=str(error))

JSON when a machine reads (stderr is not a terminal, or a file), coloured text when a person does.
WARNING: someone may look; ERROR: someone must.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, cast

import structlog

from fs3.errors import Code, Fs3Error

LEVELS = ("debug", "info", "warning", "error")
_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module. It may be taken before :func:`configure_logging` runs."""
    return cast(
        structlog.stdlib.BoundLogger,
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                *_SHARED,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=True,
        ),
    )


def configure_logging(
    level: str = "info",
    json: bool | None = None,
    file: Path | None = None,
) -> None:
    """Send every record of this process to stderr or ``file``; replaces an earlier set-up.

    ``json`` None: JSON unless a terminal reads. Records of other libraries take the same form.
    """
    if level.lower() not in LEVELS:
        raise Fs3Error(Code.INVALID, f"log level {level!r} is not allowed: {', '.join(LEVELS)} are")
    handler = _handler(file)
    as_json = not _is_terminal(handler) if json is None else json
    handler.setFormatter(_formatter(as_json, _is_terminal(handler)))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())


def _handler(file: Path | None) -> logging.StreamHandler[Any]:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        # Re-opened when it was moved away, so that logrotate needs no signal.
        return WatchedFileHandler(file, encoding="utf-8")
    except OSError as error:
        raise Fs3Error(Code.INVALID, f"log file {file}: {error.strerror}") from error


def _is_terminal(handler: logging.StreamHandler[Any]) -> bool:
    return bool(handler.stream.isatty())


def _formatter(as_json: bool, colors: bool) -> logging.Formatter:
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=colors)]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
