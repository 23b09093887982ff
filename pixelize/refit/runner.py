"""A model's pictures of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.refit.calls import Call, Compute, Watch
from pixelize.refit.sample import Sample, shape_of, together
from pixelize.rewrites.state import random_state
from pixelize.rewrites.state.modules import devices_of
from pixelize.running.pictures import Made, made_of, picture_along, run


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


def look(model: nn.Module, inputs: Any) -> Made:
    """Runs a model and tells what it makes, by :func:`~pixelize.running.pictures.made_of`."""
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
    return made_of(output, axes, depths)
