"""PixelDCL's dependency kernels from the weights alone: least squares under a prior over the input.

The input's channels are taken as uncorrelated, each with a mean and a variance (0 and 1 unless more is
known), with the separable covariance ``rho ** (|dy| + |dx|)`` between pixels: natural images and feature maps
are about first-order autoregressive. Then every phase of the transposed convolution (the teacher) and every
phase of the PixelDCL (the student, eq. 3 of Gao et al.) is a linear filter of the input, all second moments
have closed forms, and each stage is one linear solve, with the student's own earlier phases as regressors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add, sub

import torch
from torch import Tensor

from pixelize.algebra.interpolation import PICTURE_CHANNELS, interpolation
from pixelize.algebra.least_squares import FAVOUR, mean_power, solve_ridge
from pixelize.algebra.polyphase import Phase, PhaseFilter, Size, last_axes, phase_filters
from pixelize.algebra.schedule import Feature, Schedule, Stage
from pixelize.rewrites import TransposedConv
from pixelize.rewrites.state.precision import float64

CORRELATION = 0.5
RIDGES = (1e-6, 1e-4, 1e-2)
"""Relative to the mean feature's power; the larger ones where rounding leaves the smaller without effect."""
ALLOWED_COST = 1.25
"""As :data:`pixelize.algebra.interpolation.ALLOWED_COST`, of the expected error. More than a fit on data may
pay: a prior exaggerates what is lost, since pictures are smoother.
"""


@dataclass(frozen=True)
class InputPrior:
    """What is known of a layer's input: mean and standard deviation of each channel, (C_in,) in float64."""

    mean: Tensor
    deviation: Tensor


def fit_from_prior(
    teacher: TransposedConv,
    plan: Schedule,
    kernel_size: Size,
    groups: int,
    input_stages: int = 0,
    prior: InputPrior | None = None,
    allowed_cost: float = ALLOWED_COST,
) -> tuple[list[Tensor], float]:
    """The dependency kernels that make a PixelDCL closest to ``teacher`` under the prior.

    ``input_stages``: the phases of so many stages see the input themselves, and need no dependencies.
    ``allowed_cost``: kernels that make pictures interpolate where that costs at most so many times the
    expected error.

    Returns the kernels, one for each stage (float64), and the expected relative error: the root of the
    expected squared error over the expected squared output, over all phases.
    """
    geometry = teacher.geometry
    channels = geometry.out_channels
    weight = float64(teacher.weight.detach())
    mean = weight.new_zeros(geometry.in_channels)
    if prior is not None:  # in units of each channel's deviation
        deviation = prior.deviation.to(weight).clamp_min(1e-12)
        weight = weight * deviation.reshape(-1, *(1,) * (weight.dim() - 1))
        mean = prior.mean.to(weight) / deviation
    targets = phase_filters(weight, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    moments = _Moments(mean, groups)
    student: dict[Phase, PhaseFilter] = {plan.anchor: targets[plan.anchor]}
    energy = sum(moments.power(f) for f in targets.values())
    missed = 0.0
    kernels = []
    for number, stage in enumerate(plan.stages):
        kernel = weight.new_zeros(stage.kernel_shape(channels, groups, kernel_size))
        if number < input_stages:
            student.update({t: targets[t] for t in stage.targets})
        else:
            solutions, squared = _fit_stage(stage, student, targets, moments, plan.stride, allowed_cost)
            missed += squared
            stage.assemble(solutions, kernel, groups)
            for target in stage.targets:
                student[target] = _composite(stage.features(target), solutions[target], student)
        kernels.append(kernel)
    return kernels, (max(missed, 0.0) / energy) ** 0.5 if energy > 0 else 0.0


class _Moments:
    """Second moments, not centred, of filters of the input under the prior."""

    def __init__(self, mean: Tensor, groups: int) -> None:
        self.mean, self.groups = mean, groups

    def between(self, f: PhaseFilter, g: PhaseFilter, lag: Size) -> Tensor:
        """E f(j) g(j + lag)': (groups, C/groups, C/groups)."""
        smooth = g.kernel
        for axis in range(len(lag)):
            here = f.origin[axis] + torch.arange(f.kernel.shape[2 + axis], device=smooth.device)
            there = g.origin[axis] + lag[axis] + torch.arange(g.kernel.shape[2 + axis], device=smooth.device)
            correlation = CORRELATION ** (here[:, None] - there).abs().to(smooth.dtype)
            # moves the axis to the end, so that all are in order again once each was
            smooth = torch.tensordot(smooth, correlation, dims=([2], [1]))
        left, right = self._grouped(f.kernel), self._grouped(smooth)
        means = (self._grouped(self._means(k.kernel)) for k in (f, g))
        return left @ right.transpose(-1, -2) + next(means) @ next(means).transpose(-1, -2)

    def power(self, f: PhaseFilter) -> float:
        """E |f(j)|^2, summed over the channels."""
        smooth = f.kernel
        for axis in range(len(f.origin)):
            at = torch.arange(f.kernel.shape[2 + axis], device=smooth.device)
            correlation = CORRELATION ** (at[:, None] - at).abs().to(smooth.dtype)
            smooth = torch.tensordot(smooth, correlation, dims=([2], [1]))
        return float((smooth * f.kernel).sum() + self._means(f.kernel).square().sum())

    def _means(self, kernel: Tensor) -> Tensor:
        return (kernel.flatten(2).sum(2) @ self.mean)[:, None]

    def _grouped(self, kernel: Tensor) -> Tensor:
        return kernel.reshape(self.groups, kernel.shape[0] // self.groups, -1)


def _fit_stage(
    stage: Stage,
    student: dict[Phase, PhaseFilter],
    teacher: dict[Phase, PhaseFilter],
    moments: _Moments,
    stride: Size,
    allowed_cost: float,
) -> tuple[dict[Phase, Tensor], float]:
    """For each target (groups, features, C/groups, C/groups), and the expected squared error that is left."""
    lags: dict[tuple[Phase, Phase, Size], Tensor] = {}

    def between(f: Feature, g: Feature) -> Tensor:
        lag = tuple(map(sub, g.offset, f.offset))
        key, mirror = (f.source, g.source, lag), (g.source, f.source, tuple(-q for q in lag))
        if key not in lags and mirror not in lags:
            lags[key] = moments.between(student[f.source], student[g.source], lag)
        return lags[key] if key in lags else lags[mirror].transpose(-1, -2)

    def gram(target: Phase) -> Tensor:
        features = stage.features(target)
        first = between(features[0], features[0])
        groups, width, _ = first.shape
        # filled part by part: of thousands of features it is the largest thing there is
        whole = first.new_empty(groups, len(features) * width, len(features) * width)
        for i, f in enumerate(features):
            for j, g in enumerate(features):
                whole[:, i * width : (i + 1) * width, j * width : (j + 1) * width] = between(f, g)
        return whole

    def cross(target: Phase) -> Tensor:
        rows = [
            moments.between(teacher[target], student[f.source], f.offset).transpose(-1, -2)
            for f in stage.features(target)
        ]
        return torch.cat(rows, -2)

    targets = stage.targets
    crosses = {t: cross(t) for t in targets}
    # in a dense stage all targets read the same; in a shared one all have the same kernel
    read = targets if stage.shared else targets[:1]
    right = [sum(crosses.values())] if stage.shared else list(crosses.values())
    wanted = torch.cat(right, -1)  # type: ignore[arg-type]
    power = sum(moments.power(teacher[t]) for t in targets)

    def total() -> Tensor:
        return sum((gram(t) for t in read[1:]), gram(read[0]))

    solved, missed = _solve(total, wanted, power)
    if wanted.shape[0] * crosses[targets[0]].shape[-1] <= PICTURE_CHANNELS and not stage.shared:
        channels = torch.eye(wanted.shape[-1] // len(targets), device="cpu").to(wanted)
        rows, made = interpolation(stage, stride, channels)
        weight = FAVOUR * mean_power(total())[:, None, None]
        kept, _ = _solve(lambda: total() + weight * (rows.T @ rows), wanted + weight * (rows.T @ made), power)
        cost = power + float((kept * (total() @ kept - 2 * wanted)).sum())
        if cost <= min(allowed_cost**2 * missed, power):  # no worse than none at all
            solved, missed = kept, cost
    parts = [solved] * len(targets) if stage.shared else solved.chunk(len(targets), -1)
    count = len(stage.features(targets[0]))
    solutions = {t: beta.unflatten(-2, (count, -1)) for t, beta in zip(targets, parts, strict=True)}
    return solutions, missed


def _solve(gram: Callable[[], Tensor], right: Tensor, power: float) -> tuple[Tensor, float]:
    """The solution for the smallest ridge that rounding allows, and ``power`` less what it explains.

    ``gram()`` makes the matrix, each time anew: of thousands of features it is the largest thing there is,
    and is factored where it lies. With (G + r I) s = w the error power - 2 s'w + s'G s is
    power - s'w - r |s|^2.
    """
    for ridge in RIDGES:
        whole = gram()
        added = ridge * mean_power(whole)
        solution = solve_ridge(whole, right, added, overwrite=True)
        if solution is not None:
            explained = (solution * right).sum() + (added * solution.square().sum((-1, -2))).sum()
            return solution, power - float(explained)
        del whole  # before the next is made
    return torch.zeros_like(right), power


def _composite(
    features: tuple[Feature, ...], solution: Tensor, made: dict[Phase, PhaseFilter]
) -> PhaseFilter:
    """A phase made from others, ``solution`` (groups, features, C/groups in, C/groups out), as one filter of
    the input.
    """
    starts = [tuple(map(add, made[f.source].origin, f.offset)) for f in features]
    sizes = [made[f.source].kernel.shape[2:] for f in features]
    origin = tuple(map(min, zip(*starts, strict=True)))
    ends = [tuple(map(add, start, size)) for start, size in zip(starts, sizes, strict=True)]
    size = tuple(map(sub, map(max, zip(*ends, strict=True)), origin))
    groups, _, width, _ = solution.shape
    channels = made[features[0].source].kernel.shape[:2]
    total = solution.new_zeros(groups, width, channels[1], *size)
    for j, (feature, start, window) in enumerate(zip(features, starts, sizes, strict=True)):
        source = made[feature.source].kernel.reshape(groups, width, -1)
        part = (solution[:, j].transpose(-1, -2) @ source).reshape(groups, width, channels[1], *window)
        place = (slice(a - b, a - b + n) for a, b, n in zip(start, origin, window, strict=True))
        total[last_axes(place)] += part
    return PhaseFilter(total.reshape(*channels, *size), origin)
