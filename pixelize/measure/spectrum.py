"""The mean power spectrum of pictures, in two dimensions and over the radius."""

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
    """:func:`mean_power` in dB, as a plot needs it.

    Args:
        images: as for :func:`pixelize.checkerboard`; all of one size, 4x4 at least.

    Raises:
        ArgumentError: no images, pictures of different sizes, too small, NaN or inf.
    """
    power, mean_square = _mean_power(images)
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
    return _mean_power(images)[0]


def ring_numbers(size: tuple[int, int]) -> Tensor:
    """``(H, W)``: the distance of each frequency from zero, in whole bins of the shorter side."""
    down, across = (torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    return (torch.hypot(down[:, None], across) * min(size)).round().long()


def away(window: tuple[int, int], period: int) -> Tensor:
    """Which bins (h, w) of a window are further than 1/16 cycle per pixel from every multiple of 1/period,
    zero not counted."""
    down, across = (torch.fft.fftfreq(size, dtype=torch.float64) for size in window)
    off_y, off_x = ((v - (v * period).round() / period).abs() for v in (down, across))
    near = torch.maximum(off_y[:, None], off_x) <= 1 / 16
    return ~near | (torch.hypot(down[:, None], across) < 1 / (2 * period))


def _mean_power(images: Images) -> tuple[Tensor, float]:
    """:func:`mean_power`, and the pictures' mean square."""
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
    return total / count, square / count


def _radial(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Distances, and mean power over the rings of :func:`ring_numbers`; empty rings left out."""
    ring = ring_numbers(tuple(mean.shape)).flatten()  # type: ignore[arg-type]
    count = torch.bincount(ring)
    power = torch.bincount(ring, weights=mean.flatten())
    kept = count > 0
    radius = torch.arange(len(count), dtype=torch.float64)[kept] / min(mean.shape)
    return radius, power[kept] / count[kept]


def _hann(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, periodic=True, dtype=like.dtype, device=like.device)
