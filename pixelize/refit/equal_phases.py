"""Phases that answer a constant alike: what the weights alone can do against the checkerboard."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from pixelize.refit.coordinates import Tap, taps_of

MOST_CHANGE = 0.3
"""Relative change of a layer's weights up to which the repair without data goes."""


def equalised(layer: _ConvTransposeNd) -> tuple[Tensor, str]:
    """The weight nearest to the layer's whose phases have equal sums, and why it had better not be used, if
    so.

    A constant input c gives phase a the value ``c * sum of a's taps``: where these differ, a flat area gets
    a pattern. The nearest weight (least squares) moves every tap of a phase by the same amount, so that
    each phase has the mean of the sums, which keeps the constant's own answer. It is refused where the
    relative change is over ``MOST_CHANGE``: such phases differ because they have to.
    """
    weight = layer.weight.detach().clone()
    taps = taps_of(layer)
    phases = sorted({tap.phase for tap in taps})
    if len(phases) < math.prod(layer.stride):
        return weight, "its kernel is smaller than its stride: some phases have no taps"
    members = [[tap for tap in taps if tap.phase == phase] for phase in phases]
    sums = torch.stack([torch.stack([_at(weight, tap) for tap in group]).sum(0) for group in members])
    mean = sums.mean(0)
    for group, total in zip(members, sums, strict=True):
        for tap in group:
            _at(weight, tap).add_((mean - total) / len(group))
    change = ((weight - layer.weight).norm() / layer.weight.norm().clamp_min(1e-12)).item()
    if change > MOST_CHANGE:
        return layer.weight.detach().clone(), f"equal phases would change its weights by {change:.0%}"
    return weight, ""


def _at(weight: Tensor, tap: Tap) -> Tensor:
    """A view of one tap of a weight (in, out, taps ..)."""
    return weight.movedim((0, 1), (-2, -1))[tap.place]
