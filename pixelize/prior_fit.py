"""PixelDCL's dependency kernels from the weights alone: least squares under a prior over the input.

The input is taken as zero-mean, its channels uncorrelated, with the separable covariance ``rho ** (|dy| + |dx|)`` between
pixels (natural images and feature maps are about first-order autoregressive). Then every phase of the transposed convolution
(the teacher) and every phase of the PixelDCL (the student, eq. 3 of Gao et al.) is a linear filter of the input, all second
moments have closed forms, and each stage is one linear solve, with the student's own earlier phases as regressors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixelize.polyphase import Phase, PhaseFilter, add_filters, compose, phase_filters
from pixelize.rewrites import TransposedConv
from pixelize.schedule import Schedule

CORRELATION = 0.5
RIDGE = 1e-6


def fit_from_prior(
    teacher: TransposedConv, plan: Schedule, kernel_size: tuple[int, int], groups: int, input_stages: int = 0
) -> tuple[list[Tensor], float]:
    """The dependency kernels that make a PixelDCL closest to ``teacher`` under the prior.

    Returns the kernels, one for each stage (float64), and the expected relative error: the root of the expected squared error over the
    expected squared output, over all phases.
    """
    geometry = teacher.geometry
    channels = geometry.out_channels
    targets = phase_filters(
        teacher.weight.detach().double(),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.groups,
    )
    student: dict[Phase, PhaseFilter] = {plan.anchor: targets[plan.anchor]}
    energy = sum(float(_covariance(f, f, (0, 0), 1).diagonal(0, -2, -1).sum()) for f in targets.values())
    missed = 0.0
    kernels = []
    for number, stage in enumerate(plan.stages):
        if number < input_stages:  # these phases see the input: exact with zero dependencies
            shape = stage.kernel_shape(channels, groups, kernel_size)
            kernels.append(torch.zeros(shape, dtype=torch.float64, device=teacher.weight.device))
            student.update({t: targets[t] for t in stage.targets})
            continue
        solutions, squared = _fit_stage(stage.features, stage.targets, stage.shared, student, targets, groups)
        missed += squared
        kernel = torch.zeros(
            stage.kernel_shape(channels, groups, kernel_size),
            dtype=torch.float64,
            device=teacher.weight.device,
        )
        stage.assemble(solutions, kernel, groups)
        kernels.append(kernel)
        for target in stage.targets:
            parts = []
            for j, feature in enumerate(stage.features(target)):
                tap = torch.block_diag(*solutions[target][:, j].transpose(-1, -2))
                parts.append(compose(tap[:, :, None, None], feature.offset, student[feature.source]))
            student[target] = add_filters(parts)
    return kernels, (max(missed, 0.0) / energy) ** 0.5 if energy > 0 else 0.0


def _fit_stage(features, targets, shared, student, teacher, groups):  # type: ignore[no-untyped-def]
    solutions: dict[Phase, Tensor] = {}
    lags: dict[tuple[Phase, Phase, int, int], Tensor] = {}

    def source_covariance(f, g):  # type: ignore[no-untyped-def]
        dy, dx = g.offset[0] - f.offset[0], g.offset[1] - f.offset[1]
        key = (f.source, g.source, dy, dx)
        if key not in lags:
            mirror = (g.source, f.source, -dy, -dx)
            lags[key] = (
                lags[mirror].transpose(-1, -2)
                if mirror in lags
                else _covariance(student[f.source], student[g.source], (dy, dx), groups)
            )
        return lags[key]

    def gram(target: Phase) -> Tensor:
        return torch.cat(
            [torch.cat([source_covariance(f, g) for g in features(target)], -1) for f in features(target)], -2
        )

    def cross(target: Phase) -> Tensor:
        rows = [
            _covariance(teacher[target], student[f.source], f.offset, groups).transpose(-1, -2)
            for f in features(target)
        ]
        return torch.cat(rows, -2)

    crosses = {t: cross(t) for t in targets}
    grams = {t: gram(t) for t in (targets if shared else targets[:1])}
    total = sum(grams.values())
    right: Sequence[Tensor] = [sum(crosses.values())] if shared else [crosses[t] for t in targets]  # type: ignore[list-item]
    n = len(features(targets[0]))
    solved = solve_ridge(total, torch.cat(list(right), -1), RIDGE).unflatten(-2, (n, -1))
    missed = 0.0
    for i, target in enumerate(targets):
        width = crosses[target].shape[-1]
        solution = solved if shared else solved[..., i * width : (i + 1) * width]
        solutions[target] = solution
        beta = solution.flatten(-3, -2)
        power = float(_covariance(teacher[target], teacher[target], (0, 0), 1).diagonal(0, -2, -1).sum())
        g = grams[target if shared else targets[0]]
        missed += power - 2 * float((beta * crosses[target]).sum()) + float((beta * (g @ beta)).sum())
    return solutions, missed


def solve_ridge(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solves ``(gram + ridge * mean(diag(gram)) * I) x = right`` for each group: gram (..., n, n), right (..., n, m)."""
    n = gram.shape[-1]
    diagonal = gram.diagonal(0, -2, -1)
    scale = diagonal.mean(-1).clamp_min(torch.finfo(gram.dtype).tiny)
    loaded = gram + torch.diag_embed((ridge * scale)[..., None].expand(*diagonal.shape[:-1], n))
    factor, info = torch.linalg.cholesky_ex(loaded)
    if int(info.max()) == 0:
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(
        loaded
    )  # not positive definite in this precision: leave the null space out
    keep = values > 1e-10 * values.amax(-1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    inverse = torch.where(keep, 1 / values.where(keep, torch.ones_like(values)), torch.zeros_like(values))
    return vectors @ (inverse[..., None] * (vectors.transpose(-1, -2) @ right))


def _covariance(f: PhaseFilter, g: PhaseFilter, lag: tuple[int, int], groups: int) -> Tensor:
    """Under the prior, the covariance of ``f`` at j with ``g`` at j + lag: (groups, C/groups, C/groups)."""
    smooth = g.kernel
    for axis in (0, 1):
        here = f.origin[axis] + torch.arange(f.kernel.shape[2 + axis], device=smooth.device)
        there = g.origin[axis] + lag[axis] + torch.arange(g.kernel.shape[2 + axis], device=smooth.device)
        correlation = CORRELATION ** (here[:, None] - there).abs().to(smooth.dtype)
        smooth = torch.tensordot(
            smooth, correlation, dims=([2], [1])
        )  # moves the axis to the end, so twice is in order
    c = f.kernel.shape[0]
    left = f.kernel.reshape(groups, c // groups, -1)
    return left @ smooth.reshape(groups, c // groups, -1).transpose(-1, -2)
