"""Kernels that interpolate: the remedy against the pattern that a fit adds to pictures.

Regression shrinks the phases that it makes and leaves the first at full variance; the difference is a
checkerboard. A kernel that gives quadratic polynomials of the pixel's position as they are sends a picture's
slow parts through all phases alike, and leaves no pattern in them.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from pixelize.algebra.polyphase import Size
from pixelize.algebra.schedule import Stage

PICTURE_CHANNELS = 4
"""A layer with so many output channels or fewer makes pictures: its fit favours kernels that interpolate,"""
ALLOWED_COST = 1.05
"""as long as that costs no more than so many times the error of the fit that does not."""


def interpolation(stage: Stage, stride: Size, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that the kernel of a dense stage satisfies if it interpolates each channel.

    Quadratic polynomials of the pixel's position, as they are at the pixels that are read, must give what
    they are at the targets. ``channels``: the identity of the C channels of one group, in the dtype and on
    the device of the result. Returns (p C, features C) and (p C, targets C) for p polynomials: 3, 6 and 10 in
    one, two and three dimensions.
    """
    features, here = stage.features(stage.targets[0]), channels.new_tensor
    read = here([f.source for f in features]) / here(stride) + here([f.offset for f in features])
    made = here(stage.targets) / here(stride)
    powers = [p for p in product(range(3), repeat=len(stride)) if sum(p) < 3]

    def rows(at: Tensor) -> Tensor:
        values = torch.stack([at.pow(here(p)).prod(1) for p in powers])
        return torch.kron(values, channels)

    return rows(read), rows(made)
