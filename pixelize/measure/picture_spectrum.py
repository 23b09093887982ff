"""The mean power spectrum of pictures, in two dimensions and over the radius: what a plot needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.planes import Images, image_planes

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
    """The Hann-windowed power spectrum, mean removed, averaged over pictures and channels before the dB.

    Args:
        images: as for :func:`pixelize.checkerboard`; all of one size, 4x4 at least.

    Raises:
        ArgumentError: no images, pictures of different sizes, too small, NaN or inf.
    """
    total: Tensor | None = None
    square = count = 0.0
    for planes in image_planes(images, (4, 4)):
        height, width = planes.shape[-2:]
        window = torch.outer(_hann(height, planes), _hann(width, planes))
        window /= window.square().sum().sqrt()
        centred = planes - planes.mean((-2, -1), keepdim=True)
        power = torch.fft.fft2(centred * window).abs().square().sum(0).cpu()
        if total is not None and total.shape != power.shape:
            raise ArgumentError(
                f"pictures of {total.shape[0]}x{total.shape[1]} and {height}x{width} pixels have no common "
                "spectrum; crop or resize them to one size, or take one spectrum for each size."
            )
        total = power if total is None else total + power
        square += float(planes.square().mean((-2, -1)).sum())
        count += len(planes)
    assert total is not None  # image_planes yields or raises
    mean = torch.fft.fftshift(total / count)
    floor = _FLOOR * (square / count or 1.0)
    vertical, horizontal = (_centred_frequencies(n) for n in mean.shape)
    radius, radial = _radial(mean, vertical, horizontal)
    return PictureSpectrum(_decibels(mean, floor), vertical, horizontal, _decibels(radial, floor), radius)


def _radial(mean: Tensor, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power over rings one bin wide (of the smaller side), empty rings left out."""
    size = min(mean.shape)
    ring = (torch.hypot(vertical[:, None], horizontal[None]) * size).round().long().flatten()
    count = torch.bincount(ring)
    power = torch.bincount(ring, weights=mean.flatten())
    kept = count > 0
    return torch.arange(len(count), dtype=torch.float64)[kept] / size, power[kept] / count[kept]


def _centred_frequencies(size: int) -> Tensor:
    return torch.fft.fftshift(torch.fft.fftfreq(size, dtype=torch.float64))


def _hann(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, periodic=True, dtype=like.dtype, device=like.device)


def _decibels(power: Tensor, floor: float) -> Tensor:
    return 10 * torch.log10(power + floor)
