"""``fs3 doctor``: what this machine has for fs3, and why something is not used."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fs3.errors import Fs3Error

from .appearance import human_bytes, new_table, show
from .location import AddressOption, ClusterIdOption, DirOption, locate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fs3.routing import Routing
    from fs3.transport.rdma.inventory import Port, Verdict

_HELP = """Look at this machine: what fs3 finds, uses, and why not the rest.

\b
Example:  fs3 doctor rdma
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)
WantedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="As a setting would name it: a device, device:port, interface or network; may be"
        " repeated.  [default: all]",
    ),
]
NodesOption = Annotated[
    bool, typer.Option("--nodes", help="Also which storageservers of a cluster are reached.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="doctor")


@commands.callback()
def doctor() -> None:
    """A group, so that its commands have names."""


@commands.command()
def rdma(
    device: WantedOption = None,
    nodes: NodesOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show every RDMA port: what is used of it, and why not more.

    Each usable port is tried: memory is registered and a queue pair made. With --nodes the
    storageservers of a cluster are compared with what is here. Exit code 1 if no port can be used:
    payload travels over TCP then.

    \b
    Example:  fs3 doctor rdma --nodes
    """
    from fs3.transport.rdma import discovery

    verdicts, problem = discovery.survey(device or [])
    console = Console(highlight=False)
    _print_surroundings(console, problem)
    taken: list[Port] = []
    if verdicts:
        taken = _print_ports(console, verdicts)
    if nodes:
        with locate(directory, address, cluster_id).administration() as calls:
            _print_nodes(console, calls.routing(), taken)
    if not taken:
        console.print("No RDMA here: payload travels over TCP.")
        raise typer.Exit(1)


def _print_surroundings(console: Console, problem: str) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    said = "unlimited" if limit == resource.RLIM_INFINITY else human_bytes(limit)
    console.print(f"memory that may be locked: {said}")
    if problem:
        console.print(Text(problem, style="yellow"))


def _print_ports(console: Console, verdicts: Sequence[Verdict]) -> list[Port]:
    """The table; returns the addresses that work."""
    table = new_table("RDMA ports")
    for column in ("port", "interface", "link", "MTU", "used", "why"):
        table.add_column(column, overflow="fold")
    taken: list[Port] = []
    for verdict in verdicts:
        port = verdict.port
        reasons = list(verdict.reasons)
        failure = _try(verdict.taken[0]) if verdict.taken else ""
        if failure:
            reasons.insert(0, failure)
        else:
            taken += verdict.taken
        used = "no" if failure or not verdict.taken else "\n".join(map(_address, verdict.taken))
        table.add_row(
            port.name,
            port.interface or "-",
            f"{port.link_layer.value}{'' if port.active else ', down'}",
            str(port.mtu_bytes),
            Text(used, style="red" if used == "no" else "green"),
            "\n".join(reasons) or "-",
        )
    show(table)
    return taken


def _address(port: Port) -> str:
    from fs3.transport.rdma.inventory import Gid

    gid = Gid(index=port.gid_index, gid=port.gid, type=port.gid_type)
    return f"{gid} ({port.gid_type.value}, GID {port.gid_index})"


def _try(port: Port) -> str:
    """Why the port does not work, by using it; empty: it does."""
    from fs3.transport.rdma.link import Link, Shape
    from fs3.transport.rdma.pyverbs_device import PyverbsDevice

    try:
        device = PyverbsDevice(port)
        queue = device.completion_queue(16)
        try:
            Link(device, queue, Shape(), lambda *_: None, lambda _: None).close()
        finally:
            queue.close()
            device.close()
    except Fs3Error as error:
        return error.detail
    return ""


def _print_nodes(console: Console, routing: Routing, taken: Sequence[Port]) -> None:
    from fs3.transport.rdma import discovery
    from fs3.transport.rdma.inventory import choose

    table = new_table("Storageservers")
    for column in ("node", "address", "reached by", "why"):
        table.add_column(column, overflow="fold")
    for node in sorted(routing.nodes.values(), key=lambda node: node.node):
        way, why = Text("TCP", style="yellow"), "it offers no RDMA"
        if node.rdma:
            try:
                port, endpoint = choose(taken, node.rdma, discovery.route)
                way, why = Text("RDMA", style="green"), f"{port.name} to its {endpoint.name}"
            except Fs3Error as error:
                why = error.detail
        table.add_row(str(node.node), node.data_address, way, why)
    show(table)
