"""The label-free target of a fine-tuning: a model's own pictures with the slowly varying pattern at the
artifact's frequencies taken out.

For a frequency f, the picture is demodulated (times exp(-2 pi i <f, x>)), blurred, which keeps what varies
slowly, and remodulated: that is the picture's content in a band around f. A fraction of it is subtracted: so
much that the power left at f is what the neighbourhood has.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import GLOBAL, WINDOWED, Frequency, checkerboard, frequencies
from pixelize.measure.natural import NOTCHED


def notch(images: Tensor, period: int = 2, *, depth: Mapping[Frequency, float], sigma: float = 2.0) -> Tensor:
    """``images`` (N, C, H, W) without ``depth[f]``, from 0 to 1, of their content in a Gaussian band around
    each frequency f.

    ``sigma``: the blur in pixels; the band's standard deviation is 1 / (2 pi sigma) cycles per pixel. At the
    picture's edge the blur is normalised to the pixels inside, and the estimate is rougher there for
    periods other than 2. Raises ArgumentError for images that are no
    batch, or a depth outside [0, 1].
    """
    if images.dim() != 4:
        raise ArgumentError(f"images have shape {tuple(images.shape)}; notch needs (N, C, H, W)")
    if any(not 0.0 <= d <= 1.0 for d in depth.values()):
        raise ArgumentError(f"depths must lie between 0 and 1: {dict(depth)}")
    n, c, h, w = images.shape
    x = images.reshape(n * c, 1, h, w)
    ones = torch.ones_like(x[:1])
    norm = _blur(ones, sigma)
    rows = torch.arange(h, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.arange(w, device=x.device, dtype=x.dtype)
    removed = torch.zeros_like(x)
    # at the edge, where half the blur's weights are missing, the bands are not orthogonal: what one has found
    # is no longer there for the next
    rest = x - _blur(x, sigma) / norm
    for f in frequencies(period):
        angle = 2 * torch.pi * (f[0] * rows + f[1] * columns)
        # a frequency that is its own conjugate has one real component, any other is counted with its mirror
        # image
        own = all((2 * v) % 1 == 0 for v in f)
        part = _blur(rest * angle.cos(), sigma) / norm * angle.cos()
        if not own:
            part = 2 * (part + _blur(rest * angle.sin(), sigma) / norm * angle.sin())
        rest = rest - part
        removed = removed + depth.get(f, 0.0) * part
    return (x - removed).reshape(n, c, h, w)


def clean_target(images: Tensor, period: int = 2) -> Tensor:
    """``images`` (N, C, H, W) with the artifact brought down to the level of natural pictures, by both
    measures of :func:`checkerboard`.

    What keeps its sign over the picture goes first (a narrow band, by the global measure), then what is left
    around the frequency (a wide band, by the windowed one). A frequency at which the pictures are natural
    already is left alone.
    """
    for sigma, form, natural in ((6.0, GLOBAL, 0.0), (2.0, WINDOWED, NOTCHED)):
        measured = checkerboard(images, period)[form]
        over = {f: measured[f] - (natural if all(2 * v % 1 == 0 for v in f) else 0.0) for f in measured}
        depth = {f: max(0.0, 1.0 - 10 ** (-v / 20)) for f, v in over.items()}
        images = notch(images, period, depth=depth, sigma=sigma)
    return images


def _blur(x: Tensor, sigma: float) -> Tensor:
    down, across = (_gaussian(size, sigma).to(x) for size in x.shape[-2:])
    return down @ x @ across


@cache
def _gaussian(size: int, sigma: float) -> Tensor:
    """(size, size): the blur of a line, zero outside. One product is faster than a thin convolution."""
    t = torch.arange(size, dtype=torch.float64)
    radius = max(1, round(3 * sigma))
    distance = t[:, None] - t
    g = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= radius)
    return g / torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2).sum()
