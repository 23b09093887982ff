"""The pattern taken out of what a model has made: a partial band-stop filter, at run time or for the
label-free target of a fine-tuning.

For a frequency f, the data is demodulated (times exp(-2 pi i <f, x>)), blurred, which keeps what varies
slowly, and remodulated: that is its content in a band around f. A fraction of it is subtracted: so much that
the power left at f is what the neighbourhood has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.any_axes import Frequency, checkerboard_nd, frequencies_nd
from pixelize.measure.checkerboard import GLOBAL, WINDOWED
from pixelize.measure.natural import NOTCHED

_LONG = 2048
"""Samples of an axis from which it is blurred by a Fourier transform; a matrix has their square in it."""


def notch(
    data: Tensor,
    period: int = 2,
    *,
    depth: Mapping[Any, float] | None = None,
    sigma: float | None = None,
) -> Tensor:
    """Waveforms (N, C, L), pictures (N, C, H, W) or volumes (N, C, D, H, W) with less of the pattern that
    up-sampling by ``period`` leaves: without ``depth[f]``, from 0 to 1, of their content in a Gaussian band
    around each frequency f.

    Args:
        data: as above, of floating-point numbers.
        period: the up-sampling factor.
        depth: by frequency, with one number for each axis. By default what brings the data itself down to
            the level around each frequency, by :func:`pixelize.checkerboard_nd`: of waveforms in a narrow
            band by its longest form, of pictures and volumes in a narrow band by the global form, then in a
            wide one by the windowed form. For a filter that is the same for every call give the depths.
        sigma: of the blur, in samples; the band's standard deviation is 1 / (2 pi sigma) cycles per sample.
            With ``depth`` 32 periods of waveforms by default, else 2. At the edge the blur is normalised to
            what is inside, and the estimate is rougher there for periods other than 2.

    Raises:
        ArgumentError: data that is no such batch, a depth outside [0, 1] or of another frequency, or, without
            ``depth``, data that cannot be measured.

    >>> tone = torch.tensor([1.0, -1.0]).repeat(500) + torch.randn(8, 1, 1000)
    >>> checkerboard_nd(tone)["worst"] > 10 > 1 > checkerboard_nd(notch(tone))["worst"]
    True
    """
    axes = data.dim() - 2
    if axes not in (1, 2, 3) or not data.is_floating_point():
        raise ArgumentError(
            f"data is {data.dtype} of shape {tuple(data.shape)}; notch needs floating-point numbers "
            "(N, C, L), (N, C, H, W) or (N, C, D, H, W)"
        )
    if depth is None:
        return clean_target(data, period)
    known = frequencies_nd((period,) * axes)
    if unknown := [f for f in depth if f not in known]:
        raise ArgumentError(
            f"depth has {unknown[0]}: data of shape {tuple(data.shape)} and period {period} needs "
            f"frequencies such as {known[0]}"
        )
    if any(not 0.0 <= d <= 1.0 for d in depth.values()):
        raise ArgumentError(f"depths must lie between 0 and 1: {dict(depth)}")
    sigma = sigma or (32.0 * period if axes == 1 else 2.0)
    size = data.shape[2:]
    x = data.reshape(-1, 1, *size)
    norm = _blur(torch.ones_like(x[:1]), sigma)
    places = [
        torch.arange(n, device=x.device).reshape(-1, *(1,) * (axes - 1 - axis)) for axis, n in enumerate(size)
    ]
    removed = torch.zeros_like(x)
    # at the edge, where half the blur's weights are missing, the bands are not orthogonal: what one has found
    # is no longer there for the next
    rest = x - _blur(x, sigma) / norm
    for f in known:
        # in whole numbers, so that long waveforms lose no precision
        turns: Any = sum(round(v * period) * place for v, place in zip(f, places, strict=True))
        angle = 2 * torch.pi / period * (turns % period).to(x)
        # a frequency that is its own conjugate has one real component, any other is counted with its mirror
        # image
        own = all((2 * v) % 1 == 0 for v in f)
        part = _blur(rest * angle.cos(), sigma) / norm * angle.cos()
        if not own:
            part = 2 * (part + _blur(rest * angle.sin(), sigma) / norm * angle.sin())
        rest = rest - part
        removed = removed + depth.get(f, 0.0) * part
    return (x - removed).reshape(data.shape)


def clean_target(data: Tensor, period: int = 2) -> Tensor:
    """``data``, as :func:`notch` takes it, with the artifact brought down to the level around it, of pictures
    to that of natural ones.

    What keeps its sign all over goes first (a narrow band, by the global measure; of waveforms by the
    longest form), then what is left around the frequency (a wide band, by the windowed one). A frequency at
    which the data is natural already is left alone.
    """
    if data.dim() == 3:
        return notch(data, period, depth=depths_of(data, period))
    for sigma, form in ((6.0, GLOBAL), (2.0, WINDOWED)):
        data = notch(data, period, depth=depths_of(data, period, form), sigma=sigma)
    return data


def depths_of(data: Tensor | Iterable[Tensor], period: int = 2, form: str = "") -> dict[Frequency, float]:
    """What :func:`notch` must take of such data to bring it down to the level around, of pictures, by the
    windowed form, to that of natural ones; ``form`` of :func:`pixelize.checkerboard_nd`, the one with the
    longest windows by default.
    """
    levels = checkerboard_nd(data, period)
    longest = next(name for name in ("256 periods", "32 periods", GLOBAL) if name in levels)
    measured = levels[form or longest]
    below = NOTCHED if form == WINDOWED and len(next(iter(measured))) == 2 else 0.0
    over = {f: v - (below if all(2 * w % 1 == 0 for w in f) else 0.0) for f, v in measured.items()}
    return {f: max(0.0, 1.0 - 10 ** (-v / 20)) for f, v in over.items()}


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Along every axis but the first two."""
    for axis in range(2 - x.dim(), 0):
        if x.shape[axis] >= _LONG:
            x = _long_blur(x.movedim(axis, -1), sigma).movedim(-1, axis)
        elif axis == -1:
            x = x @ _gaussian(x.shape[-1], sigma).to(x)
        else:
            x = (_gaussian(x.shape[axis], sigma).to(x) @ x.movedim(axis, -2)).movedim(-2, axis)
    return x


def _long_blur(x: Tensor, sigma: float) -> Tensor:
    """Of the last axis, zero outside, by a Fourier transform."""
    line = _line(sigma).to(x)
    length = x.shape[-1] + len(line) - 1
    product = torch.fft.rfft(x, length) * torch.fft.rfft(line, length)
    return torch.fft.irfft(product, length)[..., len(line) // 2 :][..., : x.shape[-1]]


def _line(sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    g = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return g / g.sum()


@cache
def _gaussian(size: int, sigma: float) -> Tensor:
    """(size, size): the blur of a line, zero outside. One product is faster than a thin convolution."""
    t = torch.arange(size, dtype=torch.float64)
    radius = max(1, round(3 * sigma))
    distance = t[:, None] - t
    g = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= radius)
    return g / torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2).sum()
