"""Inputs by name: what the command line's INPUT means.

===================  ===============================================================================
``1x3x64x64``        a shape: normally distributed numbers, from a seed; ``AxB,CxD`` for two arguments
``photo.png``        a picture; ``photos/`` and ``photos.zip``: all in there, in the order of their names
``speech.wav``       a waveform (1, channels, samples) in [-1, 1]; ``sounds/``, a folder without pictures
``latents.npy``      an array, as it is; ``inputs.npz``: keyword arguments by name; ``volumes/``, a folder
                     without pictures and sounds: an input of each array file
===================  ===============================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.running.inputs import BATCH, default_inputs, shape_of
from pixelize.sources.arrays import ARRAYS, arrays
from pixelize.sources.passed_over import PassedOver, Place
from pixelize.sources.pictures import drawn, ending_of, frames, listed, sides_of
from pixelize.sources.preparation import Preparation
from pixelize.sources.sounds import SOUNDS, waveforms

_SHAPE = re.compile(r"\d+(x\d+)+(,\d+(x\d+)+)*", re.IGNORECASE)


def read_inputs(
    names: Sequence[str],
    *,
    preparation: Preparation | None = None,
    size: tuple[int, int] | None = None,
    count: int = 64,
    seed: int = 0,
    crop: int = 0,
) -> list[Any]:
    """A list of inputs, batches of pictures of one size or whatever an array or a shape holds.

    Args:
        names: see the module's documentation. preparation: what the model's library does to pictures; by
        default they are left in [0, 1]. size: (height, width) to resize pictures to. count: how many
        pictures, sounds or a folder's array files are read, or crops cut, at most. seed: of the numbers that
        a shape is filled with, and of the places of crops. crop: cut pictures of several sizes, and those
        larger than this, into crops of this side, or of as much as the smallest picture has; 0 leaves them
        whole.

    Files that cannot be read are passed over, with a warning that names them.

    Raises:
        ArgumentError: no such file, none that can be read, sounds of several rates, or a name
            that means nothing.
    """
    preparation = preparation or Preparation()
    generator = torch.Generator().manual_seed(seed)
    inputs: list[Any] = []
    files: list[Place] = []
    sounds: list[Place] = []
    passed = PassedOver()
    for name in names:
        path = Path(name).expanduser()
        if path.exists():
            places = listed(name, SOUNDS, ARRAYS)
            if ending_of(places[0]) in ARRAYS:
                inputs += [array for _, array in islice(arrays(places, passed), count)]
            else:
                (sounds if ending_of(places[0]) in SOUNDS else files).extend(places)
        elif _SHAPE.fullmatch(name):
            inputs.append(_random(name, generator))
        else:
            raise ArgumentError(
                f"no input is named {name!r}: there is no such file, and it is no shape such as 1x3x64x64"
            )
    grey = preparation.channels == 1
    if not crop and size is None:
        size = preparation.size

    def decode(file: Place) -> Tensor | None:
        with passed.over(file):
            return next(frames(file, grey=grey, size=size))
        return None

    def sides(file: Place) -> tuple[int, int] | None:
        if file not in passed.reasons:
            with passed.over(file):
                return size or sides_of(file)
        return None

    pictures: Iterable[Tensor]
    if crop and files:
        pictures = _crops(files, preparation, crop, count, seed, sides, decode)
    else:
        pictures = islice((p for p in map(decode, files) if p is not None), count)
    prepared = (preparation(padded(picture, preparation)) for picture in pictures)
    batches = _batches(prepared, 1 if preparation.single else BATCH)
    batches += _batches(waveforms(sounds, passed, preparation.rate, grey, count), BATCH)
    passed.tell(bool(batches or inputs))
    return inputs + batches


def _crops(
    files: Sequence[Place],
    preparation: Preparation,
    crop: int,
    count: int,
    seed: int,
    sides_of: Callable[[Place], tuple[int, int] | None],
    decode: Callable[[Place], Tensor | None],
) -> list[Tensor]:
    """Crops of one size, as many of each picture, at places drawn from ``seed``; the pictures themselves
    where they have that size. One picture is held at a time.

    ``sides_of`` and ``decode`` give None for a file that cannot be read, from then on.
    """
    while True:
        sized = ((file, sides) for file in files if (sides := sides_of(file)) is not None)
        first = dict(islice(sized, count))
        crops = _crops_of(first, preparation, crop, count, seed, decode) if first else []
        if crops is not None:
            return crops


def _crops_of(
    sides_by_file: Mapping[Place, tuple[int, int]],
    preparation: Preparation,
    crop: int,
    count: int,
    seed: int,
    decode: Callable[[Place], Tensor | None],
) -> list[Tensor] | None:
    """:func:`_crops` of these files; None if one of them turned out not to be readable."""
    files, sides = list(sides_by_file), list(sides_by_file.values())
    height, width = (min(crop, *lengths) for lengths in zip(*sides, strict=True))
    wanted = preparation.size or (height, width)
    if preparation.size:
        sides = [_at_least(s, wanted) for s in sides]
    else:  # as a multiple of what the model needs, so that nothing is padded
        step = preparation.multiple
        wanted = (max(height // step, 1) * step, max(width // step, 1) * step)
        if preparation.square:
            wanted = (min(wanted), min(wanted))
        wanted = (min(wanted[0], height), min(wanted[1], width))
    if all(s == wanted for s in sides):
        count = min(count, len(files))
    generator = torch.Generator().manual_seed(seed)
    crops: dict[int, Tensor] = {}
    places = [
        [
            int(torch.randint(have - want + 1, (1,), generator=generator))
            for have, want in zip(sides[number % len(files)], wanted, strict=True)
        ]
        for number in range(count)
    ]
    for first, (file, side) in enumerate(zip(files, sides, strict=True)):
        picture = decode(file)
        if picture is None:
            continue
        if tuple(picture.shape[-2:]) != side:
            picture = nn.functional.interpolate(picture[None], side, mode="bicubic", antialias=True)[0]
            picture = picture.clamp(0, 1)
        for number in range(first, count, len(files)):
            top, left = places[number]
            crops[number] = picture[:, top : top + wanted[0], left : left + wanted[1]].clone()
    return [crops[number] for number in range(count)] if len(crops) == count else None


def _at_least(sides: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Sides in the same proportion, so that neither is smaller than ``size`` has it."""
    scale = max(1.0, *(want / have for want, have in zip(size, sides, strict=True)))
    height, width = (max(want, round(have * scale)) for want, have in zip(size, sides, strict=True))
    return (height, width) if scale > 1 else sides


def padded(picture: Tensor, preparation: Preparation) -> Tensor:
    """At the bottom and on the right up to what the model takes: mirrored, and repeated where that ends."""
    step, have = preparation.multiple, (picture.shape[-2], picture.shape[-1])
    sides = [-(-max(side, preparation.minimum) // step) * step for side in have]
    sides = [max(sides)] * 2 if preparation.square else sides
    for mode, most in (("reflect", [side - 1 for side in have]), ("replicate", sides)):
        down, right = (min(want - n, m) for want, n, m in zip(sides, picture.shape[-2:], most, strict=True))
        if down or right:
            picture = nn.functional.pad(picture[None], (0, right, 0, down), mode)[0]
    return picture


def drawn_inputs(model: nn.Module, preparation: Preparation, count: int, seed: int) -> tuple[list[Any], str]:
    """Inputs for a model without any data, and what they are in words.

    Latents for what decodes latents or makes pictures of them; for what takes pictures, ones drawn of discs.

    Raises ArgumentError if no input is known for the model.
    """
    config = getattr(model, "config", None)
    channels = config.get("latent_channels") if isinstance(config, Mapping) else None
    if channels and hasattr(model, "decode"):  # unit variance is what scaling_factor makes of its latents
        scale = config.get("scaling_factor") or 1.0  # type: ignore[union-attr]
        latents = (
            torch.randn((count, channels, 16, 16), generator=torch.Generator().manual_seed(seed)) / scale
        )
        return list(latents.split(BATCH)), f"{count} random latents of {channels}x16x16 (seed {seed})"
    inputs, told = default_inputs(model, count, seed)
    first = inputs[0]
    if not isinstance(first, Tensor) or first.dim() != 4 or first.shape[1] not in (1, 3, 4):
        return inputs, told
    if min(first.shape[-2:]) < 16:
        return inputs, told
    side = preparation.size[0] if preparation.size else max(64, first.shape[-1])
    pictures = (preparation(padded(p, preparation)) for p in drawn(count, side, first.shape[1], seed))
    return _batches(pictures, 1 if preparation.single else BATCH), (
        f"{count} drawn pictures of {side}x{side} (seed {seed})"
    )


def _random(name: str, generator: torch.Generator) -> Any:
    shapes = [[int(n) for n in part.lower().split("x")] for part in name.split(",")]
    for shape in shapes:
        if not all(shape) or np.prod(shape, dtype=float) > 2**31:
            raise ArgumentError(f"{name}: a shape of nothing, or of more than 8 GiB")
    tensors = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    return tensors if len(tensors) > 1 else tensors[0]


def _batches(pictures: Iterable[Tensor], size: int = BATCH) -> list[Tensor]:
    """Neighbours of one size stacked, at most ``size`` together."""
    batches: list[list[Tensor]] = []
    for picture in pictures:
        if batches and len(batches[-1]) < size and batches[-1][0].shape == picture.shape:
            batches[-1].append(picture)
        else:
            batches.append([picture])
    return [torch.stack(batch) for batch in batches]


def parse_size(text: str) -> tuple[int, int]:
    """``"256"`` or ``"256x320"`` (height x width). Raises ArgumentError."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise ArgumentError(f"size {text!r}: write 256, or 256x320 for height x width")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def source_words(names: Sequence[str], inputs: Sequence[Any]) -> str:
    """What was read, in words for a report."""
    samples = sum(len(x) for x in inputs if isinstance(x, Tensor))
    listed = ", ".join(os.path.basename(n.rstrip("/")) or n for n in names)
    return f"{samples or len(inputs)} inputs from {listed} ({shape_of(inputs[0])})"
