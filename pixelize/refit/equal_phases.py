"""Phases that answer a constant alike: what the weights alone can do against the checkerboard."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelize.refit.coordinates import taps_of

MOST_CHANGE = 0.3
"""Relative change of a layer's weights up to which the repair without data goes."""


def equalised(layer: nn.ConvTranspose2d) -> tuple[Tensor, str]:
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
    if len(phases) < layer.stride[0] * layer.stride[1]:
        return weight, "its kernel is smaller than its stride: some phases have no taps"
    members = [[tap for tap in taps if tap.phase == phase] for phase in phases]
    sums = torch.stack(
        [torch.stack([weight[..., t.place[0], t.place[1]] for t in group]).sum(0) for group in members]
    )
    mean = sums.mean(0)
    for group, total in zip(members, sums, strict=True):
        for tap in group:
            weight[..., tap.place[0], tap.place[1]] += (mean - total) / len(group)
    change = ((weight - layer.weight).norm() / layer.weight.norm().clamp_min(1e-12)).item()
    if change > MOST_CHANGE:
        return layer.weight.detach().clone(), f"equal phases would change its weights by {change:.0%}"
    return weight, ""
