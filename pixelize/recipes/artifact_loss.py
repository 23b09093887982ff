"""The checkerboard as a loss: the measure of :func:`pixelize.checkerboard`, differentiable, and how far it is
from natural.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelize.measure.checkerboard import (
    GLOBAL_RING,
    WINDOWED_RING,
    Frequency,
    artifact_power,
    as_periods,
    checkerboard,
    frequencies,
    neighbours,
)
from pixelize.measure.notch import notch

Level = dict[tuple[str, Frequency], float]
"""dB for ``("global" or "windowed", frequency)``."""

TYPICAL: dict[str, float] = {"global": 0.0, "windowed": -4.0}
"""What photographs measure, about, where there are none to measure (see :func:`pixelize.checkerboard`)."""


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
        loss = pictures.new_zeros((), dtype=torch.float64)
        for key, level in decibels(pictures, self.period).items():
            loss = loss + ((level - self.natural[key]) / 10).square()
        return loss.float()


def decibels(pictures: Tensor, period: int = 2) -> dict[tuple[str, Frequency], Tensor]:
    """The figures of one batch ``(N, C, H, W)`` by form and frequency, as :func:`pixelize.checkerboard` gives
    them.

    Differentiable in the power at the frequency alone: a picture is not to be mended by raising what lies
    around it.
    """
    periods = as_periods(period)
    power = artifact_power(pictures.flatten(0, 1).double(), periods)
    floor = 1e-12 * power.mean_square.detach()
    found = {}
    for form, sums, ring, apart in (
        ("global", power.whole, GLOBAL_RING, False),
        ("windowed", power.windowed, WINDOWED_RING, True),
    ):
        reach = sums.shape[1] // 2
        for f in frequencies(periods):
            table = sums[round(f[0] * periods[0]), :, round(f[1] * periods[1]), :]
            mask = neighbours(f, reach, ring, apart).to(table.device)
            around = (table * table.flip(0, 1)).sqrt()[mask].median().detach()
            found[form, f] = 10 * ((table[reach, reach] + floor) / (around + floor)).log10()
    return found


def natural_level(pictures: Tensor | None, period: int = 2) -> Level:
    """The figures of real pictures ``(N, C, H, W)``, or typical ones without them."""
    if pictures is None:
        return {(form, f): level for form, level in TYPICAL.items() for f in frequencies(period)}
    measured = checkerboard(pictures, period)
    return {(form, f): measured[form][f] for form in TYPICAL for f in frequencies(period)}


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
