"""The mean power spectrum of pictures, in two dimensions and over the radius."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.planes import Images, image_planes
from pixelize.rewrites.state.precision import float64

_CHUNK = 2**21  # elements converted to float64 at a time: 16 MiB
_FLOOR = 1e-12  # of the mean square, so that no figure is minus infinity


@dataclass(frozen=True, eq=False)
class PictureSpectrum:
    """A mean power spectrum; all tensors float64 on the CPU, frequencies in cycles per pixel.

    ``power`` ``(H, W)``: dB, frequency (0, 0) in the middle; ``vertical`` ``(H,)`` and ``horizontal``
    ``(W,)`` its axes, in [-0.5, 0.5). ``radial_power`` ``(R,)``: dB of the mean power over rings of equal
    distance from the middle, at ``radius`` ``(R,)``. 0 dB is white noise of variance 1 in the pictures'
    units.
    """

    power: Tensor
    vertical: Tensor
    horizontal: Tensor
    radial_power: Tensor
    radius: Tensor


def power_spectrum(images: Images) -> PictureSpectrum:
    """:func:`mean_power` in dB, as a plot needs it.

    Args:
        images: as for :func:`pixelize.checkerboard`; all of one size, 4x4 at least.

    Raises:
        ArgumentError: no images, pictures of different sizes, too small, NaN or inf.
    """
    power, mean_square = _mean_power(image_planes(images, (4, 4)))
    floor = _FLOOR * (mean_square or 1.0)
    radius, radial = _radial(power)
    vertical, horizontal = (
        torch.fft.fftshift(torch.fft.fftfreq(size, dtype=torch.float64)) for size in power.shape
    )
    full, along = (10 * torch.log10(p + floor) for p in (torch.fft.fftshift(power), radial))
    return PictureSpectrum(full, vertical, horizontal, along, radius)


def mean_power(images: Images) -> Tensor:
    """``(H, W)``: the Hann-windowed power spectrum, mean removed, averaged over pictures and channels.

    Frequency (0, 0) comes first. White noise of variance 1 has power 1 everywhere. Raises ArgumentError as
    :func:`power_spectrum`.
    """
    return _mean_power(image_planes(images, (4, 4)))[0]


def mean_power_nd(batches: Iterable[Tensor], window: tuple[int, ...]) -> Tensor:
    """:func:`mean_power` of batches (N, C, *size) along any number of axes, over windows of one size: the
    first of pictures and volumes, all that overlap by half of waveforms."""
    some = max(1, _CHUNK // prod(window))
    return _mean_power(float64(x) for b in batches for x in windows_of(b, window).split(some))[0]


def windows_of(batch: Tensor, window: tuple[int, ...]) -> Tensor:
    """(windows, *window) of a batch (N, C, *size): of pictures and volumes the first, of waveforms all that
    overlap by half."""
    if len(window) == 1:
        return batch.unfold(-1, window[0], max(1, window[0] // 2)).flatten(0, -2)
    first: Any = (..., *map(slice, window))
    return batch[first].flatten(0, 1)


def ring_numbers(size: tuple[int, ...]) -> Tensor:
    """(*size): the distance of each frequency from zero, in whole bins of the shortest side; of waveforms in
    64ths."""
    count = min(size) if len(size) > 1 else min(size[0], 64)
    return (_distance(size) * count).round().long()


def away(window: tuple[int, ...], period: int) -> Tensor:
    """Which bins of a window are further than 1/16 cycle per pixel (of waveforms a quarter of 1/period) from
    every multiple of 1/period, zero not counted."""
    reach = 1 / 16 if len(window) > 1 else 1 / (4 * period)
    off = [(v - (v * period).round() / period).abs() for v in grid(window)]
    near = reduce(torch.maximum, off) <= reach
    return ~near | (_distance(window) < 1 / (2 * period))


def grid(size: tuple[int, ...]) -> list[Tensor]:
    """The discrete frequencies of each axis, to be broadcast against those of the others."""
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in size]
    return [f.reshape(-1, *(1,) * (len(size) - 1 - n)) for n, f in enumerate(axes)]


def _distance(size: tuple[int, ...]) -> Tensor:
    return reduce(torch.hypot, grid(size)).abs()


def _mean_power(planes_of: Iterable[Tensor]) -> tuple[Tensor, float]:
    """:func:`mean_power` of planes (n, *size) in float64, and their mean square."""
    total: Tensor | None = None
    square = count = 0.0
    for planes in planes_of:
        size, axes = planes.shape[1:], tuple(range(1, planes.dim()))
        hann = [_hann(n, planes).reshape(-1, *(1,) * (len(size) - 1 - i)) for i, n in enumerate(size)]
        window = reduce(torch.mul, hann)
        window /= window.square().sum().sqrt()
        centred = planes - planes.mean(axes, keepdim=True)
        power = torch.fft.fftn(centred * window, dim=axes).abs().square().sum(0).cpu()
        if total is not None and total.shape != power.shape:
            sizes = ("x".join(map(str, shape)) for shape in (total.shape, size))
            raise ArgumentError(
                f"pictures of {' and '.join(sizes)} pixels have no common "
                "spectrum; crop or resize them to one size, or take one spectrum for each size."
            )
        total = power if total is None else total + power
        square += float(planes.square().mean(axes).sum())
        count += len(planes)
    assert total is not None  # there are planes
    return total / count, square / count


def _radial(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Distances, and mean power over the rings of :func:`ring_numbers`; empty rings left out."""
    ring = ring_numbers(tuple(mean.shape)).flatten()
    count = torch.bincount(ring)
    power = torch.bincount(ring, weights=mean.flatten())
    kept = count > 0
    radius = torch.arange(len(count), dtype=torch.float64)[kept] / min(mean.shape)
    return radius, power[kept] / count[kept]


def _hann(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, periodic=True, dtype=like.dtype, device=like.device)
