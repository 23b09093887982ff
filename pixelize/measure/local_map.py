"""Where in a picture the checkerboard is."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.measure.checkerboard import (
    RING,
    WINDOWED,
    as_periods,
    frequencies,
    minimum_size,
    peak_and_around,
    strip_powers,
)
from pixelize.measure.planes import one_batch


def checkerboard_map(images: Tensor | np.ndarray, period: int | tuple[int, int] = 2) -> Tensor:
    """The local amplitude of the pattern, above what the texture around it explains.

    Around each point, in a Hann window of 8 periods, the power at each of the artifact's frequencies
    (:func:`pixelize.measure.checkerboard.frequencies`), averaged over the channels, less the median power
    of its neighbourhood (that of the windowed form of :func:`pixelize.checkerboard`), zero where that is
    negative; summed over the frequencies and given as the pattern's root mean square, in the pictures'
    own units. A picture with ``a * (-1) ** (x + y)`` added in one place has a there (and half of it over
    an edge of that place). The windows lie two periods apart, on a picture mirrored at its borders, with
    linear interpolation between them.

    Args:
        images: ``(N, C, H, W)``, ``(C, H, W)`` or ``(H, W)``, tensor or array.
        period: as for :func:`pixelize.checkerboard`.

    Returns:
        ``(N, H, W)`` for a batch, else ``(H, W)``: float32 on the CPU.

    Raises:
        ArgumentError: as :func:`pixelize.checkerboard`.
    """
    periods = as_periods(period)
    window = minimum_size(periods)
    batch = one_batch(images, window)
    maps = torch.stack([_map(picture, periods, window) for picture in batch])
    return maps.float().cpu() if images.ndim == 4 else maps[0].float().cpu()


def _map(picture: Tensor, periods: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """``(C, H, W)`` to ``(H, W)``."""
    height, width = picture.shape[-2:]
    hop = (window[0] // 4, window[1] // 4)
    half = (window[0] // 2, window[1] // 2)
    # Window (i, j) is centred on pixel (i, j) * hop: mirrored by half a window on the near side, and on the
    # far side by enough for the last centre to reach the last pixel.
    far = [half[a] + -(-(n - 1) // hop[a]) * hop[a] - n for a, n in enumerate((height, width))]
    centred = picture - picture.mean((-2, -1), keepdim=True)
    padded = F.pad(centred, (half[1], far[1], half[0], far[0]), mode="reflect")
    rows = [strip.mean(0) for strip in strip_powers(padded, periods, window, hop, RING[WINDOWED][1])]
    power = torch.stack(rows)  # (windows down, windows across, p_h, 7, p_w, 7)
    total = torch.zeros(power.shape[:2], dtype=power.dtype, device=power.device)
    for frequency in frequencies(periods):
        peak, texture = peak_and_around(power, frequency, periods, WINDOWED)
        alone = all(2 * v % 1 == 0 for v in frequency)  # f and -f are the same
        total += (peak - texture).clamp(min=0) * (1 if alone else 2)
    # Power is per unit of window energy: a wave of amplitude a has a^2 (sum w)^2 / sum w^2.
    coherent = window[0] * window[1] * (2 / 3) ** 2
    amplitude = (total / coherent).sqrt()
    y, x = (torch.arange(n, device=power.device) / hop[a] for a, n in enumerate((height, width)))
    return _interpolate(_interpolate(amplitude, y).T, x).T


def _interpolate(values: Tensor, at: Tensor) -> Tensor:
    """Rows of ``values`` at fractional positions, linearly."""
    below = at.floor().long().clamp(max=len(values) - 1)
    above = (below + 1).clamp(max=len(values) - 1)
    weight = (at - below)[:, None].to(values.dtype)
    return values[below] * (1 - weight) + values[above] * weight
