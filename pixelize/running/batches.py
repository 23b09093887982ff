"""Data of any shape as chunks of a few samples, so that there is something to hold back of any data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

CHUNK = 32
"""Samples in a chunk at most."""


class Chunks:
    """An iterable of inputs as chunks of a few samples each, so that there is something to hold back of any
    data."""

    def __init__(self, data: Iterable[Any] | Tensor) -> None:
        once = isinstance(data, Iterator)
        self.batches: Iterable[Any] = [data] if isinstance(data, Tensor) else list(data) if once else data

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            size = samples_of(batch)
            step = min(CHUNK, max(1, -(-size // 4)))
            for n in range(0, size, step):
                yield selected(batch, slice(n, n + step), size)


def samples_of(batch: Any) -> int:
    values = (
        batch.values()
        if isinstance(batch, Mapping)
        else batch
        if isinstance(batch, tuple | list)
        else [batch]
    )
    return next((len(v) for v in values if isinstance(v, Tensor) and v.dim()), 1)


def selected(batch: Any, part: slice | Tensor, size: int) -> Any:
    """The samples ``part`` of a batch of ``size``."""

    def cut(v: Any) -> Any:
        return v[part] if isinstance(v, Tensor) and v.dim() and len(v) == size else v

    if isinstance(batch, Mapping):
        return {k: cut(v) for k, v in batch.items()}
    return type(batch)(cut(v) for v in batch) if type(batch) in (tuple, list) else cut(batch)
