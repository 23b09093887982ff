"""What stands once the model has been seen at work, and its pictures of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pixelize.refit.calls import SeenCall
from pixelize.refit.candidates import Candidate
from pixelize.refit.least_change import Batch
from pixelize.refit.limits import RepairLimits
from pixelize.refit.powers import Windows, prominence
from pixelize.refit.runner import Runner
from pixelize.refit.sample import Sample, shape_of
from pixelize.refit.samples import Samples


@dataclass
class Setting:
    """What stands once the model has been seen at work: nothing in here changes from round to round."""

    runner: Runner
    calls: list[SeenCall]
    candidates: list[Candidate]
    windows: Windows
    samples: Samples
    limits: RepairLimits


def batches_of(samples: list[Sample], size: int) -> list[Batch]:
    """All of about one length, at most ``size``."""
    count = max(1, -(-len(samples) // size))
    length = -(-len(samples) // count) if samples else 1
    return [samples[n : n + length] for n in range(0, len(samples), length)]


def one_of_each_shape(samples: list[Sample]) -> list[Sample]:
    """One sample of each shape."""
    return list({shape_of(s): s for s in samples}.values())


def pictures_with(runner: Runner, batches: list[Batch]) -> list[Tensor]:
    with torch.no_grad():
        return [runner(batch).cpu() for batch in batches]


def sound(pictures: list[Tensor], limits: RepairLimits) -> list[bool]:
    """Which pictures are no failures of a generator's: their power at the multiples of 1/2 is not many times
    what is usual. Not for models that pictures go into: smooth ones show more than is usual."""
    if sum(map(len, pictures)) < 16:
        return [True] * sum(map(len, pictures))
    found = torch.cat([prominence(y) for y in pictures])
    usual = found.median(0).values
    return [bool(good) for good in (found <= limits.failure * usual).all(1)]


def mean_square(some: list[Tensor], others: list[Tensor]) -> float:
    """Of the difference of pictures."""
    total = sum((a - b).double().square().sum().item() for a, b in zip(some, others, strict=True))
    return total / sum(a.numel() for a in some)
