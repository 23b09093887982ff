"""Seams: where pictures were put together from tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_TILE = 16
"""Pixels: smaller tiles cannot be told from a pattern of up-sampling."""
JUMP = 2.0
"""How much more power the step over a seam has than the steps beside it."""


def tile_size(pictures: Sequence[Tensor], scale: int = 1) -> tuple[int | None, ...]:
    """The height and width of the tiles that pictures (N, C, H, W) of one size were put together from, of
    volumes the depth too; None for an axis without seams.

    A seam is a line, between two pixels, over which neighbours differ by much more than over the lines beside
    it. Tiles of T pixels have one at every multiple of T. ``scale``: of the whole up-sampling before; tiles
    are whole multiples of it, and only lines that are such multiples are compared, since a pattern of
    up-sampling makes some lines differ from others too.
    """
    return tuple(_along(pictures, axis, scale) for axis in range(2, pictures[0].dim()))


def _along(pictures: Sequence[Tensor], axis: int, scale: int) -> int | None:
    size = pictures[0].shape[axis]
    steps = (p.double().diff(dim=axis).square().movedim(axis, -1) for p in pictures)
    power = torch.stack([s.flatten(0, -2).sum(0).cpu() for s in steps]).sum(0)
    lines = power[scale - 1 :: scale]
    if len(lines) < 4:
        return None
    beside = torch.nn.functional.pad(lines[None], (3, 3), mode="reflect")[0].unfold(0, 7, 1)
    others = torch.cat([beside[:, :3], beside[:, 4:]], 1).max(1).values  # one to three lines away
    jumps = lines / (others + 1e-12 * power.mean() + 1e-300)
    for tiles in range(max(4, -(-LEAST_TILE // scale)), size // scale // 2 + 1):
        if float(jumps[tiles - 1 :: tiles].min()) > JUMP:
            return tiles * scale
    return None
