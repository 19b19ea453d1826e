"""Whose chunks a target's directory holds: ``identity.json``, beside the chunk store.

    {"format": 1, "cluster": "prod", "target": 101, "chain": 7}

Cluster and target are written when the directory is made, and a storageserver that is told
otherwise does not start: a disk in the wrong slot must not be taken for another. ``chain`` 0: none
yet, or its chunks are being removed. It is on stable storage before the target takes any part in
that chain.
"""

from __future__ import annotations

import json
from pathlib import Path

from fs3 import durable
from fs3.core.types import ChainId, TargetId
from fs3.errors import Code, Fs3Error

FILE = "identity.json"
FORMAT = 1
_STORE_FILES = ("records", "blocks.*")


class Identity:
    """The file. One thread at a time, under the directory's lock."""

    def __init__(self, root: Path, cluster_id: str, target: TargetId) -> None:
        """Read it, make it if the directory is new.

        Fs3Error WRONG_CLUSTER or INVALID if the directory is somebody else's, CORRUPT or
        UNSUPPORTED if that cannot be told.
        """
        self._root = root
        self._cluster_id = cluster_id
        self._target = target
        self.chain = ChainId(0)
        try:
            text = (root / FILE).read_text()
        except FileNotFoundError:
            if any(next(root.glob(name), None) for name in _STORE_FILES):
                detail = f"{root} holds a chunk store, but no {FILE} that says whose"
                raise Fs3Error(Code.CORRUPT, detail) from None
            self.bind(ChainId(0))
        else:
            self.chain = self._check(text)

    def _check(self, text: str) -> ChainId:
        try:
            found = json.loads(text)
            version, cluster = found["format"], found["cluster"]
            target, chain = int(found["target"]), int(found["chain"])
        except (ValueError, KeyError, TypeError) as error:
            detail = f"{self._root / FILE} says nothing that makes sense: {error!r}"
            raise Fs3Error(Code.CORRUPT, detail) from None
        if version != FORMAT:
            detail = f"{self._root / FILE} is of format {version}; this release reads {FORMAT}"
            raise Fs3Error(Code.UNSUPPORTED, detail)
        if cluster != self._cluster_id:
            detail = f"{self._root} belongs to cluster {cluster!r}, not to {self._cluster_id!r}"
            raise Fs3Error(Code.WRONG_CLUSTER, detail)
        if target != self._target:
            detail = f"{self._root} is the directory of target {target}, not of {self._target}"
            raise Fs3Error(Code.INVALID, detail)
        return ChainId(chain)

    def bind(self, chain: ChainId) -> None:
        """From now on its chunks are those of ``chain``: on stable storage. Fs3Error DISK."""
        fields = {
            "format": FORMAT,
            "cluster": self._cluster_id,
            "target": self._target,
            "chain": chain,
        }
        try:
            durable.write_file(self._root / FILE, json.dumps(fields) + "\n")
        except OSError as error:
            raise Fs3Error(Code.DISK, f"{self._root / FILE}: {error.strerror}") from error
        self.chain = chain
