"""``fs3 up``, ``down``, ``status`` and ``node``: the local cluster, and any cluster's state."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from fs3.client.cluster_directory import Shape
from fs3.errors import Code, Fs3Error

from .appearance import counted, show
from .location import (
    AddressOption,
    ClusterIdOption,
    DirOption,
    Location,
    directory_of,
    local_cluster,
    locate,
)
from .quantities import number

if TYPE_CHECKING:
    from fs3.client.local_cluster import LocalCluster

node_app = typer.Typer(
    help="Storageservers: drain one; stop, start or kill a local one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NodeArgument = Annotated[
    int, typer.Argument(metavar="N", callback=number, help="The node's number: 1, 2, ...")
]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    node_app.command("stop")(node_stop)
    node_app.command("start")(node_start)
    node_app.command("kill")(node_kill)
    app.add_typer(node_app, name="node")


def up(
    directory: DirOption = None,
    nodes: Annotated[
        int | None, typer.Option(help="Storageservers.  [default: 3]", show_default=False)
    ] = None,
    targets_per_node: Annotated[
        int | None,
        typer.Option(help="Targets of each storageserver.  [default: 2]", show_default=False),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Copies of every chunk, each on another node.  [default: 3]", show_default=False
        ),
    ] = None,
    kv_targets: Annotated[
        int | None,
        typer.Option(
            help="More targets of each storageserver, for values of the KV cache that have one"
            " replica.  [default: 1, or 0 with --replicas 1]",
            show_default=False,
        ),
    ] = None,
    cluster_id: Annotated[
        str | None,
        typer.Option(help="The cluster's name.  [default: local]", show_default=False),
    ] = None,
    mount: Annotated[
        Path | None, typer.Option(help="Mount it on this directory, too.", show_default=False)
    ] = None,
) -> None:
    """Start a cluster on this machine and wait until it is healthy.

    Daemons are processes of their own, bound to the loopback; one that dies is started again. A
    cluster that was stopped comes back with its data.

    \b
    Examples:
      fs3 up
      fs3 up --nodes 5 --replicas 3 --dir /srv/fs3 --mount /mnt/fs3
    """
    began_s = time.monotonic()
    made = local_cluster(directory)
    if kv_targets is None and not made.files.exists():
        kv_targets = 0 if 1 in (nodes, replicas) else 1
    shape = Shape(
        kv_targets=kv_targets,
        nodes=nodes,
        targets_per_node=targets_per_node,
        replicas=replicas,
        cluster_id=cluster_id,
    )
    started = made.up(shape, progress=lambda what: typer.echo(f"  {what} ..."))
    found = made.specification
    if started:
        typer.echo(f"cluster {found.cluster_id!r} is up after {time.monotonic() - began_s:.1f} s")
    else:
        typer.echo(f"cluster {found.cluster_id!r} runs already, and is healthy")
    _say_where(made)
    if mount is not None:
        from .mount import mount_local

        mount_local(made, mount)


def _say_where(made: LocalCluster) -> None:
    found = made.specification
    typer.echo(
        f"  {counted(len(found.nodes), 'storageserver')} x"
        f" {counted(found.targets_per_node, 'target')},"
        f" {counted(found.replicas, 'replica')}, data in {made.directory}"
    )
    typer.echo(f"  address {found.metaserver_frame_address} (gRPC {found.metaserver_grpc_address})")


def down(directory: DirOption = None) -> None:
    """Stop the local cluster: its mounts first, then its daemons. The data stays.

    \b
    Example:  fs3 down --dir /srv/fs3
    """
    cluster = local_cluster(directory)
    if not cluster.files.exists():
        typer.echo(f"no cluster in {cluster.directory}; nothing to stop")
        return
    for command in cluster.down():
        typer.echo(f"  had to be killed: {command}", err=True)
    typer.echo(f"cluster {cluster.specification.cluster_id!r} is down")


def status(
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    watch: Annotated[bool, typer.Option(help="Refresh every second until Ctrl-C.")] = False,
) -> None:
    """Show nodes, targets, chains, capacity, and whether all is well.

    Exit code 0: healthy, 3: something is missing but all data can be read, 4: some cannot.

    \b
    Examples:
      fs3 status --watch
      fs3 status --address 10.0.0.1:7450 --cluster-id prod --json
    """
    from . import status_view

    location = locate(directory, address, cluster_id)
    if watch:
        _watch(location)
        return
    with location.administration() as calls:
        found = calls.status()
    if as_json:
        typer.echo(json.dumps(status_view.as_dict(found), indent=2))
    else:
        show(status_view.render(found))
    if found.problems:
        raise typer.Exit(4 if found.unavailable_chains or not found.chains else 3)


def _watch(location: Location) -> None:
    from . import status_view

    with location.administration() as calls, Live(auto_refresh=False, screen=True) as live:
        while True:
            try:
                live.update(status_view.render(calls.status()), refresh=True)
            except Fs3Error as error:
                if error.code not in (Code.UNREACHABLE, Code.MAYBE_APPLIED):
                    raise
                live.update(f"the metaserver does not answer: {error.detail}", refresh=True)
            time.sleep(1)


def node_stop(node: NodeArgument, directory: DirOption = None) -> None:
    """End a storageserver in good order, and keep it down.

    `fs3 node start` lets it return.

    \b
    Example:  fs3 node stop 2
    """
    local_cluster(directory).stop_node(node)
    typer.echo(f"node {node} is stopped and held down; `fs3 node start {node}` lets it return")


def node_start(node: NodeArgument, directory: DirOption = None) -> None:
    """Let a storageserver that is held down return.

    \b
    Example:  fs3 node start 2
    """
    cluster = local_cluster(directory)
    if not cluster.is_running():
        what = f"the cluster in {directory_of(directory)} is not running; start it with `fs3 up`"
        raise Fs3Error(Code.NOT_READY, what)
    cluster.release(node)
    typer.echo(f"node {node} may run")


def node_kill(
    node: NodeArgument,
    directory: DirOption = None,
    hold: Annotated[bool, typer.Option(help="Keep it down until `fs3 node start`.")] = False,
) -> None:
    """Kill a storageserver with SIGKILL.

    The supervisor starts it again unless it is held.

    \b
    Example:  fs3 node kill 2 --hold
    """
    cluster = local_cluster(directory)
    if hold:
        cluster.hold(node)
    cluster.kill(node)
    again = f"held down; `fs3 node start {node}` lets it return" if hold else "it will be restarted"
    typer.echo(f"node {node} is killed ({again})")
