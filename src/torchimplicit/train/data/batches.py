"""Batches that can be resumed: their order and random numbers follow from the seed, the epoch and their place alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from torchimplicit.train.seeds import seed_of


class Order(DistributedSampler):
    """The shuffled order of an epoch, of one process, from where training stands.

    Args:
        dataset: whose indices.
        processes: how many share them.
        rank: of this process.
        seed: of the shuffling.
        batch_size: samples a batch.
        done: how many batches of the epoch are behind; asked when the epoch's first batch is fetched.
    """

    def __init__(
        self, dataset: Dataset, processes: int, rank: int, seed: int, batch_size: int, done: Callable[[], int]
    ):
        """Shuffles nothing yet."""
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed)
        self.batch_size, self.done = batch_size, done

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.done() * self.batch_size, None)


class Batches(DataLoader):
    """Loads in an `Order`; random numbers that the data set draws from torch belong to the batch's place.

    Where processes fetch the batches, the data set draws in `finish(batch) -> batch`, which is called in this one: the
    same numbers, however many processes there are. Torch's generator is left as it was. Lightning is told that this
    loader can be resumed, as it can: there is no state to save.
    """

    sampler: Order

    def __iter__(self) -> Any:
        order, finish = self.sampler, getattr(self.dataset, "finish", None)
        with torch.random.fork_rng(devices=()):  # not before the first batch is asked for: processes fetch from here on
            batches = super().__iter__()
        for place in count(order.done()):
            with torch.random.fork_rng(devices=()):
                torch.default_generator.manual_seed(seed_of("data", order.seed, order.epoch, order.rank, place))
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                batch = batch if finish is None else finish(batch)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `Order` asks the trainer how many batches are done."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""
