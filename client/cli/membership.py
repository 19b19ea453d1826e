"""``fs3 chain``, ``fs3 target``, ``fs3 node drain``: which target is in which chain, and where."""

from __future__ import annotations

from typing import Annotated

import typer

from fs3.errors import Code, Fs3Error
from fs3.jobs import JobKind, JobState

from .appearance import show
from .cluster import NodeArgument, node_app
from .jobs import DetachOption, order
from .location import AddressOption, ClusterIdOption, DirOption, locate
from .quantities import number

ChainArgument = Annotated[
    int, typer.Argument(metavar="CHAIN", callback=number, help="The chain's number.")
]
AnyChainArgument = Annotated[
    int,
    typer.Argument(
        metavar="[CHAIN]", callback=number, help="The chain's number; every chain if left out."
    ),
]
TargetArgument = Annotated[
    int, typer.Argument(metavar="TARGET", callback=number, help="The target's number.")
]
NewArgument = Annotated[
    int,
    typer.Argument(
        metavar="[NEW]",
        callback=number,
        help="A free target; if left out the best one, on another host if may be.",
    ),
]

_CHAIN_HELP = """The replicas of chains: who is in, and in which order.

\b
Examples:
  fs3 chain list
  fs3 chain add 3 401       one replica more
  fs3 chain remove 3 101    one replica less
  fs3 chain rotate          heads back to where they were meant to be
"""
chain_app = typer.Typer(help=_CHAIN_HELP, no_args_is_help=True, rich_markup_mode=None)
target_app = typer.Typer(
    help="Targets: directories on disks.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(chain_app, name="chain")
    app.add_typer(target_app, name="target")


@chain_app.command("list")
def chain_list(
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show every chain: its replicas, and their preferred order.

    The head comes first.

    \b
    Example:  fs3 chain list
    """
    from .status_view import chains

    with locate(directory, address, cluster_id).administration() as calls:
        show(chains(calls.status(), preferred=True))


@chain_app.command("add")
def chain_add(
    chain: ChainArgument,
    new: NewArgument = 0,
    detach: DetachOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Put a free target into a chain, wait until it serves.

    Whatever it holds of another chain is removed first. The chain is read and written meanwhile.

    \b
    Examples:
      fs3 chain add 3
      fs3 chain add 3 401
    """
    order(
        directory,
        address,
        cluster_id,
        detach,
        lambda calls: calls.start_job(JobKind.ADD, chain=chain, new=new),
    )


@chain_app.command("remove")
def chain_remove(
    chain: ChainArgument,
    target: TargetArgument,
    detach: DetachOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Take a target out of a chain: one replica less.

    The only one that serves is refused. Its chunks stay on its disk until it joins another chain.

    \b
    Example:  fs3 chain remove 3 101
    """
    with locate(directory, address, cluster_id).administration() as calls:
        found = calls.routing().chains.values()
    if not any(c.chain == chain and any(r.target == target for r in c.replicas) for c in found):
        raise Fs3Error(Code.INVALID, f"target {target} is not in chain {chain}")
    order(
        directory,
        address,
        cluster_id,
        detach,
        lambda calls: calls.start_job(JobKind.REMOVE, old=target),
    )


@chain_app.command("rotate")
def chain_rotate(
    chain: AnyChainArgument = 0,
    detach: DetachOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Bring chains into their preferred order.

    That spreads their heads over the nodes.
    One target of a chain at a time goes out and comes back as its last, after a resync of what it
    has missed. The others serve meanwhile.

    \b
    Examples:
      fs3 chain rotate
      fs3 chain rotate 3
    """
    order(
        directory,
        address,
        cluster_id,
        detach,
        lambda calls: calls.start_job(JobKind.ROTATE, chain=chain),
    )


@chain_app.command("prefer")
def chain_prefer(
    chain: ChainArgument,
    targets: Annotated[
        list[int],
        typer.Argument(
            metavar="TARGET...", callback=number, help="Every target of it, head first."
        ),
    ],
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Say in which order a chain is meant to be. `fs3 chain rotate` brings it there.

    \b
    Example:  fs3 chain prefer 3 201 101 301
    """
    with locate(directory, address, cluster_id).administration() as calls:
        found = calls.set_preferred(chain, targets)
    typer.echo(f"chain {chain} prefers {' -> '.join(map(str, found.preferred))}")


@chain_app.command("give-up-last")
def chain_give_up_last(
    chain: ChainArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Yes: acknowledged data may be lost.")
    ] = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """DATA LOSS: serve a chain without who served it last.

    Only for a chain that shows LASTSRV, whose target cannot be brought back. The next target of the
    chain serves what it holds; what it has missed is lost.

    \b
    Example:  fs3 chain give-up-last 3 --force
    """
    with locate(directory, address, cluster_id).administration() as calls:
        found = calls.give_up_last(chain, force=force)
    typer.echo(f"chain {chain} waits for target {found.replicas[0].target} now, and serves with it")


@target_app.command("replace")
def target_replace(
    target: TargetArgument,
    new: NewArgument = 0,
    detach: DetachOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Give a target's place in its chain to a free one.

    For a disk that is dead, or shall be taken out.
    The new one is filled from the replicas that serve; then the old one leaves. A dead disk that
    was exchanged under the same target number needs none of this: it is filled when it returns.

    \b
    Examples:
      fs3 target replace 101
      fs3 target replace 101 402
    """
    order(
        directory,
        address,
        cluster_id,
        detach,
        lambda calls: calls.start_job(JobKind.REPLACE, old=target, new=new),
    )


@node_app.command("drain")
def node_drain(
    node: NodeArgument,
    detach: DetachOption = False,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Move everything off a node, while it serves. Then it can be taken away.

    Each of its targets gives its place to a free one elsewhere, once that one is filled. Nothing is
    placed on the node until `fs3 node undrain`. Without free targets the job waits for some.

    \b
    Example:  fs3 node drain 2
    """
    order(
        directory,
        address,
        cluster_id,
        detach,
        lambda calls: calls.start_job(JobKind.DRAIN, node=node),
    )


@node_app.command("undrain")
def node_undrain(
    node: NodeArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Stop draining a node, or use one again that was drained.

    Its targets are free then; what was moved stays where it is.

    \b
    Example:  fs3 node undrain 2
    """
    in_force = (JobState.RUNNING, JobState.DONE)
    with locate(directory, address, cluster_id).administration() as calls:
        drains = [
            p.job.number
            for p in calls.jobs()
            if p.job.kind is JobKind.DRAIN and p.job.subject == node and p.job.state in in_force
        ]
        if not drains:
            raise Fs3Error(Code.INVALID, f"node {node} is not drained, nor being drained")
        for number in drains:
            calls.cancel_job(number)
    typer.echo(f"node {node} may get targets of chains again")
