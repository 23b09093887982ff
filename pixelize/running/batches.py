"""Data of any shape: read as often as need be, in chunks of a few samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from pixelize.errors import ArgumentError, PixelizeWarning

MOST_SAMPLES, MOST_BYTES = 2**14, 2**30
"""What is read, in samples and in bytes, of data that may have no end."""


def rereadable(
    data: Iterable[Any] | Tensor, most_samples: int = MOST_SAMPLES, most_bytes: int = MOST_BYTES
) -> Iterable[Any]:
    """``data`` as something that can be iterated again and again: its batches, each time from the first on.

    - A tensor or array is one batch.
    - What can be indexed (a list, a Dataset) and a DataLoader of such is read as often as it is asked for:
      memory does not grow with it.
    - Anything else (a generator, a stream) may give its batches but once, and may have no end. The first
      ``most_samples`` samples or ``most_bytes`` bytes of it are read, whichever comes first; a
      PixelizeWarning tells of what is left unread. They are kept until a second pass over the data gives
      batches anew.

    Raises ArgumentError for what is no data.
    """
    data = batches(data)
    indexed = hasattr(data, "__getitem__") and _has_length(data)
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        indexed = _has_length(data)  # an endless sampler has none
    return data if indexed or isinstance(data, _Indexed) else _Stream(data, most_samples, most_bytes)


def batches(data: Iterable[Any] | Tensor) -> Iterable[Any]:
    """``data`` as an iterable of batches; a tensor or array is one. Raises ArgumentError for what is none."""
    if isinstance(data, Tensor | np.ndarray):
        return [torch.as_tensor(data)]
    indexed = hasattr(data, "__getitem__") and _has_length(data)
    if isinstance(data, str | bytes | Mapping) or not (indexed or isinstance(data, Iterable)):
        raise ArgumentError(
            f"data is a {type(data).__name__}; pass a list, a DataLoader or another iterable of inputs "
            "(a tensor, tuple or dict each). One input alone goes into a list: [inputs]"
        )
    return data if isinstance(data, Iterable) else _Indexed(data)


class _Indexed:
    """A Dataset: it has a length, and need not say itself where it ends."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return map(self.data.__getitem__, range(len(self)))


class _Stream:
    """Data of which it is not known whether it ends and whether it can be read again."""

    def __init__(self, data: Iterable[Any], most_samples: int, most_bytes: int) -> None:
        self.data, self.source = data, iter(data)
        self.most_samples, self.most_bytes = most_samples, most_bytes
        self.kept: list[Any] = []
        self.samples = self.bytes = self.batches = 0
        self.over = False  # the first pass is

    def __iter__(self) -> Iterator[Any]:
        if not self.over:
            yield from self._first_pass()
            return
        again = iter(self.data)
        for n, batch in enumerate(again if again is not self.data else ()):
            if n == self.batches:
                return
            self.kept.clear()
            yield batch
        yield from self.kept

    def _first_pass(self) -> Iterator[Any]:
        """What earlier readers left off after, kept, and then the rest."""
        place = 0
        while place < len(self.kept) or self._read():
            yield self.kept[place]
            place += 1

    def _read(self) -> bool:
        """One batch more; False at the end or the limit."""
        for batch in () if self.over else self.source:
            if self.samples >= self.most_samples or self.bytes >= self.most_bytes:
                warnings.warn(
                    f"of the data the first {self.samples} samples are read ({self.bytes / 2**20:.0f} MiB): "
                    "it can be read but once or may have no end. A list, Dataset or DataLoader is read whole",
                    PixelizeWarning,
                    stacklevel=2,
                )
                break
            self.kept.append(batch)
            self.batches += 1
            self.samples += samples_of(batch)
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
            return True
        self.over = True
        return False


def _has_length(data: Any) -> bool:
    try:
        return len(data) >= 0
    except TypeError:
        return False


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
