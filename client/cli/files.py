"""``fs3 ls, cp, cat, rm, stat, mkdir, mv, du``: files without a mount."""

from __future__ import annotations

import posixpath
import stat as stat_bits
import sys
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes
from .location import AddressOption, ClusterIdOption, DirOption, locate

if TYPE_CHECKING:
    import os

    from fs3.client.api import Client

SCHEME = "fs3:"
_CAT_BYTES = 4 << 20
_KINDS = {
    stat_bits.S_IFREG: "file",
    stat_bits.S_IFDIR: "directory",
    stat_bits.S_IFLNK: "symlink",
    stat_bits.S_IFIFO: "fifo",
    stat_bits.S_IFSOCK: "socket",
    stat_bits.S_IFCHR: "character device",
    stat_bits.S_IFBLK: "block device",
}

PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="Absolute path in fs3, with or without `fs3:`.")
]
PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Absolute paths in fs3.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("ls")(list_directory)
    app.command("cp")(copy)
    app.command("cat")(concatenate)
    app.command("rm")(remove)
    app.command("stat")(show_status)
    app.command("mkdir")(make_directory)
    app.command("mv")(move)
    app.command("du")(disk_usage)


def remote_path(text: str) -> str:
    """``fs3:/a`` and ``/a`` are ``/a``; Fs3Error INVALID for a path that is not absolute."""
    path = text.removeprefix(SCHEME)
    if not path.startswith("/"):
        raise Fs3Error(Code.INVALID, f"{text!r} is not a path in fs3; /name or fs3:/name is")
    return path


def _type_bits(found: os.stat_result) -> int:
    return stat_bits.S_IFMT(found.st_mode)


def list_directory(
    path: PathArgument = "/",
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    long: Annotated[bool, typer.Option("--long", "-l", help="Mode, owner, size, time.")] = False,
) -> None:
    """List a directory, or name a file.

    \b
    Examples:
      fs3 ls /
      fs3 ls -l fs3:/dataset
    """
    path = remote_path(path)
    with locate(directory, address, cluster_id).client() as client:
        is_directory = stat_bits.S_ISDIR(client.stat(path).st_mode)
        names = sorted(client.listdir(path)) if is_directory else [path]
        if not long:
            for name in names:
                typer.echo(name)
            return
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "right", "right", "right", "left", "left"):
            table.add_column(justify=justify, no_wrap=True)
        for name in names:
            full = str(PurePosixPath(path, name)) if is_directory else name
            table.add_row(*_long_line(client, full, name))
        Console(soft_wrap=True).print(table, markup=False)


def _long_line(client: Client, path: str, name: str) -> list[str]:
    found = client.lstat(path)
    modified = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.st_mtime))
    if stat_bits.S_ISLNK(found.st_mode):
        name = f"{name} -> {client.readlink(path)}"
    numbers = [str(n) for n in (found.st_nlink, found.st_uid, found.st_gid, found.st_size)]
    return [stat_bits.filemode(found.st_mode), *numbers, modified, name]


def copy(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE... TARGET", help="Local paths, or `fs3:/path`."),
    ],
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories, too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Copy files between this machine and fs3, or within fs3. Modes and times come along.

    \b
    Examples:
      fs3 cp model.bin fs3:/models/
      fs3 cp -r fs3:/dataset ./dataset
    """
    from .copying import Copier

    if len(paths) < 2:
        raise typer.BadParameter("a source and a target are needed")
    if not any(path.startswith(SCHEME) for path in paths):
        raise typer.BadParameter("no path starts with `fs3:`; use cp for local files")
    with locate(directory, address, cluster_id).client() as client:
        copier = Copier(client, recursive=recursive, show_progress=not quiet)
        copier.copy(paths[:-1], paths[-1])


def concatenate(
    paths: PathsArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Write files to standard output.

    \b
    Example:  fs3 cat /logs/today.txt | tail
    """
    with locate(directory, address, cluster_id).client() as client:
        for path in paths:
            with client.open(remote_path(path), "rb") as file:
                while data := file.read(_CAT_BYTES):
                    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def remove(
    paths: PathsArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Directories with all that is in them.")
    ] = False,
) -> None:
    """Remove files, symlinks and, with -r, directories.

    \b
    Example:  fs3 rm -r /scratch
    """
    chosen = [remote_path(path) for path in paths]
    for path in chosen:
        if posixpath.normpath(path).strip("/") == "":
            raise Fs3Error(Code.INVALID, f"{path} is all there is; name what is to go, or a folder")
    with locate(directory, address, cluster_id).client() as client:
        for path in chosen:
            if not stat_bits.S_ISDIR(client.lstat(path).st_mode):
                client.unlink(path)
            elif recursive:
                client.rmtree(path)
            else:
                raise Fs3Error(Code.IS_DIRECTORY, f"{path} is a directory; -r removes those")


def show_status(
    paths: PathsArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Show what fs3 knows about a file: kind, size, owner, times.

    \b
    Example:  fs3 stat /models/model.bin
    """
    with locate(directory, address, cluster_id).client() as client:
        for path in map(remote_path, paths):
            found = client.lstat(path)
            table = Table.grid(padding=(0, 2))
            for key, value in _facts(path, found):
                table.add_row(key, value)
            Console(soft_wrap=True).print(table, markup=False, highlight=False)


def _facts(path: str, found: os.stat_result) -> list[tuple[str, str]]:
    def moment(seconds: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))

    return [
        ("path", path),
        ("kind", _KINDS.get(_type_bits(found), "unknown")),
        ("size", f"{found.st_size} bytes ({human_bytes(found.st_size)})"),
        ("inode", str(found.st_ino)),
        ("links", str(found.st_nlink)),
        ("mode", f"{stat_bits.filemode(found.st_mode)} ({found.st_mode & 0o7777:04o})"),
        ("owner", f"uid {found.st_uid}, gid {found.st_gid}"),
        ("accessed", moment(found.st_atime)),
        ("modified", moment(found.st_mtime)),
        ("changed", moment(found.st_ctime)),
    ]


def make_directory(
    paths: PathsArgument,
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="Missing parents, too; no error if it exists.")
    ] = False,
) -> None:
    """Make directories.

    \b
    Example:  fs3 mkdir -p /datasets/2026/tokens
    """
    with locate(directory, address, cluster_id).client() as client:
        for path in map(remote_path, paths):
            if parents:
                client.makedirs(path, exist_ok=True)
            else:
                client.mkdir(path)


def move(
    paths: Annotated[
        list[str], typer.Argument(metavar="SOURCE... TARGET", help="Absolute paths in fs3.")
    ],
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Rename files, or move them into a directory.

    A file in the way is replaced.

    \b
    Examples:
      fs3 mv /a.txt /b.txt
      fs3 mv /a.txt /b.txt /folder
    """
    if len(paths) < 2:
        raise typer.BadParameter("a source and a target are needed")
    *sources, target = map(remote_path, paths)
    with locate(directory, address, cluster_id).client() as client:
        into = client.isdir(target)
        if len(sources) > 1 and not into:
            raise Fs3Error(Code.NOT_DIRECTORY, f"{target}: not a directory, but several sources")
        for source in sources:
            name = PurePosixPath(source).name
            client.rename(source, str(PurePosixPath(target, name)) if into else target)


def disk_usage(
    path: PathArgument = "/",
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Count files, directories and bytes below a path.

    Bytes are the lengths of the files: replicas count once.

    \b
    Example:  fs3 du /datasets
    """
    path = remote_path(path)
    with locate(directory, address, cluster_id).client() as client:
        found = client.lstat(path)
        if not stat_bits.S_ISDIR(found.st_mode):
            files, directories, total_bytes = 1, 0, found.st_size
        else:
            files = directories = total_bytes = 0
            for parent, below, names in client.walk(path):
                directories += len(below)
                files += len(names)
                total_bytes += sum(
                    client.lstat(str(PurePosixPath(parent, name))).st_size for name in names
                )
    typer.echo(
        f"{human_bytes(total_bytes)} ({total_bytes:,} bytes) in {files:,} files,"
        f" {directories:,} directories: {path}"
    )
