"""One input of a model, with a batch axis of length 1: a tensor, a tuple or a mapping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Sample = Any
"""One input of the model, with a batch axis of length 1: a tensor, a tuple or a mapping."""


def shape_of(sample: Sample) -> tuple[Any, ...]:
    return tuple(tuple(t.shape) for t in tensors_in(sample))


def image_of(sample: Sample, axes: int) -> Tensor | None:
    """The largest picture (1, C, *size) of so many axes among a sample's tensors, if there is one that can be
    cut."""
    found = [t for t in tensors_in(sample) if t.dim() == axes + 2 and min(t.shape[2:]) >= 16]
    return max(found, key=lambda t: math.prod(t.shape[2:]), default=None)


def tensors_in(sample: Sample) -> Iterator[Tensor]:
    if isinstance(sample, Tensor):
        yield sample
    elif isinstance(sample, Mapping):
        for value in sample.values():
            yield from tensors_in(value)
    elif isinstance(sample, tuple | list):
        for value in sample:
            yield from tensors_in(value)


def mapped(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    if isinstance(sample, Tensor):
        return change(sample)
    if isinstance(sample, Mapping):
        return {k: mapped(v, change) for k, v in sample.items()}
    if type(sample) in (tuple, list):
        return type(sample)(mapped(v, change) for v in sample)
    return sample


def floated(sample: Sample) -> Sample:
    """Half-precision tensors as float32."""
    return mapped(sample, lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)


def together(samples: list[Sample]) -> Any:
    """Samples as one batch."""
    first = samples[0]
    if len(samples) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(samples) if first.dim() and len(first) == 1 else first
    if isinstance(first, Mapping):
        return {k: together([s[k] for s in samples]) for k in first}
    if type(first) in (tuple, list):
        return type(first)(together([s[n] for s in samples]) for n in range(len(first)))
    return first
