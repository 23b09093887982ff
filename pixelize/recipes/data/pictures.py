"""Pictures without labels, for the vae, gan and repair recipes: drawn portraits, folders and zips, CelebA
through torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pixelize.errors import ArgumentError
from pixelize.recipes.data.files import Files, as_array
from pixelize.recipes.data.portraits import draw_portrait
from pixelize.recipes.training.order import Sample, generator

CHECKED = 2_000
"""Pictures of a folder decoded before training; of the others the header is read."""

_CACHE_BYTES = 2**30


@dataclass
class Pictures(Dataset):
    """Float pictures ``(channels, size, size)`` in [-1, 1]: the middle square, resized.

    Asked for ``(epoch, index)`` it may flip the picture, by a coin that depends on (seed, epoch, index)
    alone; for a plain ``index`` never.
    """

    loaders: list[Callable[[], Image.Image]]
    size: int
    channels: int
    seed: int = 0
    cached: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.loaders)

    def __getitem__(self, sample: Sample | int) -> Tensor:
        epoch, index = sample if isinstance(sample, tuple) else (None, sample)
        if index not in self.cached:
            picture = self.square(self.loaders[index]())
            if len(self.loaders) * self.channels * self.size**2 < _CACHE_BYTES:
                self.cached[index] = picture
        else:
            picture = self.cached[index]
        if epoch is not None and torch.rand((), generator=generator(self.seed, 3, epoch, index)) < 0.5:
            picture = picture.flip(-1)
        return picture.float() / 127.5 - 1

    def square(self, picture: Image.Image) -> Tensor:
        """uint8 ``(channels, size, size)``: the largest centred square, resized."""
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        array = torch.from_numpy(as_array(picture))
        return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()

    def batch(self, first: int, count: int) -> Tensor:
        """The pictures ``first`` to ``first + count - 1``, as far as there are so many, unflipped: ``(n,
        channels, size, size)``.
        """
        return torch.stack([self[i] for i in range(first, min(first + count, len(self)))])


def load_pictures(
    source: str, size: int, channels: int = 3, *, seed: int = 0, limit: int = 0, download: bool = False
) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures (nine tenths and one tenth, drawn by ``seed``).

    Args:
        source: ``portraits`` (drawn), ``celeba:ROOT`` (torchvision's layout; faces without background, as the
            paper crops them), or a folder or zip of pictures.
        limit: of both together so many; 0 for all.

    Raises ArgumentError if there is no such data, there are fewer than ten pictures, or one cannot be read
    (named).
    """
    kind, _, root = source.partition(":")
    loaders: list[Callable[[], Any]]
    if source == "portraits":
        loaders = [partial(_portrait, i, size, seed) for i in range(limit or 4_096)]
    elif kind == "celeba" and root:
        from torchvision.datasets import CelebA

        try:
            celeba = CelebA(root, "all", download=download)
        except (RuntimeError, OSError) as error:
            raise ArgumentError(f"{root}: CelebA is not there ({error}); --download fetches it") from error
        loaders = [partial(_celeba, celeba, i) for i in range(len(celeba))]
        for loader in loaders[:CHECKED]:
            loader()
    else:
        files = Files(source)
        names = files.pictures()
        if not names:
            raise ArgumentError(f"{files.root}: no pictures in it")
        loaders = [partial(files.decode, name) for name in names]
        for i, name in enumerate(names):
            (files.decode if i < CHECKED else files.open)(name)
    order = torch.randperm(len(loaders), generator=generator(seed, 5)).tolist()[: limit or None]
    if len(order) < 10:
        raise ArgumentError(f"{source}: {len(order)} pictures; at least ten are needed to hold one back")
    held = len(order) // 10
    return (
        Pictures([loaders[i] for i in order[held:]], size, channels, seed),
        Pictures([loaders[i] for i in order[:held]], size, channels, seed),
    )


def _portrait(index: int, size: int, seed: int) -> Image.Image:
    return Image.fromarray(draw_portrait(index, size, seed))


def _celeba(celeba: Any, index: int) -> Image.Image:
    try:
        return celeba[index][0].crop((45, 60, 133, 148))  # of 178x218: the face and little else
    except (OSError, SyntaxError) as error:
        raise ArgumentError(f"CelebA, {celeba.filename[index]}: not a readable picture ({error})") from error
