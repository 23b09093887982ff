"""A picture with its mask, and a data set of them: masks checked, resized, flipped by a coin of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pixelize.errors import ArgumentError
from pixelize.recipes.data.files import as_array
from pixelize.recipes.training.order import Sample, generator

IGNORE = 255
"""The class index of pixels that count neither in the loss nor in the metrics."""

_CHECKED_MASKS = 2_000  # decoded before training; the headers of all are read
_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Pair:
    """One picture and its mask: ``load() -> (PIL RGB picture, PIL mask or (H, W) array)``, ``sizes() -> their
    (width, height)``.
    """

    name: str
    load: Callable[[], tuple[Image.Image, Any]]
    sizes: Callable[[], tuple[tuple[int, int], tuple[int, int]]] | None = None

    def read(self) -> tuple[Image.Image, Any]:
        """What ``load`` gives. Raises ArgumentError, naming the pair, if it cannot be read."""
        try:
            return self.load()
        except ArgumentError:
            raise
        except (OSError, SyntaxError, ValueError) as error:  # torchvision's sets let PIL's errors through
            raise ArgumentError(f"{self.name}: not a readable picture and mask ({error})") from error


@dataclass
class Pairs(Dataset):
    """Pairs as tensors: float picture ``(3, size, size)`` in [0, 1] and int64 mask ``(size, size)``.

    Asked for ``(epoch, index)`` it may flip the picture, by a coin that depends on (seed, epoch, index)
    alone; for a plain ``index`` never. ``void``: class indices that become :data:`IGNORE`.
    """

    pairs: list[Pair]
    size: int
    classes: tuple[str, ...]
    seed: int = 0
    void: tuple[int, ...] = (IGNORE,)
    cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, sample: Sample | int) -> tuple[Tensor, Tensor]:
        epoch, index = sample if isinstance(sample, tuple) else (None, sample)
        if index in self.cached:
            picture, mask = self.cached[index]
        else:
            picture, mask = self.resized(index)
            if len(self.pairs) * self.size**2 * 4 < _CACHE_BYTES:
                self.cached[index] = picture, mask
        if epoch is not None and torch.rand((), generator=generator(self.seed, 3, epoch, index)) < 0.5:
            picture, mask = picture.flip(-1), mask.flip(-1)
        return picture.float() / 255, mask.long()

    def resized(self, index: int) -> tuple[Tensor, Tensor]:
        """uint8 picture and mask at the set's size, the classes checked. Raises ArgumentError, naming the
        mask.
        """
        pair = self.pairs[index]
        picture, mask = pair.read()
        labels = self.labels(pair.name, mask, picture.size)
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        mask = Image.fromarray(labels).resize((self.size, self.size), Image.Resampling.NEAREST)
        return torch.from_numpy(as_array(picture)).permute(2, 0, 1).contiguous(), torch.from_numpy(
            as_array(mask)
        )

    def labels(self, name: str, mask: Any, size: tuple[int, int]) -> np.ndarray:
        """The mask as uint8 class indices, void ones as IGNORE. Raises ArgumentError for a wrong size, form
        or class.
        """
        array = as_array(mask) if isinstance(mask, Image.Image) else mask
        if array.ndim != 2:
            raise ArgumentError(
                f"{name}: a mask has one channel of class indices; this one has the shape {array.shape}"
            )
        if array.shape != size[::-1]:
            raise ArgumentError(
                f"{name}: the mask is {array.shape[1]}x{array.shape[0]} and its picture {size[0]}x{size[1]}"
            )
        array = np.where(np.isin(array, self.void), IGNORE, array)
        beyond = np.unique(array[(array >= len(self.classes)) & (array != IGNORE)])
        if beyond.size:
            raise ArgumentError(
                f"{name}: class {int(beyond[-1])} in the mask, but there are {len(self.classes)} classes, "
                f"0 to {len(self.classes) - 1} (and {', '.join(map(str, self.void))} for void); set --classes"
            )
        return array.astype(np.uint8)

    def check(self) -> None:
        """Reads every header and decodes the first :data:`_CHECKED_MASKS` pairs. Raises ArgumentError naming
        the first bad file.
        """
        for index, pair in enumerate(self.pairs):
            if index < _CHECKED_MASKS:
                picture, mask = pair.read()
                self.labels(pair.name, mask, picture.size)
            elif pair.sizes is not None:
                picture_size, mask_size = pair.sizes()
                if picture_size != mask_size:
                    raise ArgumentError(
                        f"{pair.name}: the mask is {mask_size} and its picture {picture_size}"
                    )
