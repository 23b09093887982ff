"""A model's pictures of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.refit.sample import Sample, shape_of, together
from pixelize.rewrites.state import random_state
from pixelize.rewrites.state.modules import devices_of
from pixelize.running.outputs import tensors
from pixelize.running.pictures import pictures_of, run


class Runner:
    """A model's pictures (N, C, h, w), float32, of samples: all of one size, cut from the top left corner.

    A stochastic model is given the same random numbers each time. Models that take one sample at a time are
    given one at a time.
    """

    def __init__(self, model: nn.Module, example: Sample) -> None:
        self.model, self.batched = model, True
        self.size: tuple[int, int] | None = None
        self.devices = devices_of(model)
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
            picture = frames_of(run(self.model, batch))
            if picture is None:
                raise NoPictureError("the model's output holds no picture")
            found.append(picture.float() if self.size is None else self._cut(picture).float())
        return torch.cat(found) if len(found) > 1 else found[0]

    def _cut(self, picture: Tensor) -> Tensor:
        assert self.size is not None
        return picture[..., : self.size[0], : self.size[1]]


class NoPictureError(ArgumentError):
    """The model's output has no picture in it."""


def frames_of(output: Any) -> Tensor | None:
    """The picture in a model's output; frames of a film (N, T, C, H, W) or (N, C, T, H, W) as channels."""
    films = [t for t in tensors(output) if t.dim() == 5 and min(t.shape[-2:]) > 1]
    largest = max(films, key=lambda t: t.shape[-2] * t.shape[-1], default=None)
    picture = pictures_of(output)
    if largest is None or (picture is not None and picture[0, 0].numel() >= largest[0, 0, 0].numel()):
        return picture
    return largest.flatten(1, 2)
