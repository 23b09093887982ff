"""Training what a PixelDCL sees of the input and all its dependency kernels together, by gradients, to given
inputs and outputs.

Least squares stage by stage (:mod:`pixelize.calibration.layer_fit`) fits the first phase to the teacher's
first phase. What would serve all phases is another map: they are all made of it, and it has no more
channels than one of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pixelize.algebra.interpolation import PICTURE_CHANNELS
from pixelize.algebra.polyphase import last_axes
from pixelize.calibration.layer_fit import Pairs, fit_stage, layer_error, layer_errors, numbered
from pixelize.calibration.whitened_adam import WhitenedAdam
from pixelize.layers.pixel_dcl import PixelDCL

RATE = 3e-4
"""How far a step in one whitened coordinate moves the output, as a share of its root mean square."""
WARM_UP = 10
"""Steps over which the rate rises."""
LEVEL = 0.4
"""The share of the steps after which the rate falls, as a cosine, to zero."""
ALLOWED_COST = 1.25
"""As :data:`pixelize.algebra.interpolation.ALLOWED_COST`, for kernels whose phases were not trained
to be interpolated: of the faces of a DCGAN it took 1.01 to 1.06, by the samples.
"""
LOOKED_AT = 4
"""Batches from which the features' moments are learned."""


def fit_jointly(
    layer: PixelDCL,
    pairs: Pairs,
    steps: int,
    costs: Tensor | None = None,
    advance: Callable[[], None] = lambda: None,
) -> float:
    """Trains ``layer`` on ``pairs`` for ``steps`` batches, in place, and returns its relative error on the
    held-back samples (on all if there is but one).

    Adam in whitened coordinates (:class:`pixelize.calibration.whitened_adam.WhitenedAdam`) on the mean of
    what the errors e of the pixels cost, e^T ``costs`` e
    (:func:`pixelize.calibration.sensitivity.sensitivities`; None: |e|^2); the bias stays. Kernels that
    make pictures are fitted again in closed form at the end, so that they interpolate, unless that costs
    what was gained. What costs no less on the held-back samples is not kept.

    ``advance`` is called after each step.
    """
    weighing = _weighing(layer, costs)
    student = copy.deepcopy(layer).requires_grad_(True)
    if layer.weight.dtype.itemsize < 4:
        student.float()
    if student.bias is not None:
        student.bias.requires_grad_(False)
    batches = _rounds(pairs, student.weight.dtype)
    looked_at = [x for x, _ in zip((x for x, _ in batches), range(LOOKED_AT), strict=False)]
    optimizer = WhitenedAdam(nn.Sequential(student, weighing), looked_at, RATE)
    for step, (x, y) in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_share(step, step / steps)
        optimizer.zero_grad()
        weighing(student(x, list(y.shape[2:])) - y).square().mean().backward()
        optimizer.step()
        advance()
    student.to(layer.weight.dtype)
    candidates = [student]
    if layer.out_channels <= PICTURE_CHANNELS:
        candidates.insert(0, copy.deepcopy(student))
        for number, stage in enumerate(student.plan.stages):
            fit_stage(candidates[0], number, stage, pairs, allowed_cost=ALLOWED_COST)
    before, *after = layer_errors([layer, *candidates], pairs, weighing)
    for candidate, error in zip(candidates, after, strict=True):
        if error < before:
            layer.load_state_dict(candidate.state_dict())
            break
    return layer_error(layer, pairs)


def _weighing(layer: PixelDCL, costs: Tensor | None) -> nn.Module:
    """A 1x1 convolution that makes of errors e what has the squared size e^T ``costs`` e."""
    if costs is None:
        return nn.Identity()
    n = len(layer.stride)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[n]
    conv = kind(len(costs), len(costs), 1, bias=False).requires_grad_(False).to(layer.weight)
    conv.weight.copy_(torch.linalg.cholesky(costs).T[last_axes((None,) * n)])
    return conv.float() if conv.weight.dtype.itemsize < 4 else conv


def rate_share(step: int, done: float) -> float:
    """What share of the full rate step number ``step`` has when a share ``done`` of the training is over."""
    fall = (1 + math.cos(math.pi * max(0.0, done - LEVEL) / (1 - LEVEL))) / 2
    return min(1.0, (step + 1) / WARM_UP) * fall


def _rounds(pairs: Pairs, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples that are not held back, again and again."""
    while True:
        seen = 0
        for x, y, held in numbered(pairs):
            if not held.all():
                seen += 1
                yield x[~held].to(dtype), y[~held].to(dtype)
        if not seen:
            return
