"""A model's pictures of samples."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.refit.calls import Call, Compute, Watch
from pixelize.refit.sample import Sample, shape_of, together
from pixelize.rewrites.state import random_state
from pixelize.rewrites.state.modules import devices_of
from pixelize.running.outputs import tensors
from pixelize.running.pictures import pictures_of, run


class Runner:
    """A model's pictures, waveforms or volumes (N, C, *size), float32, of samples: all of one size, cut from
    the first corner.

    A stochastic model is given the same random numbers each time. Models that take one sample at a time are
    given one at a time.
    """

    def __init__(self, model: nn.Module, example: Sample) -> None:
        self.model, self.batched = model, True
        self.size: tuple[int, ...] | None = None
        self.devices = devices_of(model)
        random_state.seed(0, self.devices)
        self.axes = look(model, together([example])).axes
        one = self([example])
        try:
            two = self([example, example])
            self.batched = two.shape == (2 * len(one), *one.shape[1:]) and torch.allclose(
                two[: len(one)], one, rtol=0.02, atol=0.02 * float(one.abs().max())
            )
        except Exception:
            self.batched = False

    def __call__(self, samples: list[Sample]) -> Tensor:
        if self.batched and len({shape_of(s) for s in samples}) == 1:
            batches = [together(samples)]
        else:
            batches = samples
        found = []
        for batch in batches:
            random_state.seed(0, self.devices)
            picture = picture_along(run(self.model, batch), self.axes)
            if picture is None:
                raise NoPictureError("the model's output holds no picture")
            found.append(picture.float() if self.size is None else self._cut(picture).float())
        return torch.cat(found) if len(found) > 1 else found[0]

    def _cut(self, picture: Tensor) -> Tensor:
        assert self.size is not None
        first: Any = (..., *map(slice, self.size))
        return picture[first]


class NoPictureError(ArgumentError):
    """The model's output has no picture in it."""


class Look(NamedTuple):
    """What a model made of some inputs: 1 axis for waveforms, 2 for pictures, 3 for volumes."""

    axes: int
    picture: Tensor | None


def look(model: nn.Module, inputs: Any) -> Look:
    """Runs a model and tells pictures from waveforms and volumes.

    - Waveforms: the last convolution has one axis, and no output is a picture (N, C, H, W).
    - Volumes: the last convolution has three axes, the model enlarges the first of these too, and the output
      (N, C, D, H, W) has 16 places along each. Others of three axes are films: frames are pictures.
    """
    depths: list[tuple[int, int]] = []
    axes = 2

    def each(number: int, call: Call, compute: Compute) -> Tensor:
        nonlocal axes
        made = compute(call.input)
        if call.kind != "linear":
            axes = len(call.kernel)
            depths.extend([(call.input.shape[2], made.shape[2])] if axes == 3 else [])
        return made

    with Watch(each):
        output = run(model, inputs)
    if axes == 1 and not any(t.dim() > 3 and min(t.shape[-2:]) > 1 for t in tensors(output)):
        return Look(1, picture_along(output, 1))
    volume = picture_along(output, 3) if axes == 3 else None
    if volume is not None and min(volume.shape[2:]) >= 16:
        along = [depth for passed in depths for depth in passed] + [volume.shape[2]]
        if any(after > 1.5 * before for before, after in pairwise(along)):
            return Look(3, volume)
    return Look(2, picture_along(output, 2))


def picture_along(output: Any, axes: int) -> Tensor | None:
    """The picture (N, C, *size) of so many axes in a model's output, None if there is none.

    Of waveforms (N, L) is one channel. For two axes, frames of a film (N, T, C, H, W) or (N, C, T, H, W) are
    channels.
    """
    if axes == 2:
        return _frames_of(output)
    found = [t for t in tensors(output) if t.dim() == axes + 2 or t.dim() == axes + 1 == 2]
    found = [t if t.dim() == axes + 2 else t[:, None] for t in found]
    found = [t for t in found if min(t.shape[2:]) > 1]
    return max(found, key=lambda t: math.prod(t.shape[2:]), default=None)


def _frames_of(output: Any) -> Tensor | None:
    films = [t for t in tensors(output) if t.dim() == 5 and min(t.shape[-2:]) > 1]
    largest = max(films, key=lambda t: t.shape[-2] * t.shape[-1], default=None)
    picture = pictures_of(output)
    if largest is None or (picture is not None and picture[0, 0].numel() >= largest[0, 0, 0].numel()):
        return picture
    return largest.flatten(1, 2)
