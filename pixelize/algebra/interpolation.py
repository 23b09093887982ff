"""Kernels that interpolate: the remedy against the pattern that a fit adds to pictures.

Regression shrinks the phases that it makes and leaves the first at full variance; the difference is a
checkerboard. A kernel that gives quadratic polynomials of the pixel's position as they are sends a picture's
slow parts through all phases alike, and leaves no pattern in them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixelize.algebra.schedule import Stage

PICTURE_CHANNELS = 4
"""A layer with so many output channels or fewer makes pictures: its fit favours kernels that interpolate,"""
INTERPOLATION_TAX = 1.05
"""as long as that costs no more than so many times the error of the fit that does not."""


def interpolation(stage: Stage, stride: tuple[int, int], channels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that the kernel of a dense stage satisfies if it interpolates each channel.

    Quadratic polynomials of the pixel's position, as they are at the pixels that are read, must give what
    they are at the targets. ``channels``: the identity of the C channels of one group, in the dtype and on
    the device of the result. Returns (6 C, features C) and (6 C, targets C).
    """
    features, here = stage.features(stage.targets[0]), channels.new_tensor
    read = here([f.source for f in features]) / here(stride) + here([f.offset for f in features])
    made = here(stage.targets) / here(stride)
    powers = [(a, b) for a in range(3) for b in range(3 - a)]

    def rows(at: Tensor) -> Tensor:
        values = torch.stack([at[:, 0] ** a * at[:, 1] ** b for a, b in powers])
        return torch.kron(values, channels)

    return rows(read), rows(made)
