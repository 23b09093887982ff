"""Pieces of large pictures, and more of few: mirrored, and shifted against the up-samplers' grid."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pixelize.refit.limits import RepairLimits
from pixelize.refit.sample import Sample, image_of, mapped


@dataclass(frozen=True)
class Cutting:
    """Pieces of (h, w) input pixels."""

    size: tuple[int, int]

    def pieces(self, sample: Sample, seed: int, part: tuple[float, float] = (0.0, 1.0)) -> list[Sample]:
        """As many as fill the sample, at random places, within a part of its longer side."""
        image = image_of(sample)
        assert image is not None
        height, width = image.shape[-2:]
        (top, bottom), (left, right) = (0, height), (0, width)
        if part != (0.0, 1.0):
            if height >= width:
                top, bottom = _part(height, part, self.size[0])
            else:
                left, right = _part(width, part, self.size[1])
        if bottom - top < self.size[0] or right - left < self.size[1]:
            return [sample]
        count = round((bottom - top) * (right - left) / (self.size[0] * self.size[1]))
        draw = random.Random(seed)
        found = []
        for _ in range(max(1, min(16, count))):
            y = draw.randint(top, bottom - self.size[0])
            x = draw.randint(left, right - self.size[1])
            found.append(self._piece(sample, image, y, x))
        return found

    def _piece(self, sample: Sample, image: Tensor, y: int, x: int) -> Sample:
        def cut(t: Tensor) -> Tensor:
            if t.dim() == image.dim() and t.shape[-2:] == image.shape[-2:]:
                return t[..., y : y + self.size[0], x : x + self.size[1]].clone()
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
    """How to cut pieces whose pictures are about ``limits.side`` pixels wide: None where the samples are
    small enough as they are, or the model does not make of a piece what it makes of it in the whole."""
    image = image_of(sample)
    if image is None:
        return None
    whole = runner([sample])
    scale = whole.shape[-2] / image.shape[-2], whole.shape[-1] / image.shape[-1]
    wanted = max(limits.side, 8 * period)
    size = tuple(
        min(n, max(16, -(-math.ceil(wanted / s) // 16) * 16))
        for n, s in zip(image.shape[-2:], scale, strict=True)
    )
    if size[0] * size[1] > 0.75 * image.shape[-2] * image.shape[-1]:
        return None
    cutting = Cutting((size[0], size[1]))
    try:
        piece = runner([cutting._piece(sample, image, 0, 0)])
    except Exception:
        return None
    made = round(size[0] * scale[0]), round(size[1] * scale[1])
    if any(abs(piece.shape[n - 2] - made[n]) > 0.25 * made[n] for n in (0, 1)):
        return None
    if min(piece.shape[-2:]) < 8 * period:
        return None
    # what both make in the piece's middle half must be alike
    rows, columns = (slice(n // 4, n // 2) for n in piece.shape[-2:])
    one, other = piece[..., rows, columns], whole[..., rows, columns]
    spread = float(whole.std()) + 1e-12
    return cutting if float((one - other).square().mean().sqrt()) < 0.2 * spread else None


def shifted(samples: list[Sample], count: int, period: int) -> list[Sample]:
    """More of the same: mirrored, and shifted against the up-samplers' grid (reflected at the border)."""
    draw = random.Random(2)
    found = []
    for n in range(count):
        sample = samples[n % len(samples)]
        image = image_of(sample)
        assert image is not None
        reach = min(period, image.shape[-2] // 4, image.shape[-1] // 4)
        y, x, mirrored = draw.randint(0, 2 * reach), draw.randint(0, 2 * reach), n % 2 == 0

        def vary(
            t: Tensor, image: Tensor = image, reach: int = reach, y: int = y, x: int = x, m: bool = mirrored
        ) -> Tensor:
            if t.dim() != image.dim() or t.shape[-2:] != image.shape[-2:] or not t.is_floating_point():
                return t
            wide = F.pad(t, (reach,) * 4, "reflect")[..., y : y + t.shape[-2], x : x + t.shape[-1]]
            return wide.flip(-1) if m else wide.contiguous()

        found.append(mapped(sample, vary))
    return found
