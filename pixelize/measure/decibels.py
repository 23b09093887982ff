"""Ratios in decibels: the one place where a logarithm of a number is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pixelize.rewrites.state.precision import float64

LIMIT = 120.0
"""Decibels: figures stay within so many of zero. The ratio behind it is beyond what float32 resolves."""


def decibels(ratio: float) -> float:
    """``10 log10(ratio)`` of a ratio of powers, within :data:`LIMIT` of zero; nothing has none too few."""
    least = 10 ** (-LIMIT / 10)
    return 10 * math.log10(min(max(ratio, least), 1 / least))


def psnr(before: Sequence[Tensor], after: Sequence[Tensor], peak: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB: peak^2 over the mean square of ``after - before``.

    Args:
        before, after: batches of pictures, of the same shapes in the same order.
        peak: the largest difference there can be; by default the range of ``before``.

    Infinite where nothing differs (or ``before`` is constant).
    """
    square = sum(float((float64(a) - float64(b)).square().sum()) for a, b in zip(before, after, strict=True))
    square /= sum(b.numel() for b in before)
    if peak is None:
        peak = float(max(b.max() for b in before) - min(b.min() for b in before))
    return decibels(peak**2 / square) if square and peak else math.inf
