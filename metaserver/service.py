"""The Metadata service: decode, run one namespace function in one transaction, encode."""

from __future__ import annotations

from .file_handlers import FileHandlers
from .name_handlers import NameHandlers


class MetadataService(NameHandlers, FileHandlers):
    """Every method of proto/metadata.proto, for :class:`fs3.rpc.Handlers`. Any thread may call."""
