"""Pieces of large pictures, volumes and waveforms; more of few, mirrored and shifted against the
up-samplers' grid; and enlarged parts of all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pixelize.refit.limits import RepairLimits
from pixelize.refit.sample import Sample, image_of, mapped

_ENLARGED = 4
"""Times by which parts are enlarged."""


@dataclass(frozen=True)
class Cutting:
    """Pieces of so many input pixels along each axis."""

    size: tuple[int, ...]

    def pieces(self, sample: Sample, seed: int, part: tuple[float, float] = (0.0, 1.0)) -> list[Sample]:
        """As many as fill the sample, at random places, within a part of its longer side."""
        image = image_of(sample, len(self.size))
        assert image is not None
        parts = [(0, n) for n in image.shape[2:]]
        if part != (0.0, 1.0):
            axis = max(range(len(parts)), key=lambda n: image.shape[2 + n])
            parts[axis] = _part(image.shape[2 + axis], part, self.size[axis])
        if any(high - low < n for (low, high), n in zip(parts, self.size, strict=True)):
            return [sample]
        count = round(math.prod(high - low for low, high in parts) / math.prod(self.size))
        draw = random.Random(seed)
        found = []
        for _ in range(max(1, min(16, count))):
            at = [draw.randint(low, high - n) for (low, high), n in zip(parts, self.size, strict=True)]
            found.append(self._piece(sample, image, at))
        return found

    def _piece(self, sample: Sample, image: Tensor, at: list[int]) -> Sample:
        window: Any = (..., *(slice(low, low + n) for low, n in zip(at, self.size, strict=True)))

        def cut(t: Tensor) -> Tensor:
            if t.dim() == image.dim() and t.shape[2:] == image.shape[2:]:
                return t[window].clone()
            return t

        return mapped(sample, cut)


def _part(length: int, part: tuple[float, float], size: int) -> tuple[int, int]:
    low, high = round(part[0] * length), round(part[1] * length)
    if high - low < size:  # the regions overlap rather than be too small
        low, high = (0, size) if part[0] == 0 else (length - size, length)
    return low, high


def cutting_of(
    runner: Callable[[list[Sample]], Tensor], sample: Sample, limits: RepairLimits, period: int
) -> Cutting | None:
    """How to cut pieces whose pictures are about ``limits.piece`` pixels wide: None where the samples are
    small enough as they are, or the model does not make of a piece what it makes of it in the whole."""
    whole = runner([sample])
    axes = whole.dim() - 2
    image = image_of(sample, axes)
    if image is None:
        return None
    scale = [made / read for made, read in zip(whole.shape[2:], image.shape[2:], strict=True)]
    wanted = limits.piece(axes, period)
    size = tuple(
        min(n, max(16, -(-math.ceil(wanted / s) // 16) * 16))
        for n, s in zip(image.shape[2:], scale, strict=True)
    )
    if math.prod(size) > 0.75 * math.prod(image.shape[2:]):
        return None
    cutting = Cutting(size)
    try:
        piece = runner([cutting._piece(sample, image, [0] * axes)])
    except Exception:
        return None
    made = [round(n * s) for n, s in zip(size, scale, strict=True)]
    if any(abs(n - m) > 0.25 * m for n, m in zip(piece.shape[2:], made, strict=True)):
        return None
    if limits.longest(tuple(piece.shape[2:])) < period:
        return None
    # what both make in the piece's middle half must be alike
    middle: Any = (..., *(slice(n // 4, n // 2) for n in piece.shape[2:]))
    one, other = piece[middle], whole[middle]
    spread = float(whole.std()) + 1e-12
    return cutting if float((one - other).square().mean().sqrt()) < 0.2 * spread else None


def shifted(samples: list[Sample], count: int, period: int, axes: int) -> list[Sample]:
    """More of the same: mirrored, and shifted against the up-samplers' grid (reflected at the border).

    None of waveforms: what they are made of has an order in time.
    """
    if axes == 1 or image_of(samples[0], axes) is None:
        return []
    draw = random.Random(2)
    found = []
    for n in range(count):
        sample = samples[n % len(samples)]
        image = image_of(sample, axes)
        if image is None:
            continue
        size = tuple(image.shape[2:])
        reach = min(period, *(length // 4 for length in size))
        at = [draw.randint(0, 2 * reach) for _ in size]
        window: Any = (..., *(slice(low, low + length) for low, length in zip(at, size, strict=True)))

        def vary(t: Tensor, reach: int = reach, window: Any = window, m: bool = n % 2 == 0) -> Tensor:
            wide = F.pad(t, (reach,) * (2 * axes), "reflect")[window]
            return wide.flip(-1) if m else wide.contiguous()

        found.append(_with_grids(sample, image, vary))
    return found


def enlarged(samples: list[Sample], axes: int) -> list[Sample]:
    """A part of each picture, at a random place, enlarged to the size of the whole by bilinear interpolation.

    A picture's content is much the same at every scale, but a pattern is not: what is smooth holds little
    else, and shows it most. A few pictures have little that is smooth; their parts, enlarged, are.
    None of waveforms and volumes, or of inputs without a grid.
    """
    if axes != 2 or image_of(samples[0], axes) is None:
        return []
    draw = random.Random(3)
    found = []
    for sample in samples:
        image = image_of(sample, axes)
        if image is None:
            continue
        size = tuple(image.shape[2:])
        part = [-(-length // _ENLARGED) for length in size]
        at = [draw.randint(0, length - n) for length, n in zip(size, part, strict=True)]
        window: Any = (..., *(slice(low, low + n) for low, n in zip(at, part, strict=True)))

        def enlarge(t: Tensor, size: Any = size, window: Any = window) -> Tensor:
            wide = F.interpolate(t[window].float(), size, mode="bilinear", align_corners=False)
            return wide.to(t)

        found.append(_with_grids(sample, image, enlarge))
    return found


def _with_grids(sample: Sample, image: Tensor, change: Callable[[Tensor], Tensor]) -> Sample:
    """A sample with ``change`` of each floating-point tensor that has the picture's axes and size."""

    def changed(t: Tensor) -> Tensor:
        alike = t.dim() == image.dim() and t.shape[2:] == image.shape[2:] and t.is_floating_point()
        return change(t) if alike else t

    return mapped(sample, changed)
