"""PyTorch's DataLoader with a global shuffle and a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.utils.data

from fs3.client.records.shuffle import Remainder, ShuffledSampler
from fs3.errors import Code, Fs3Error


class ResumableLoader:
    """Batches of one epoch per iteration, in an order that seed and epoch fix.

    :meth:`state_dict` says which batches were handed out, whatever workers have fetched ahead; an
    iteration goes on after them, in this process or in another one that has loaded the state, also
    when the number of ranks, of workers or the size of batches is another.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        remainder: str = Remainder.KEEP,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        """``dataset`` needs a length; ``options`` are the DataLoader's: num_workers,
        multiprocessing_context, collate_fn, prefetch_factor, pin_memory and others. ``remainder``:
        what becomes of samples that do not go round all ranks: keep, drop, repeat."""
        taken = {"sampler", "batch_sampler"} & set(options)
        if taken:
            raise Fs3Error(Code.INVALID, f"{', '.join(taken)}: the loader has its own")
        self.sampler = ShuffledSampler(
            len(dataset), seed=seed, rank=rank, ranks=ranks, shuffle=shuffle, remainder=remainder
        )
        self.batch_size = batch_size
        self._state = self.sampler.state_dict()
        if options.get("num_workers"):
            options.setdefault("persistent_workers", True)
        self.loader = torch.utils.data.DataLoader(
            dataset, batch_size, sampler=self.sampler, drop_last=drop_last, **options
        )

    def __len__(self) -> int:
        """Batches from where it is to the end of the epoch."""
        self.sampler.load_state_dict(self._state)
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.sampler.load_state_dict(self._state)
        self._state = self.sampler.state_dict()  # the next epoch, if nothing was left of this one
        epoch, count = self._state["epoch"], len(self.sampler)
        start, ranks = self._state["position"], self.sampler.ranks
        for done, batch in enumerate(self.loader, 1):
            taken = min(done * self.batch_size, count)
            position = min(start + taken * ranks, self.sampler.length)
            self._state = {**self._state, "position": position}
            yield batch
        self._state = {**self._state, "epoch": epoch + 1, "position": 0}

    def set_epoch(self, epoch: int) -> None:
        """Go on at the start of this epoch."""
        self._state = {**self._state, "epoch": epoch, "position": 0}

    def state_dict(self) -> dict[str, Any]:
        """Where it is: epoch, position, and what the order follows from."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there. Fs3Error INVALID if it is of other samples or another seed."""
        self.sampler.load_state_dict(state)
        self._state = dict(state)
