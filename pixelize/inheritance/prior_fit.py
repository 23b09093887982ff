"""PixelDCL's dependency kernels from the weights alone: least squares under a prior over the input.

The input's channels are taken as uncorrelated, each with a mean and a variance (0 and 1 unless more is
known), with the separable covariance ``rho ** (|dy| + |dx|)`` between pixels: natural images and feature maps
are about first-order autoregressive. Then every phase of the transposed convolution (the teacher) and every
phase of the PixelDCL (the student, eq. 3 of Gao et al.) is a linear filter of the input, all second moments
have closed forms, and each stage is one linear solve, with the student's own earlier phases as regressors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from operator import add, sub

import torch
from torch import Tensor

from pixelize.algebra.interpolation import PICTURE_CHANNELS, interpolation
from pixelize.algebra.least_squares import FAVOUR
from pixelize.algebra.polyphase import Phase, PhaseFilter, Size, last_axes, phase_filters
from pixelize.algebra.schedule import Feature, Schedule, Stage
from pixelize.algebra.symmetric import Symmetric, squares
from pixelize.rewrites import TransposedConv
from pixelize.rewrites.state.precision import float64

CORRELATION = 0.5
CHANNELS = 128
"""How many channels of filters are worked on at once."""
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
    del weight  # a copy of its own
    moments = _Moments(mean, groups)
    student: dict[Phase, PhaseFilter] = {plan.anchor: targets[plan.anchor]}
    energy = sum(moments.power(f) for f in targets.values())
    missed = 0.0
    kernels = []
    for number, stage in enumerate(plan.stages):
        if number < input_stages:
            student.update({t: targets[t] for t in stage.targets})
            kernels.append(mean.new_zeros(stage.kernel_shape(channels, groups, kernel_size)))
            continue
        solutions, squared = _fit_stage(stage, student, targets, moments, plan.stride, allowed_cost)
        missed += squared
        kernels.append(mean.new_zeros(stage.kernel_shape(channels, groups, kernel_size)))
        stage.assemble(solutions, kernels[-1], groups)
        if stage is not plan.stages[-1]:  # nothing reads what the last one makes
            made = {t: _composite(stage.features(t), solutions[t], student) for t in stage.targets}
            student.update(made)
    return kernels, (max(missed, 0.0) / energy) ** 0.5 if energy > 0 else 0.0


class _Moments:
    """Second moments, not centred, of filters of the input under the prior."""

    def __init__(self, mean: Tensor, groups: int) -> None:
        self.mean, self.groups = mean, groups

    def between(self, f: PhaseFilter, g: PhaseFilter, lag: Size) -> Tensor:
        """E f(j) g(j + lag)': (groups, C/groups, C/groups)."""
        left, width = self._grouped(f.kernel), g.kernel.shape[0] // self.groups
        correlations = []
        for axis, q in enumerate(lag):
            here = f.origin[axis] + torch.arange(f.kernel.shape[2 + axis], device=left.device)
            there = g.origin[axis] + q + torch.arange(g.kernel.shape[2 + axis], device=left.device)
            correlations.append(CORRELATION ** (here[:, None] - there).abs().to(left.dtype))
        moment = self._grouped(self._means(f.kernel)) @ self._grouped(self._means(g.kernel)).mT
        filters = g.kernel.unflatten(0, (self.groups, width)).split(CHANNELS, 1)
        for smooth, part in zip(filters, moment.split(CHANNELS, -1), strict=True):
            for correlation in correlations:
                # moves the axis to the end, so that all are in order again once each was
                smooth = torch.tensordot(smooth, correlation, dims=([3], [1]))
            part.baddbmm_(left, smooth.flatten(2).mT)
        return moment

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
    targets = stage.targets
    # in a dense stage all targets read the same; in a shared one all have the same kernel
    reads = [stage.features(t) for t in (targets if stage.shared else targets[:1])]

    def gram() -> Symmetric:
        return _gram(reads, student, moments)

    def cross(target: Phase) -> Tensor:
        rows = [
            moments.between(teacher[target], student[f.source], f.offset).mT for f in stage.features(target)
        ]
        return torch.cat(rows, -2)

    wanted = sum(map(cross, targets)) if stage.shared else torch.cat([cross(t) for t in targets], -1)
    assert isinstance(wanted, Tensor)
    power = sum(moments.power(teacher[t]) for t in targets)
    width = wanted.shape[-1] if stage.shared else wanted.shape[-1] // len(targets)
    if moments.groups * width <= PICTURE_CHANNELS and not stage.shared:
        solved, missed = _solve(gram, wanted.clone(), power)
        rows, made = interpolation(stage, stride, torch.eye(width, device="cpu").to(wanted))
        plain = gram()
        weight = FAVOUR * plain.mean_power()[:, None, None]

        def favouring() -> Symmetric:
            heavier = plain.clone()
            heavier.add_products(rows, weight)
            return heavier

        kept, _ = _solve(favouring, wanted + weight * (rows.T @ made), power)
        cost = power + float((kept * (plain.times(kept) - 2 * wanted)).sum())
        if cost <= min(allowed_cost**2 * missed, power):  # no worse than none at all
            solved, missed = kept, cost
    else:
        solved, missed = _solve(gram, wanted, power)
    parts = [solved] * len(targets) if stage.shared else solved.chunk(len(targets), -1)
    solutions = {t: beta.unflatten(-2, (len(reads[0]), -1)) for t, beta in zip(targets, parts, strict=True)}
    return solutions, missed


def _gram(
    reads: list[tuple[Feature, ...]], student: dict[Phase, PhaseFilter], moments: _Moments
) -> Symmetric:
    """The second moments of what is read, summed over the targets that read it."""
    # a moment depends on two sources and a lag, and stands in many places: none is kept
    places: dict[tuple[Phase, Phase, Size], list[tuple[int, int]]] = defaultdict(list)
    for features in reads:
        for (i, f), (j, g) in product(enumerate(features), repeat=2):
            if i >= j:
                places[f.source, g.source, tuple(map(sub, g.offset, f.offset))].append((i, j))
    kernel = student[reads[0][0].source].kernel
    width = kernel.shape[0] // moments.groups
    whole = Symmetric(moments.groups, len(reads[0]) * width, kernel.dtype, kernel.device, block=width)
    while places:
        (source, other, lag), at = places.popitem()
        moment = moments.between(student[source], student[other], lag)
        for i, j in at:
            whole.add_block(i * width, j * width, moment)
        for i, j in places.pop((other, source, tuple(-q for q in lag)), ()):
            whole.add_block(i * width, j * width, moment.mT)
    return whole


def _solve(gram: Callable[[], Symmetric], right: Tensor, power: float) -> tuple[Tensor, float]:
    """The solution, in the place of ``right``, for the smallest ridge that rounding allows, and ``power``
    less what it explains.

    ``gram()`` makes the matrix, each time anew: it is factored where it lies. With (G + r I) s = w the error
    power - 2 s'w + s'G s is power - s'w - r |s|^2.
    """
    for ridge in RIDGES:
        whole = gram()
        added = ridge * whole.mean_power()
        if whole.factor(added):
            explained = whole.solve(right) + added * squares(right)
            return right, power - float(explained.sum())
        del whole  # before the next is made
    return right.zero_(), power


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
