"""fs3, a distributed parallel file system for AI.

This is the public face; it re-exports, lazily, what programs use::

    import fs3
    fs = fs3.connect("127.0.0.1:7000")
    with fs.open("/data/tokens.bin", "rb") as file:
        file.readinto(buffer)

Importing ``fs3`` imports neither grpc nor numpy: both come in with the first name used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout the packages fs3.metaserver, fs3.storageserver, fs3.client and fs3.proto stand
# beside this folder, not in it. An installed fs3 maps them; run from the root of a checkout, Python
# finds ./fs3 first, and this makes its neighbours reachable.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from fs3.client.api import Client as Client
    from fs3.client.api import File as File
    from fs3.client.api import connect as connect
    from fs3.client.kvcache import AsyncKVCache as AsyncKVCache
    from fs3.client.kvcache import KVCache as KVCache
    from fs3.errors import Fs3Error as Fs3Error

_EXPORTS = {
    "Client": "fs3.client.api",
    "File": "fs3.client.api",
    "connect": "fs3.client.api",
    "Fs3Error": "fs3.errors",
    "KVCache": "fs3.client.kvcache",
    "AsyncKVCache": "fs3.client.kvcache",
}

__all__ = ["AsyncKVCache", "Client", "File", "Fs3Error", "KVCache", "__version__", "connect"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute may be anything
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'fs3' has no attribute {name!r}") from None
    return getattr(import_module(module), name)
