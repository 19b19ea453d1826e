"""``fs3 kv``: namespaces of the KV cache."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs3.errors import Code, Fs3Error

from .appearance import counted, human_age, human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, locate
from .quantities import number, size

if TYPE_CHECKING:
    from fs3.core.kv import KvNamespace

_HELP = """Namespaces of the KV cache: sets of keys with their limits.

\b
Examples:
  fs3 kv create llama-70b --capacity 200GiB --ttl 86400
  fs3 kv stat llama-70b
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The namespace.")]
CapacityOption = Annotated[
    str | None,
    typer.Option(
        "--capacity",
        help="Bytes of values at most (200GiB); the longest unused go first.  0: what the disks"
        " have.",
        show_default=False,
    ),
]
TtlOption = Annotated[
    int | None,
    typer.Option(
        "--ttl",
        callback=number,
        help="Seconds after which a value goes.  0: never.",
        show_default=False,
    ),
]
ValueOption = Annotated[
    str | None,
    typer.Option("--value-max", help="Longest value (8MiB).  0: what fits.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="kv")


def _size(text: str | None, option: str) -> int:
    return size(text, option) if text is not None else 0


@commands.command()
def create(
    name: NameArgument,
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            callback=number,
            help="Copies of every value, each on another node.",
        ),
    ] = 1,
    capacity: CapacityOption = None,
    ttl: TtlOption = None,
    value_max: ValueOption = None,
    table: Annotated[
        int,
        typer.Option(
            callback=number,
            help="Chain table.  0: the first whose chains have so many replicas.",
        ),
    ] = 0,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Make a namespace. It can be used at once.

    \b
    Examples:
      fs3 kv create llama-70b --capacity 200GiB
      fs3 kv create shared --replicas 3 --ttl 3600
    """
    from fs3.client.kv_administration import NamespaceSettings, create_namespace

    settings = NamespaceSettings(
        replicas=replicas,
        capacity_bytes=_size(capacity, "--capacity"),
        ttl_s=ttl or 0,
        value_bytes_max=_size(value_max, "--value-max"),
        table=table,
        uid=os.geteuid(),
        gid=os.getegid(),
    )
    with locate(directory, address, cluster_id).administration() as calls:
        made = create_namespace(calls.manager, name, settings)
    chains = f"{counted(len(made.chains), 'chain')} of table {made.table}"
    typer.echo(f"namespace {name!r}: {counted(made.replicas, 'replica')}, {chains}")


@commands.command("list")
def list_namespaces(
    as_json: JsonOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show every namespace with its limits.

    \b
    Example:  fs3 kv list
    """
    with locate(directory, address, cluster_id).administration() as calls:
        found = sorted(calls.routing().namespaces.values(), key=lambda n: n.name)
    if as_json:
        typer.echo(json.dumps([_fields(namespace) for namespace in found]))
        return
    table = new_table("KV namespaces")
    for column in ("name", "replicas", "capacity", "TTL", "value at most", "table", "owner"):
        table.add_column(column, no_wrap=True)
    for namespace in found:
        table.add_row(
            namespace.name,
            str(namespace.replicas),
            human_bytes(namespace.capacity_bytes) if namespace.capacity_bytes else "disks",
            f"{namespace.ttl_s} s" if namespace.ttl_s else "-",
            human_bytes(namespace.value_bytes_max),
            str(namespace.table),
            f"{namespace.uid}:{namespace.gid}",
        )
    show(table)


@commands.command()
def stat(
    name: NameArgument,
    as_json: JsonOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show what a namespace holds, and how it is used, per target.

    Uses are counted since the target's process started.

    \b
    Example:  fs3 kv stat llama-70b
    """
    from fs3.client.kv_administration import namespace_named, node_stats, total

    with locate(directory, address, cluster_id).administration() as calls:
        routing = calls.routing()
        namespace = namespace_named(routing, name)
        if namespace is None:
            raise Fs3Error(Code.NOT_FOUND, f"there is no KV namespace {name!r}")
        rows = node_stats(routing, calls.cluster_id, namespace)
    sums = total(rows)
    if as_json:
        typer.echo(json.dumps({**_fields(namespace), **sums}))
        return
    table = new_table(f"{name}, per target")
    columns = ("target", "chain", "values", "bytes", "hits", "misses", "read", "stored", "evicted")
    for column in (*columns, "expired", "oldest"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.target}{' (head)' if row.head else ''}",
            str(row.chain),
            str(row.values),
            human_bytes(row.used_bytes),
            str(row.hits),
            str(row.misses),
            human_bytes(row.read_bytes),
            str(row.stored),
            str(row.evicted),
            str(row.expired),
            human_age(row.oldest_ms / 1000),
        )
    show(table)
    typer.echo(_summary(namespace, sums))


def _summary(namespace: KvNamespace, sums: dict[str, int]) -> str:
    capacity = human_bytes(namespace.capacity_bytes) if namespace.capacity_bytes else "no limit"
    reads = sums["hits"] + sums["misses"]
    ratio = f", {100 * sums['hits'] / reads:.1f} % of {reads} reads hit" if reads else ""
    held = f"{sums['values']} values, {human_bytes(sums['used_bytes'])} of {capacity}"
    return f"{held}{ratio}; {sums['evicted']} evicted, {sums['expired']} expired"


@commands.command("set")
def set_limits(
    name: NameArgument,
    capacity: CapacityOption = None,
    ttl: TtlOption = None,
    value_max: ValueOption = None,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Change a namespace's limits; what is beyond them goes soon.

    \b
    Example:  fs3 kv set llama-70b --capacity 100GiB
    """
    from fs3.client.kv_administration import set_namespace

    said: dict[str, int] = {}
    if capacity is not None:
        said["capacity_bytes"] = _size(capacity, "--capacity")
    if ttl is not None:
        said["ttl_s"] = ttl
    if value_max is not None:
        said["value_bytes_max"] = _size(value_max, "--value-max")
    if not said:
        raise Fs3Error(Code.INVALID, "nothing to set: give --capacity, --ttl or --value-max")
    with locate(directory, address, cluster_id).administration() as calls:
        set_namespace(calls.manager, name, said)
    typer.echo(f"namespace {name!r} is changed")


@commands.command()
def drop(
    name: NameArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Yes: every value of it is removed.")
    ] = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Remove a namespace and all its values.

    \b
    Example:  fs3 kv drop llama-70b --force
    """
    from fs3.client.kv_administration import drop_namespace

    if not force:
        detail = f"this removes every value of namespace {name!r}; say --force if that is meant"
        raise Fs3Error(Code.INVALID, detail)
    with locate(directory, address, cluster_id).administration() as calls:
        drop_namespace(calls.manager, name)
    typer.echo(f"namespace {name!r} is gone")


def _fields(namespace: KvNamespace) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(namespace)
