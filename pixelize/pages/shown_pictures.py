"""Pictures ready for the eye: any range and channels as bytes, with a zoom and an amplified difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import as_periods, frequencies, minimum_size
from pixelize.measure.local_map import checkerboard_map
from pixelize.measure.notch import notch

ROUNDING = 1e-5  # of the pictures' range: differences below it are called none


@dataclass(frozen=True, eq=False)
class ShownPictures:
    """What is shown of each variant of the same pictures, as ``(N, height, width, 3)`` arrays of bytes.

    ``pictures`` and ``zooms`` by variant; ``patterns``: what lies around the checkerboard's frequencies in
    the zooms, times ``pattern_gain`` around mid-grey; ``differences`` by variant but the reference: mid-grey
    where nothing changed, and the change times ``gains[variant]`` around it (a gain of 0: none beyond
    rounding).
    ``largest``: the largest absolute change by variant, in units of the pictures' range. ``boxes``: (top,
    left, size) of each picture's zoom. ``channel``: the one that is shown where a picture has neither one nor
    three, else None.
    """

    reference: str
    pictures: dict[str, np.ndarray]
    zooms: dict[str, np.ndarray]
    patterns: dict[str, np.ndarray]
    pattern_gain: float
    differences: dict[str, np.ndarray]
    gains: dict[str, float]
    largest: dict[str, float]
    boxes: list[tuple[int, int, int]]
    channel: int | None


def shown_pictures(
    columns: Mapping[str, Tensor], reference: str, *, period: int | tuple[int, int] = 2, rows: int = 4
) -> ShownPictures:
    """The first ``rows`` pictures of every variant as :class:`ShownPictures`.

    All variants are shown in the reference's range (its 0.1% and 99.9% quantiles). The zoom is where the
    reference's checkerboard is strongest (:func:`checkerboard_map`), or the middle of tiny pictures.

    Args:
        columns: the same pictures by variant, ``(N, C, H, W)`` each, all of one shape.
        reference: the variant that the others are compared with.
        period: of the checkerboard to look for.

    Raises:
        ArgumentError: no such reference, shapes that differ or are no pictures, NaN or inf.
    """
    check_columns(columns, reference)
    shown = {name: batch[:rows].detach().float().cpu() for name, batch in columns.items()}
    base = shown[reference]
    channel = None
    if base.shape[1] not in (1, 3):
        channel = int(base.var((0, 2, 3), correction=0).argmax())
        shown = {name: batch[:, channel : channel + 1] for name, batch in shown.items()}
        base = shown[reference]
    low, high = _range(base)
    boxes = [_box(picture, period) for picture in base]
    pictures = {name: _bytes((batch - low) / (high - low)) for name, batch in shown.items()}
    differences, gains, largest = {}, {}, {}
    for name, batch in shown.items():
        if name == reference:
            continue
        change = (batch - base) / (high - low)
        largest[name] = float(change.abs().max())
        gains[name] = _gain(change) if largest[name] > ROUNDING else 0.0
        differences[name] = _bytes(0.5 + gains[name] * change)
    alone = {name: _pattern(batch, period) / (high - low) for name, batch in shown.items()}
    gain = _gain(alone[reference])
    patterns = {name: _zoomed(_bytes(0.5 + gain * batch), boxes) for name, batch in alone.items()}
    zooms = {name: _zoomed(array, boxes) for name, array in pictures.items()}
    return ShownPictures(
        reference, pictures, zooms, patterns, gain, differences, gains, largest, boxes, channel
    )


def _zoomed(pictures: np.ndarray, boxes: list[tuple[int, int, int]]) -> np.ndarray:
    return np.stack([pictures[i, y : y + s, x : x + s] for i, (y, x, s) in enumerate(boxes)])


def _pattern(batch: Tensor, period: int | tuple[int, int]) -> Tensor:
    """What a batch (N, C, H, W) has around the checkerboard's frequencies."""
    periods = as_periods(period)
    square = math.lcm(*periods)
    own = (
        f
        for f in frequencies(square)
        if all(abs(v * p - round(v * p)) < 1e-9 for v, p in zip(f, periods, strict=True))
    )
    depth = dict.fromkeys(own, 1.0)
    return batch - notch(batch, square, depth=depth)


def check_columns(columns: Mapping[str, Tensor], reference: str) -> None:
    """Raises ArgumentError unless ``columns`` are finite pictures of one shape, ``reference`` among them."""
    if reference not in columns:
        raise ArgumentError(f"reference={reference!r} is none of {', '.join(columns) or 'nothing'}")
    shape = columns[reference].shape
    for name, batch in columns.items():
        if batch.dim() != 4 or 0 in batch.shape:
            raise ArgumentError(f"{name}: shape {tuple(batch.shape)}; pictures are (N, C, H, W)")
        if batch.shape != shape:
            raise ArgumentError(
                f"{name}: shape {tuple(batch.shape)}, while {reference} has {tuple(shape)}; the same "
                "pictures are needed"
            )
        if not bool(torch.isfinite(batch).all()):
            raise ArgumentError(
                f"{name}: its pictures hold NaN or inf; find out which input or layer makes them"
            )


def difference_caption(shown: ShownPictures, name: str) -> str:
    """``"difference ×20"``, or what the largest difference is where there is none to see."""
    if shown.gains[name]:
        return f"difference ×{shown.gains[name]:g}"
    return "no difference" if not shown.largest[name] else f"no difference (< {shown.largest[name]:.0e})"


def enlarged(picture: np.ndarray, least: int) -> np.ndarray:
    """``(H, W, 3)`` with every pixel repeated, so that the longer side has about ``least`` pixels or more.

    Shown at a size of its own it is then scaled down smoothly: nearest-neighbour enlargement by a factor that
    is not whole makes some pixels wider than others, a pattern that the model did not make.
    """
    factor = -(-least // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def _range(base: Tensor) -> tuple[float, float]:
    values = base.flatten()
    values = values[:: max(1, values.numel() // 1_000_000)]  # torch.quantile takes 16 million at most
    low, high = torch.quantile(values, torch.tensor([0.001, 0.999])).tolist()
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _box(picture: Tensor, period: int | tuple[int, int]) -> tuple[int, int, int]:
    height, width = picture.shape[-2:]
    size = min(height, width, max(24, min(height, width) // 5))
    least = minimum_size(as_periods(period))
    if height < least[0] or width < least[1]:
        return (height - size) // 2, (width - size) // 2, size
    strength = F.avg_pool2d(checkerboard_map(picture, period)[None, None], size, stride=1)[0, 0]
    top, left = divmod(int(strength.argmax()), strength.shape[1])
    return top, left, size


def _gain(change: Tensor) -> float:
    """The largest of 1, 2, 5, 10, ... with which 99.5% of the changes stay within the range."""
    typical = float(torch.quantile(change.abs().flatten()[: 2**23], 0.995)) or float(change.abs().max())
    steps = [m * 10.0**e for e in range(6) for m in (1, 2, 5)]
    return max((s for s in steps if s * typical <= 0.5), default=1.0)


def _bytes(batch: Tensor) -> np.ndarray:
    """``(N, 1 or 3, H, W)`` in [0, 1] to ``(N, H, W, 3)``."""
    grey = (batch.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return grey.expand(*grey.shape[:3], 3).numpy().copy()
