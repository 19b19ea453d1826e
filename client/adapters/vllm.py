"""A secondary tier of vLLM's KV offloading on fs3: from its CPU tier to the cache and back.

In vLLM's configuration::

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
      "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": ...,
        "secondary_tiers": [{"type": "Fs3Tier", "module_path": "fs3.client.adapters.vllm",
                             "address": "10.0.0.1:7000", "namespace": "kv"}]}}'

A chunk is one value, sent from and received into vLLM's CPU cache. Its key says model, layout,
dtype and rank as vLLM's own file tier has it. Everything is called from vLLM's scheduler, so none
of it waits for storage: jobs are calls of a few threads, and end with the keys that were served.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.file_mapper import FileMapper
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobId, JobResult, SecondaryTierManager, TransferJob

from fs3.client.kvcache import KVCache
from fs3.client.shared_clients import shared_client

from .batched_calls import BatchedCalls, Ended

DEADLINE_S = 5.0
_THREADS = 4


class _Job(NamedTuple):
    job: JobId
    keys: list[OffloadKey]
    is_load: bool
    began_s: float


class _Lookups(AsyncLookupManager):  # type: ignore[misc]  # vLLM's classes are untyped here
    """vLLM's own bookkeeping of who asked for what; one call of the cache per engine step."""

    def __init__(self, tier_type: str, kv: KVCache, prefix: bytes) -> None:
        self._kv = kv
        self._prefix = prefix
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        """Which are there."""
        found: list[bool] = self._kv.exists([self._prefix + key for key in keys]).tolist()
        return found


class Fs3Tier(SecondaryTierManager):  # type: ignore[misc]
    """One scheduler's connection to a namespace of an fs3 cluster."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        address: str | None = None,
        namespace: str = "kv",
        cluster_id: str | None = None,
        deadline_s: float = DEADLINE_S,
        threads: int = _THREADS,
        backpressure_detector: Any = None,
    ) -> None:
        """``primary_kv_view``: vLLM's CPU cache, a row for each chunk. Fs3Error if there is no such
        cluster or namespace."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self._prefix = _prefix(offloading_spec)
        client = shared_client(address, cluster_id)
        self._kv = KVCache(client, namespace, deadline_s=deadline_s)
        self._calls = BatchedCalls(threads)
        self._lookups = _Lookups(tier_type, self._kv, self._prefix)
        self._jobs: dict[int, _Job] = {}
        self._done: list[JobResult] = []

    # -- is it there? ----------------------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Chunks as vLLM would have it."""
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """RETRY until the cache has answered, in the background."""
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Ask for what was looked up in this step."""
        self._lookups.flush()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """Forget what it asked for."""
        self._lookups.cleanup(req_context.req_id)

    # -- jobs ------------------------------------------------------------------------------------

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Begin to store chunks of vLLM's CPU cache."""
        self._submit(self._kv.put_from, job_metadata, is_load=False)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Begin to fill chunks of vLLM's CPU cache."""
        self._submit(self._load, job_metadata, is_load=True)

    def _submit(self, call: Any, job: TransferJob, *, is_load: bool) -> None:
        keys = list(job.keys)
        rows = [self._row(int(chunk)) for chunk in job.chunk_ids]
        number = self._calls.submit(call, [self._prefix + key for key in keys], rows)
        self._jobs[number] = _Job(job.job_id, keys, is_load, time.monotonic())

    def _row(self, chunk: int) -> memoryview:
        # Of two dimensions, and memoryview has no row: by bytes.
        start = chunk * self.block_size_bytes
        rows: memoryview = self._primary_kv_view.cast("B")
        return rows[start : start + self.block_size_bytes]

    def _load(self, names: list[bytes], rows: Sequence[memoryview]) -> Any:
        return self._kv.get_into(names, rows) == self.block_size_bytes

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """What has ended since the last time; which of a job's keys were served."""
        self._collect()
        done, self._done = self._done, []
        return done

    def _collect(self) -> None:
        self._done += [self._result(ended) for ended in self._calls.take()]

    def _result(self, ended: Ended) -> JobResult:
        job = self._jobs.pop(ended.number)
        served = [False] * len(job.keys) if ended.error is not None else ended.result.tolist()
        whole = all(served)
        if job.is_load and not whole:
            # They were there when they were looked up, and are not any more.
            self._lookups.mark_miss([k for k, ok in zip(job.keys, served, strict=True) if not ok])
        kept = tuple(key for key, ok in zip(job.keys, served, strict=True) if ok)
        return JobResult(
            job_id=job.job,
            success=whole,
            successful_keys=kept if job.is_load and not whole else None,
            transfer_time=time.monotonic() - job.began_s,
            transfer_bytes=sum(served) * self.block_size_bytes,
        )

    def has_pending_work(self) -> bool:
        """Whether a job is under way, or its end has not been told."""
        return bool(self._jobs or self._done)

    def drain_jobs(self) -> None:
        """Wait until no job touches vLLM's memory. Each ends within its deadline."""
        ready = select.poll()
        ready.register(self._calls.fileno(), select.POLLIN)
        self._collect()
        while self._jobs:
            ready.poll()
            self._collect()

    def shutdown(self) -> None:
        """Wait for what is under way, and let go of the cluster."""
        self._lookups.shutdown()
        self._calls.close()
        self._kv.close()


def _prefix(offloading_spec: Any) -> bytes:
    """What all keys begin with: vLLM's own fingerprint of what decides a chunk's bytes."""
    mapper = FileMapper.from_offloading_spec(
        root_dir="vllm",
        offloading_spec=offloading_spec,
        blocks_per_file=offloading_spec.blocks_per_chunk,
        parallel_agnostic=True,
    )
    return os.fsencode(f"{mapper.base_path}_r{mapper.rank}|")
