"""A map-style data set of records for PyTorch's DataLoader.

``__getitems__`` fetches all samples of a batch in one call: one request per storageserver. In a
worker process their bytes go straight into memory that is shared with the training process; nothing
copies them on the way (:func:`stack`, :func:`ragged`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils.data

from fs3.client.records.format import Kind, decode_sample
from fs3.client.records.reader import Place, Records
from fs3.client.shared_clients import Address
from fs3.errors import Code, Fs3Error

Tensor = Any  # torch is not there where types are checked
Transform = Callable[[Any], Any]


class RecordBatch(list[Any]):
    """The samples of one batch, and the memory that they lie in, back to back."""

    memory: Tensor  # uint8, one dimension
    lengths: list[int]  # bytes, of each record


class RecordDataset:
    """The records of one or many record files. Survives fork and spawn.

    Without a ``transform`` a sample is a uint8 tensor or, if records have parts, a dict of bytes. A
    transform takes the record's memoryview, or a dict of them by part, which are without a copy.
    """

    def __init__(
        self,
        places: Place | Sequence[Place],
        *,
        address: Address = None,
        cluster_id: str | None = None,
        window: int = 1,
        verify: bool | None = None,
        transform: Transform | None = None,
    ) -> None:
        """See :class:`fs3.client.records.reader.Records` for all but ``transform``."""
        self.records = Records(
            places, address=address, cluster_id=cluster_id, window=window, verify=verify
        )
        if window > 1 and self.records.kind is Kind.SAMPLE:
            raise Fs3Error(Code.INVALID, f"window {window} of records that have parts")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> RecordBatch:
        batch = RecordBatch()

        def allocate(size: int) -> memoryview:
            batch.memory = _memory(size)
            return memoryview(batch.memory.numpy())

        views = self.records.read(numbers, allocate)
        batch.lengths = [len(view) for view in views]
        if self.records.kind is Kind.SAMPLE:
            convert = self.transform or _as_bytes
            batch += [convert(decode_sample(view)) for view in views]
        elif self.transform is not None:
            batch += [self.transform(view) for view in views]
        else:
            batch += torch.split(batch.memory, batch.lengths)
        return batch


def _memory(size: int) -> Tensor:
    """In a worker it is shared, so that the batch does not have to be copied to be handed over."""
    shared = getattr(torch.UntypedStorage, "_new_shared", None)
    if shared is None or torch.utils.data.get_worker_info() is None or not size:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(shared(size))


def _as_bytes(sample: dict[str, memoryview]) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in sample.items()}


class stack:
    """Collates records of one length into one tensor, (samples, elements) of ``dtype``; no copy."""

    def __init__(self, dtype: Any = torch.uint8) -> None:
        self.dtype = dtype

    def __call__(self, batch: RecordBatch) -> Tensor:
        if len(set(batch.lengths)) != 1:
            raise Fs3Error(
                Code.INVALID,
                f"records of {min(batch.lengths)} to {max(batch.lengths)} bytes are no tensor;"
                " one length is, or collate them with ragged",
            )
        return batch.memory.view(len(batch), -1).view(self.dtype)


class RaggedBatch(NamedTuple):
    """Record i of the batch is ``values[offsets[i] : offsets[i + 1]]``."""

    values: Tensor  # uint8
    offsets: Tensor  # int64, one more than records


def ragged(batch: RecordBatch) -> RaggedBatch:
    """Collates records of any length, without a copy."""
    offsets = torch.zeros(len(batch) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor(batch.lengths), 0, out=offsets[1:])
    return RaggedBatch(batch.memory, offsets)
