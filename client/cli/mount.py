"""``fs3 mount`` and ``fs3 umount``."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs3.client.cluster_directory import ClusterDirectory
from fs3.errors import Code, Fs3Error

from .location import (
    AddressOption,
    ClusterIdOption,
    DirOption,
    Location,
    directory_of,
    locate,
)

if TYPE_CHECKING:
    from fs3.client.local_cluster import LocalCluster


class FrontName(StrEnum):
    """Who speaks the kernel's FUSE protocol."""

    DIRECT = "direct"
    FUSEPY = "fusepy"


MountPointArgument = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="The mount point.")]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(mount)
    app.command()(umount)


def mount(
    mountpoint: MountPointArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Serve it from this process until Ctrl-C.")
    ] = False,
    front: Annotated[
        FrontName, typer.Option(help="direct: our own; fusepy: libfuse3 through mfusepy.")
    ] = FrontName.DIRECT,
    allow_other: Annotated[
        bool | None,
        typer.Option(
            help="Let other users in, too.  [default: if root; others need user_allow_other in"
            " /etc/fuse.conf]",
            show_default=False,
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse changes.")] = False,
    writeback_cache: Annotated[
        bool, typer.Option("--writeback-cache", help="Gather small writes in the page cache.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Requests served at once.")] = 4,
) -> None:
    """Mount the file system on an empty directory, made if missing.

    \b
    Examples:
      fs3 mount /mnt/fs3
      fs3 mount /mnt/fs3 --address 10.0.0.1:7450 --cluster-id prod --read-only
    """
    location = locate(directory, address, cluster_id)
    options = ["--front", front.value, "--workers", str(workers)]
    options += ["--allow-other"] if _others_may(allow_other) else []
    options += ["--read-only"] if read_only else []
    options += ["--writeback-cache"] if writeback_cache else []
    _mount(location, mountpoint, options, foreground=foreground)


def mount_local(cluster: LocalCluster, mountpoint: Path) -> None:
    """Mount a local cluster with the default options."""
    location = locate(cluster.directory, None, "")
    options = ["--allow-other"] if _others_may(None) else []
    _mount(location, mountpoint, options, foreground=False)


def _others_may(allow_other: bool | None) -> bool:
    return os.geteuid() == 0 if allow_other is None else allow_other


def _mount(location: Location, mountpoint: Path, options: list[str], *, foreground: bool) -> None:
    from fs3.client import mount_process, mounts

    path = mounts.absolute(mountpoint)
    if not mounts.mounted_devices(path):
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError as error:
            raise Fs3Error(Code.NOT_DIRECTORY, f"{path} is not a directory") from error
    arguments = ["--address", ",".join(location.addresses), "--cluster-id", location.cluster_id]
    if foreground:
        typer.echo(f"{path} is being mounted; Ctrl-C unmounts it")
        mount_process.main(["--mountpoint", path, *arguments, *options])
        return
    mounts.start(_registry(location.directory), path, [*arguments, *options])
    typer.echo(f"{path} is mounted; `fs3 umount {mountpoint}` unmounts it")


def _registry(directory: ClusterDirectory | None) -> Path:
    from fs3.client import mounts

    return mounts.user_registry() if directory is None else directory.mounts


def umount(
    mountpoint: MountPointArgument,
    directory: DirOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also if programs use it; they get errors from then on.")
    ] = False,
) -> None:
    """Unmount; returns when everything written there is stored.

    \b
    Example:  fs3 umount /mnt/fs3
    """
    from fs3.client import mounts

    path = mounts.absolute(mountpoint)
    registries = [ClusterDirectory.at(directory_of(directory)).mounts, mounts.user_registry()]
    files = mounts.find(registries, path)
    if files is None and not mounts.mounted_devices(path):
        raise Fs3Error(Code.INVALID, f"{path} is not an fs3 mount")
    files = files or mounts.MountFiles(registries[0], path)  # mounted with --foreground
    if force:
        for command in mounts.force_unmount(files):
            typer.echo(f"  had to be killed: {command}", err=True)
    else:
        mounts.unmount(files)
    typer.echo(f"{path} is unmounted")
