"""Names on fs3 as fsspec deals with them: URLs, attributes, listings, making, moving, removing."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from fs3.client.shared_clients import URL_PREFIX, Address, shared_client, split_url

if TYPE_CHECKING:
    from fs3.client.api import Client

T = TypeVar("T")


class Fs3Names(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The part of :class:`Fs3FileSystem` that moves no data."""

    protocol = "fs3"
    root_marker = "/"

    def __init__(
        self,
        address: Address = None,
        cluster_id: str | None = None,
        auto_mkdir: bool = True,
        **storage_options: Any,
    ) -> None:
        """``address`` and ``cluster_id`` are those of :func:`fs3.connect`."""
        super().__init__(**storage_options)
        self.address = address
        self.cluster_id = cluster_id
        self.auto_mkdir = auto_mkdir

    @property
    def client(self) -> Client:
        """The native client, shared by all of this process."""
        return shared_client(self.address, self.cluster_id)

    @property
    def fsid(self) -> str:
        """Names the cluster."""
        return f"fs3_{self.client.cluster_id}"

    # -- names -----------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return "/" + split_url(stringify_path(path))[1].strip("/")

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path; with the address, if this file system was given one as host:port."""
        address = os.fspath(self.address) if self.address is not None else ""
        host = address if ":" in address and "/" not in address else ""
        return f"{URL_PREFIX}{host}{self._strip_protocol(name)}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        address = split_url(stringify_path(path))[0]
        return {"address": address} if address else {}

    @classmethod
    def _parent(cls, path: str) -> str:
        plain: str = cls._strip_protocol(path)
        return posixpath.dirname(plain)

    # -- looking ---------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """name, size (bytes), type, mtime and created (seconds), mode, uid, gid, ino, nlink.

        Symbolic links are followed; ``islink`` and ``destination`` tell of one. fs3 does not keep
        when a file was made: ``created`` is when its attributes changed last.
        """
        path = self._strip_protocol(path)
        found = self.client.lstat(path)
        link = stat.S_ISLNK(found.st_mode)
        info = _info(path, self.client.stat(path) if link else found, link)
        if link:
            info["destination"] = self.client.readlink(path)
        return info

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a directory, or of a file itself; ``detail``: as :meth:`info` has them.

        A symbolic link to a directory, or to nowhere, is of the type "other", so that a walk ends.
        """
        path = self._strip_protocol(path)
        try:
            if not detail:
                return [posixpath.join(path, name) for name in self.client.listdir(path)]
            infos = []
            for entry in self.client.scandir(path):
                info = _info(entry.path, entry.stat(), entry.is_symlink())
                if info["islink"]:
                    self._follow(info)
                infos.append(info)
        except NotADirectoryError:
            info = self.info(path)
            return [info if detail else info["name"]]
        else:
            return infos

    def _follow(self, info: dict[str, Any]) -> None:
        info["destination"] = self.client.readlink(info["name"])
        try:
            target = self.client.stat(info["name"])
        except OSError:
            return
        info["size"] = target.st_size
        if stat.S_ISREG(target.st_mode):
            info["type"] = "file"

    def exists(self, path: str, **_: Any) -> bool:
        """Does it lead anywhere?"""
        return self.client.exists(self._strip_protocol(path))

    def lexists(self, path: str, **_: Any) -> bool:
        """The same, of a symbolic link itself."""
        path = self._strip_protocol(path)
        return self.client.islink(path) or self.client.exists(path)

    def isfile(self, path: str) -> bool:
        """Does it lead to a regular file?"""
        return self.client.isfile(self._strip_protocol(path))

    def isdir(self, path: str) -> bool:
        """Does it lead to a directory?"""
        return self.client.isdir(self._strip_protocol(path))

    def islink(self, path: str) -> bool:
        """Is it a symbolic link itself?"""
        return self.client.islink(self._strip_protocol(path))

    def created(self, path: str) -> datetime:
        """When the attributes changed last: see :meth:`info`."""
        return datetime.fromtimestamp(self.info(path)["created"], tz=UTC)

    def modified(self, path: str) -> datetime:
        """When the content changed last."""
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def ukey(self, path: str) -> str:
        """Changes whenever the content does, also twice within one tick of a clock."""
        inode = self.client.inode(self._strip_protocol(path))
        key = f"{self.client.cluster_id} {inode.inode} {inode.version} {inode.length_bytes}"
        return hashlib.sha256(key.encode()).hexdigest()

    def checksum(self, path: str) -> int:
        """:meth:`ukey` as a number; not a checksum of the bytes."""
        return int(self.ukey(path)[:32], 16)

    # -- names that come and go ------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Make a directory that does not exist yet."""
        path = self._strip_protocol(path)
        if create_parents:
            self.client.makedirs(path)
        else:
            self.client.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing."""
        self.client.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self.client.rmdir(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        """Remove one name, also that of an empty directory."""
        path = self._strip_protocol(path)
        try:
            self.client.unlink(path)
        except IsADirectoryError:
            self.client.rmdir(path)

    _rm = rm_file

    def rm(
        self,
        path: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
    ) -> None:
        """Remove files and, if ``recursive``, directories with all that is in them."""
        if not recursive or maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        for one in self.expand_path(path):
            if self.isdir(one) and not self.islink(one):
                self.client.rmtree(one)
            else:
                self.client.unlink(one)

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **_: Any,
    ) -> None:
        """Move a file or a directory in one step; into ``path2`` if that is a directory."""
        if isinstance(path1, list) or not self.exists(path1) or maxdepth is not None:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            return
        if str(path2).endswith("/") or self.client.isdir(target):
            target = posixpath.join(target, posixpath.basename(source))
        self._with_parents(target, lambda: self.client.rename(source, target))

    def _with_parents(self, path: str, make: Callable[[], T]) -> T:
        """Make the directories above ``path`` if it turns out that they are missing."""
        try:
            return make()
        except FileNotFoundError:
            if not self.auto_mkdir:
                raise
        self.client.makedirs(self._parent(path), exist_ok=True)
        return make()


def _info(path: str, found: os.stat_result, link: bool) -> dict[str, Any]:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}
    return {
        "name": path,
        "size": found.st_size,
        "type": kinds.get(stat.S_IFMT(found.st_mode), "other"),
        "created": found.st_ctime,
        "mtime": found.st_mtime,
        "mode": found.st_mode,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "ino": found.st_ino,
        "nlink": found.st_nlink,
        "islink": link,
    }
