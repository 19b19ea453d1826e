"""The configuration files of a local cluster's daemons.

Daemons are other programs: what is written here is what an operator would write, and they check it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from .cluster_directory import ClusterDirectory, NodeSpecification, Specification

Value = str | int | float | bool | list[str]
Extra = Mapping[str, Value | Mapping[str, Value]]
"""Settings beyond the necessary, a mapping for a section; they win over ours."""

_HEADER = "# Written by `fs3 up`, once. Changes count from the daemon's next start.\n"


def _toml(values: Extra, prefix: str = "") -> str:
    """Keys, then sections. JSON's strings, numbers, booleans and lists of strings are TOML's."""
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
    for key, section in values.items():
        if isinstance(section, Mapping):
            text += f"\n[{prefix}{key}]\n" + _toml(section)
    return text


def metaserver_config(cluster: ClusterDirectory, specification: Specification, extra: Extra) -> str:
    """``metaserver/config.toml``."""
    ours: Extra = {
        "cluster_id": specification.cluster_id,
        "data_dir": str(cluster.metaserver / "data"),
        "listen": specification.metaserver_frame_address,
        "grpc_listen": specification.metaserver_grpc_address,
    }
    return _HEADER + _toml({**ours, **extra})


def storageserver_config(
    cluster: ClusterDirectory,
    specification: Specification,
    node: NodeSpecification,
    capacity_bytes: int,
    extra: Extra,
) -> str:
    """``node-N/config.toml``; each target may use ``capacity_bytes``."""
    ours: Extra = {
        "cluster_id": specification.cluster_id,
        "node_id": node.node,
        "host": node.host,
        "listen": node.data_address,
        "grpc_listen": node.control_address,
        "metaservers": [specification.metaserver_grpc_address],
    }
    text = _HEADER + _toml({**ours, **extra})
    for target in (*node.targets, *node.kv_targets):
        path = str(cluster.node(node.node) / f"target-{target}")
        text += f"\n[[targets]]\nid = {target}\npath = {json.dumps(path)}\n"
        text += f"capacity_bytes = {capacity_bytes}\n"
    return text
