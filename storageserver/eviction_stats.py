"""What the KV cache does on a target, as StorageControl tells it."""

from __future__ import annotations

from fs3.proto import storage_pb2 as pb

from .target import Target


def stats_of(target: Target, namespace: int) -> list[pb.KvStats]:
    """A row per namespace (0: every one) that the target has to do with. Reactor thread only."""
    values, core = target.values, target.core
    owners = [namespace] if namespace else sorted({*values.recency, *values.counts})
    now_ms = values.now_ms
    rows = []
    for owner in owners:
        if owner not in values.recency and owner not in values.counts:
            continue
        recency, counts = values.recency[owner], values.counts[owner]
        row = pb.KvStats(
            target=target.target,
            chain=target.chain.chain if target.chain is not None else 0,
            namespace=owner,
            head=core is not None and core.place.is_head,
            values=len(recency),
            used_bytes=recency.used_bytes,
            pinned=recency.pinned(now_ms),
            oldest_ms=max(0, now_ms - recency.oldest_ms()) if len(recency) else 0,
        )
        for name in type(counts).__dataclass_fields__:
            setattr(row, name, getattr(counts, name))
        rows.append(row)
    return rows
