"""One client per cluster and process, for adapters whose objects are many and are pickled.

A pickled file system or data set carries only where its cluster is. Wherever it comes to life, in a
thread, a forked child or a spawned one, it asks here, and shares the client that is there. Clients
survive a fork by themselves. They end with the process.
"""

from __future__ import annotations

import os
import threading
from typing import TypeAlias

from .api import Client, connect

Address: TypeAlias = "str | os.PathLike[str] | None"
URL_PREFIX = "fs3://"

_clients: dict[tuple[str, str | None], Client] = {}
_lock = threading.Lock()


def shared_client(address: Address = None, cluster_id: str | None = None) -> Client:
    """The process's client of the cluster at ``address``; see :func:`fs3.connect` for both.

    Not to be closed by who gets it; if somebody did, the next caller gets a new one.
    """
    where = os.fspath(address) if address is not None else os.environ.get("FS3_ADDRESS", "")
    with _lock:
        client = _clients.get((where, cluster_id))
        if client is None or client.context.closed:
            client = connect(where, cluster_id=cluster_id)
            _clients[where, cluster_id] = client
        return client


def close_shared_clients() -> None:
    """Disconnect them all; they end by themselves with the process."""
    with _lock:
        clients = list(_clients.values())
        _clients.clear()
    for client in clients:
        client.close()


def split_url(url: str) -> tuple[str, str]:
    """Address ("" if none) and path: ``fs3://host:port/path``, ``fs3:///path``, ``fs3:/path``."""
    if not url.startswith(URL_PREFIX):
        return "", url.removeprefix("fs3:")
    address, slash, path = url[len(URL_PREFIX) :].partition("/")
    if ":" in address:
        return address, slash + path
    return "", address + slash + path  # some put the prefix before a path without its first slash


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)
