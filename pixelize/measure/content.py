"""How much of the pictures' content a repair touched: what changed away from the artifact's frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pixelize.measure.decibels import decibels
from pixelize.measure.spectrum import away, mean_power_nd, ring_numbers

_BINS = 8
"""Frequencies of a ring that must lie away from the artifact's, for the ring to count."""


@dataclass(frozen=True)
class ContentChange:
    """Away from the artifact's frequencies (further than 1/16 cycle per pixel from every multiple of 1/period
    but zero), in dB.

    ``psnr``: the pictures after against those before, with their range as peak. ``spectrum``: of the mean
    power over rings of frequencies one bin wide, the change that is largest in size.
    """

    psnr: float
    spectrum: float


def content_change(
    before: list[Tensor], after: list[Tensor], peak: float, window: tuple[int, ...], period: int
) -> ContentChange:
    """Compares batches of pictures, waveforms or volumes (N, C, *size), of one size and in the same order.

    Args:
        peak: what PSNR counts as the largest difference.
        window: size of the Hann window, the picture's or a little less.
        period: of the artifact, in pixels.
    """
    old, new = mean_power_nd(before, window), mean_power_nd(after, window)
    far = away(window, period)
    change = (b - a for a, b in zip(before, after, strict=True))
    error = (mean_power_nd(change, window) * far).mean().item()
    ring = ring_numbers(window)
    change_of = [0.0]
    for r in range(int(ring.max()) + 1):
        here = far & (ring == r)
        if here.sum() >= _BINS:
            was, now = (power[here].sum().item() for power in (old, new))
            change_of.append(decibels((now + 1e-30) / (was + 1e-30)))
    return ContentChange(decibels(peak**2 / error) if error else math.inf, max(change_of, key=abs))
