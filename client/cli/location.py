"""Which cluster a command is about: ``--dir`` or ``--address``, or what the environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs3.client.cluster_directory import ClusterDirectory
from fs3.errors import Code, Fs3Error

if TYPE_CHECKING:
    from fs3.client.administration import Administration
    from fs3.client.api import Client
    from fs3.client.local_cluster import LocalCluster

DEFAULT_DIRECTORY = Path("fs3-data")
_METASERVER_TIMEOUT_S = 15.0  # longer than its restart takes, shorter than a person's patience

DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        "-d",
        help="Directory of a local cluster.  [env: FS3_DIR; default: ./fs3-data]",
        show_default=False,
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        help="host:port of a metaserver's frame port, instead of --dir; several with commas."
        "  [env: FS3_ADDRESS]",
        show_default=False,
    ),
]
ClusterIdOption = Annotated[
    str,
    typer.Option(
        "--cluster-id",
        envvar="FS3_CLUSTER_ID",
        help="The cluster's name, with --address; with --dir it is known.",
    ),
]


@dataclass(frozen=True, slots=True)
class Location:
    """A cluster that can be called. ``directory`` is None if it was named by address."""

    addresses: tuple[str, ...]
    cluster_id: str
    directory: ClusterDirectory | None

    @contextmanager
    def administration(self) -> Iterator[Administration]:
        """Calls to its manager and storageservers."""
        from fs3.client.administration import Administration

        with self._explaining(), Administration(self.addresses, self.cluster_id) as calls:
            yield calls

    def client(self) -> Client:
        """A native client."""
        from fs3.client.api import connect

        with self._explaining():
            return connect(
                self.addresses, cluster_id=self.cluster_id, metadata_timeout_s=_METASERVER_TIMEOUT_S
            )

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Of a local cluster that nobody has started there is more to say than that it is away."""
        try:
            yield
        except Fs3Error as error:
            if error.code is not Code.UNREACHABLE or self.directory is None:
                raise
            if local_cluster(self.directory.root).is_running():
                raise
            what = f"the cluster in {self.directory.root} is not running; `fs3 up` starts it"
            raise Fs3Error(error.code, f"{what} ({error.detail})") from error


def directory_of(directory: Path | None) -> Path:
    """The local cluster's directory that is meant."""
    return directory or Path(os.environ.get("FS3_DIR") or DEFAULT_DIRECTORY)


def local_cluster(directory: Path | None) -> LocalCluster:
    """The local cluster that is meant."""
    from fs3.client.local_cluster import LocalCluster

    return LocalCluster(directory_of(directory))


def locate(directory: Path | None, address: str | None, cluster_id: str) -> Location:
    """What is said on the command line wins over the environment, FS3_ADDRESS over FS3_DIR."""
    if directory is not None and address is not None:
        raise Fs3Error(Code.INVALID, "--dir and --address name two clusters; give one of them")
    if directory is None:
        address = address or os.environ.get("FS3_ADDRESS")
    if address is not None:
        if os.path.isdir(address):
            return locate(Path(address), None, cluster_id)
        addresses = tuple(part.strip() for part in address.split(",") if part.strip())
        return Location(addresses, cluster_id, None)
    files = ClusterDirectory.at(directory_of(directory))
    found = files.read()
    return Location((found.metaserver_frame_address,), found.cluster_id, files)
