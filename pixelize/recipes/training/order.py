"""Data order and randomness as pure functions of (seed, step): resuming needs no state, and processes need
not talk.

Sample number p of the whole training is sample ``permutation(seed, epoch)[p mod n]`` of epoch ``p // n``.
Micro-batch m of the run holds the numbers ``m G .. (m + 1) G - 1``, G being the samples of all processes
together, and process r takes the r-th equal slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

Sample = tuple[int, int]
"""(epoch, index): a dataset of :mod:`pixelize.recipes` is asked for this, so that its augmentation is a
function of both.
"""


def mixed(*numbers: int) -> int:
    """A 63-bit number drawn from ``numbers`` (not negative): neighbours give unrelated ones, as seeds should
    be.
    """
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded with :func:`mixed`."""
    return torch.Generator().manual_seed(mixed(*numbers))


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> list[int]:
    """The order of ``n`` samples in one epoch."""
    return torch.randperm(n, generator=generator(seed, 1, epoch)).tolist()


def samples(seed: int, first: int, count: int, n: int) -> list[Sample]:
    """Samples number ``first`` to ``first + count - 1`` of a run over ``n`` samples; an epoch's end may fall
    inside.
    """
    places = []
    for p in range(first, first + count):
        epoch = p // n
        places.append((epoch, permutation(seed, epoch, n)[p % n]))
    return places


class StepBatches(Sampler[list[Sample]]):
    """This process's part of every micro-batch from number ``start`` to ``stop`` - 1.

    Args:
        n: samples in the dataset.
        size: samples in a micro-batch, over all ``processes`` together (a multiple of them).
    """

    def __init__(
        self, n: int, size: int, start: int, stop: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.n, self.size, self.start, self.stop, self.seed = n, size, start, stop, seed
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Sample]]:
        own = self.size // self.processes
        for m in range(self.start, self.stop):
            yield samples(self.seed, m * self.size + self.rank * own, own, self.n)


def noise(shape: tuple[int, ...], seed: int, step: int, rank: int = 0, processes: int = 1) -> Tensor:
    """This process's slice of a standard normal ``(processes * shape[0], *shape[1:])`` that belongs to (seed,
    step): CPU, float32.
    """
    whole = torch.randn(processes * shape[0], *shape[1:], generator=generator(seed, 2, step))
    return whole[rank * shape[0] : (rank + 1) * shape[0]]
