"""Rings, under the names that 3FS gave them."""

from fs3.client.adapters.hf3fs import *  # noqa: F403 - what __all__ there lists
from fs3.client.adapters.hf3fs import __all__ as __all__
