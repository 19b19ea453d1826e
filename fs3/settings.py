"""Typed settings from nested frozen dataclasses: fields are file keys, variables and flags.

A program declares what it can be told::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ScrubSettings:
        bytes_per_s: int = size(32 << 20, help="read at most this much per second")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        listen: str = setting("127.0.0.1:7000", help="address of the data port")
        scrub: ScrubSettings = section(ScrubSettings)

and each field can be said in three places, the later winning over the earlier:

    file          scrub = { bytes_per_s = "64MiB" }      TOML, tables for sections
    environment   FS3_SCRUB__BYTES_PER_S=64MiB           prefix, upper case, ``__`` for the dot
    flag          --scrub.bytes-per-s 64MiB              ``_`` and ``-`` are the same

Types: int, float, bool, str, Path, an Enum of strings, ``T | None`` and lists or tuples of those; a
list of dataclasses is an array of tables in the file, JSON elsewhere. Lists of plain values may be
said with commas. An int field with ``"size"`` in its metadata takes 65536 as well as "64KiB".

Everything wrong is one Fs3Error INVALID that names the setting, where it was said, the value, and
what is allowed. A dataclass may have ``validate(self) -> str | None``, which says what does not fit
together; it is asked innermost first.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fs3.errors import Code, Fs3Error

T = TypeVar("T")
_FLAG_DEST = "setting:"  # keeps our flags apart from the program's own in an argparse namespace
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGTP]i?B?)?", re.IGNORECASE)
_BINARY = {letter: 1 << (10 * power) for power, letter in enumerate("KMGTP", 1)}


def setting(default: Any = dataclasses.MISSING, *, help: str) -> Any:  # noqa: ANN401 - any field type's
    """A field with its help text."""
    return _field(default, {"help": help})


def size(default: Any = dataclasses.MISSING, *, help: str) -> Any:  # noqa: ANN401 - any field type's
    """An int field in bytes, which also takes "64MiB"."""
    return _field(default, {"help": help, "size": True})


def section(cls: type[T]) -> T:
    """A nested dataclass whose fields all have defaults."""
    made: T = dataclasses.field(default_factory=cls)
    return made


def _field(default: object, metadata: dict[str, object]) -> object:
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _Leaf(NamedTuple):
    """One setting: a field that is not itself a section."""

    path: tuple[str, ...]
    type: Any
    field: dataclasses.Field[Any]

    @property
    def name(self) -> str:
        return ".".join(self.path)


class _Said(NamedTuple):
    """A value and where it was said; ``text`` if it was said in a place that only knows strings."""

    value: Any
    where: str
    text: bool


def load(
    cls: type[T],
    path: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_prefix: str = "FS3_",
) -> T:
    """An instance of ``cls`` from the file, then the environment, then the flags (``overrides``).

    What is not passed is not consulted: pass ``os.environ`` for the environment to count. A
    variable with the prefix that looks like a misspelt setting is an error; one that looks like
    none of them is left to other programs.
    """
    leaves = {leaf.name: leaf for leaf in _leaves(cls)}
    said: dict[str, _Said] = {}
    if path is not None:
        said |= _flatten(cls, _read(path), (), str(path))
    said |= _from_environment(leaves, environ or {}, env_prefix)
    for key, value in (overrides or {}).items():
        name = key.replace("-", "_")
        if name not in leaves:
            raise _unknown(f"--{key}", "the command line", [f"--{n}" for n in leaves])
        said[name] = _Said(value, f"--{key}", text=True)
    return _build(cls, (), said)


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """One flag per setting. What was said is picked up by :func:`flags_of`."""
    for leaf in _leaves(cls):
        flag = f"--{leaf.name}"
        names = [flag] if "_" not in flag else [flag.replace("_", "-"), flag]
        parser.add_argument(
            *names,
            dest=_FLAG_DEST + leaf.name,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=_help(leaf).replace("%", "%%"),
        )


def flags_of(namespace: argparse.Namespace) -> dict[str, str]:
    """The ``overrides`` for :func:`load` among parsed arguments."""
    return {
        key.removeprefix(_FLAG_DEST): value
        for key, value in vars(namespace).items()
        if key.startswith(_FLAG_DEST)
    }


def describe(cls: type) -> str:
    """Every setting with its type, default and meaning, as a commented TOML file."""
    lines: list[str] = []
    at: tuple[str, ...] = ()
    # Keys of a table must precede its sub-tables.
    for leaf in sorted(_leaves(cls), key=lambda leaf: (leaf.path[:-1], len(leaf.path))):
        if leaf.path[:-1] != at:
            at = leaf.path[:-1]
            lines += ["", f"[{'.'.join(at)}]"]
        lines.append(f"# {_help(leaf)}")
        default = _default(leaf.field)
        known = default is not dataclasses.MISSING and default is not None
        lines.append(f"# {leaf.path[-1]} = {_toml(default) if known else '...'}")
    return "\n".join(lines).strip() + "\n"


def parse_size(text: str | int) -> int:
    """65536, "64KiB", "64K", "1.5GiB" (all binary) or "64KB" (decimal) -> bytes. ValueError."""
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; 65536, 64KiB, 1.5GiB are")
    number, unit = match[1], (match[2] or "B").upper()
    if unit == "B":
        factor = 1
    elif len(unit) == 2 and unit[1] == "B":
        factor = 10 ** (3 * (1 + "KMGTP".index(unit[0])))
    else:
        factor = _BINARY[unit[0]]
    count = float(number) * factor if "." in number else int(number) * factor
    if count != int(count):
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(count)


# Reading the places


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fs3Error(Code.INVALID, f"settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Fs3Error(Code.INVALID, f"settings file {path}: {error}") from error


def _flatten(
    cls: type, table: Mapping[str, Any], above: tuple[str, ...], where: str
) -> dict[str, _Said]:
    """A file's nested tables as dotted names; every key must be known."""
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    said: dict[str, _Said] = {}
    for key, value in table.items():
        path = (*above, key)
        name = ".".join(path)
        if key not in known:
            raise _unknown(name, where, [".".join((*above, other)) for other in known])
        if not dataclasses.is_dataclass(hints[key]):
            said[name] = _Said(value, where, text=False)
        elif isinstance(value, dict):
            said |= _flatten(typing.cast(type, hints[key]), value, path, where)
        else:
            raise _wrong(name, where, value, "a table")
    return said


def _from_environment(
    leaves: Mapping[str, _Leaf], environ: Mapping[str, str], prefix: str
) -> dict[str, _Said]:
    variables = {prefix + name.replace(".", "__").upper(): name for name in leaves}
    said = {}
    for variable, value in environ.items():
        if variable in variables:
            said[variables[variable]] = _Said(value, variable, text=True)
        elif variable.startswith(prefix) and _is_meant(variable, variables):
            raise _unknown(variable, "the environment", list(variables))
    return said


def _is_meant(variable: str, variables: Mapping[str, str]) -> bool:
    section_of = variable.partition("__")[0]
    if "__" in variable and any(v.startswith(section_of + "__") for v in variables):
        return True
    return bool(difflib.get_close_matches(variable, variables, 1, 0.85))


# Building


def _leaves(cls: type, above: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), (*above, field.name))
        else:
            yield _Leaf((*above, field.name), hint, field)


def _build(cls: type[T], above: tuple[str, ...], said: Mapping[str, _Said]) -> T:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # cls is a dataclass
        name = ".".join((*above, field.name))
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = _build(typing.cast(type, hint), (*above, field.name), said)
        elif name in said:
            values[field.name] = _convert(hint, said[name], name, field)
        elif _default(field) is dataclasses.MISSING:
            raise Fs3Error(Code.INVALID, f"setting {name} is missing: {_meaning(field)}")
    made = cls(**values)
    _validate(made, ".".join(above))
    return made


def _validate(made: object, name: str) -> None:
    validate = getattr(made, "validate", None)
    problem = validate() if validate is not None else None
    if problem:
        raise Fs3Error(Code.INVALID, f"settings{' in ' + name if name else ''}: {problem}")


def _convert(hint: Any, said: _Said, name: str, field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    """The value as the field's type, or Fs3Error INVALID."""
    hint, optional = _without_none(hint)
    if optional and said.text and said.value.lower() in ("", "none"):
        return None
    if typing.get_origin(hint) in (list, tuple):
        element = typing.get_args(hint)[0]
        items = _items(said, name, dataclasses.is_dataclass(element))
        made = [_convert_one(element, item, f"{name}[{i}]", field) for i, item in enumerate(items)]
        return tuple(made) if typing.get_origin(hint) is tuple else made
    return _convert_one(hint, said, name, field)


def _without_none(hint: Any) -> tuple[Any, bool]:  # noqa: ANN401 - a type hint may be anything
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        some = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
        return some[0], True
    return hint, False


def _items(said: _Said, name: str, tables: bool) -> list[_Said]:
    value = said.value
    if said.text and (tables or value.lstrip().startswith("[")):
        try:
            value, text = json.loads(value), False
        except json.JSONDecodeError as error:
            raise _wrong(name, said.where, value, f"a JSON list ({error})") from error
    elif said.text:
        value, text = [part.strip() for part in value.split(",") if part.strip()], True
    else:
        text = False
    if not isinstance(value, list):
        raise _wrong(name, said.where, value, "a list")
    return [_Said(item, said.where, text) for item in value]


def _convert_one(hint: Any, said: _Said, name: str, field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    value = said.value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(name, said.where, value, "a table")
        # A list's element is built like a section of its own; its names start with its index.
        nested = _flatten(typing.cast(type, hint), value, (name,), said.where)
        return _build(typing.cast(type, hint), (name,), nested)
    try:
        return _scalar(hint, value, said.text, "size" in field.metadata)
    except ValueError as error:
        raise _wrong(name, said.where, value, _type_name(hint, field)) from error


def _scalar(hint: Any, value: Any, text: bool, is_size: bool) -> Any:  # noqa: ANN401
    """``value`` as ``hint``; ValueError if it is not one."""
    if hint is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return value if isinstance(value, bool) else _pick(words, value, text)
    if isinstance(value, bool):
        raise ValueError("a truth value")  # noqa: TRY004 - caught by _convert_one
    if hint is int and is_size and isinstance(value, int | str):
        return parse_size(value)
    if hint in (int, float) and (text or isinstance(value, int | hint)):
        return hint(value)
    if isinstance(value, str) and hint not in (int, float):
        return hint(value)  # str, Path, Enum
    raise ValueError("of another type")


def _pick(words: Mapping[str, bool], value: Any, text: bool) -> bool:  # noqa: ANN401
    if text and value.lower() in words:
        return words[value.lower()]
    raise ValueError("no truth value")


# Saying what is wrong, and what there is


def _unknown(name: str, where: str, known: Sequence[str]) -> Fs3Error:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
    return Fs3Error(Code.INVALID, f"unknown setting {name} in {where}{hint}")


def _wrong(name: str, where: str, value: object, allowed: str) -> Fs3Error:
    return Fs3Error(Code.INVALID, f"setting {name} in {where} is {value!r}; allowed is {allowed}")


def _type_name(hint: Any, field: dataclasses.Field[Any]) -> str:  # noqa: ANN401
    hint, _ = _without_none(hint)
    if typing.get_origin(hint) in (list, tuple):
        return f"list of {_type_name(typing.get_args(hint)[0], field)}"
    if dataclasses.is_dataclass(hint):
        names = (inner.name for inner in dataclasses.fields(hint))
        return f"table with {', '.join(names)}"
    if "size" in field.metadata:
        return "size like 65536 or 64KiB"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint)).lower()
    )


def _default(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401 - any type's
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _meaning(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("help", "no description"))


def _help(leaf: _Leaf) -> str:
    default = _default(leaf.field)
    tail = "required" if default is dataclasses.MISSING else f"default {_toml(default)}"
    return f"{_meaning(leaf.field)} ({_type_name(leaf.type, leaf.field)}; {tail})"


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        return "none"
    return json.dumps(str(value.value if isinstance(value, Enum) else value), ensure_ascii=False)
