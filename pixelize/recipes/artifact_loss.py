"""The checkerboard as a loss: the measure of :func:`pixelize.checkerboard`, differentiable, and how far it is
from natural.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelize.measure.checkerboard import (
    Frequency,
    artifact_power,
    as_periods,
    checkerboard,
    excess,
    frequencies,
)
from pixelize.measure.natural import PHOTOGRAPHS
from pixelize.measure.notch import notch
from pixelize.rewrites.state.precision import float64

Level = dict[tuple[str, Frequency], float]
"""dB for ``("global" or "windowed", frequency)``."""


@dataclass(frozen=True)
class ArtifactLoss:
    """Squared distance, in units of 10 dB, of a batch's artifact figures from the ``natural`` ones, summed
    over forms and frequencies.

    Either side counts: a hole in the spectrum is as unnatural as a peak.
    """

    natural: Level
    period: int = 2

    def __call__(self, pictures: Tensor) -> Tensor:
        """The loss of pictures ``(N, C, H, W)``."""
        loss: Tensor | float = 0.0
        periods = as_periods(self.period)
        for key, level in excess(artifact_power(float64(pictures.flatten(0, 1)), periods), periods).items():
            loss = loss + ((level - self.natural[key]) / 10).square()
        return torch.as_tensor(loss).to(pictures.device, torch.float32)


def natural_level(pictures: Tensor | None, period: int = 2) -> Level:
    """The figures of real pictures ``(N, C, H, W)``, or typical ones without them."""
    if pictures is None:
        return {(form, f): level for form, level in PHOTOGRAPHS.items() for f in frequencies(period)}
    measured = checkerboard(pictures, period)
    return {(form, f): measured[form][f] for form in PHOTOGRAPHS for f in frequencies(period)}


def without_artifact(pictures: Tensor, period: int = 2) -> Tensor:
    """Pictures ``(N, C, H, W)`` with all that lies near the artifact's frequencies taken out: within about
    0.2 / period cycles per pixel of them (:func:`pixelize.measure.notch.notch`).
    """
    return notch(pictures, period, depth=dict.fromkeys(frequencies(period), 1.0), sigma=0.75 * period)


def low_pass(pictures: Tensor, sigma: float = 1.5) -> Tensor:
    """Gaussian blur of ``(N, C, H, W)`` over 3 ``sigma`` pixels (or the whole picture), reflected at the
    borders.
    """
    radius = min(math.ceil(3 * sigma), min(pictures.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = (-x.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    channels = pictures.shape[1]
    padded = torch.nn.functional.pad(pictures, (radius,) * 4, mode="reflect")
    rows = torch.nn.functional.conv2d(
        padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels
    )
    return torch.nn.functional.conv2d(
        rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels
    )
