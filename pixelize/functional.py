"""Functional forms of the layers: :func:`ipixel_dcl2d` (eq. 2) and :func:`pixel_dcl2d` (eq. 3).

Both are linear in the input up to one bias per channel, added once at the end, outside the recursion over the phases.
Tensors are (N, C, H, W) or unbatched (C, H, W); the output keeps the memory format that the convolutions give.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.polyphase import (
    Phase,
    anchor_phase,
    axis_phases,
    interleave,
    output_excess,
    split_phases,
)
from pixelize.schedule import Stage, make_schedule

Pair = tuple[int, int]


def ipixel_dcl2d(
    input: Tensor,
    weight: Tensor,
    dependency_kernels: Sequence[Tensor],
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    groups: int = 1,
    dilation: int | Pair = 1,
    *,
    dependency_groups: int = 1,
    dependency_kernel_size: int | Pair = 3,
    schedule: str = "paired",
    input_gate: Tensor | None = None,
) -> Tensor:
    """Input pixel deconvolution, eq. 2: ``F_i = conv([F_in, F_1 .. F_{i-1}], k_i)``, interleaved.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W).
        weight: (C_in, C_out/groups, k_h, k_w), as for ``torch.nn.functional.conv_transpose2d``: the part of every
            ``k_i`` that sees the input. With all dependency kernels zero the result is that function's.
        dependency_kernels: one kernel for each stage of the schedule (:meth:`pixelize.schedule.Stage.kernel_shape`).
        bias: (C_out,), added to every phase.
        input_gate: a number as a 0-dimensional tensor that scales the input's part in all phases but the first: 1 (or None) is
            iPixelDCL, 0 is PixelDCL.

    Returns:
        (N, C_out, H_out, W_out), ``H_out = (H-1) s - 2p + d (k-1) + output_padding + 1``.
    """
    s, p, d, op = _pair(stride), _pair(padding), _pair(dilation), _pair(output_padding)
    k = (weight.shape[2], weight.shape[3])
    anchor = anchor_phase(k, s, p, d)
    plan = make_schedule(schedule, s, _pair(dependency_kernel_size), anchor)
    if input_gate is not None:
        weight = weight * gate_mask(k, s, p, d, anchor, input_gate.to(weight.dtype))
    excess = [output_excess(k[i], s[i], p[i], d[i], op[i])[0] for i in (0, 1)]
    base = _extended_conv_transpose(input, weight, s, p, op, groups, d, excess)
    phases = split_phases(base, s)
    channels = weight.shape[1] * groups
    for stage, kernel in zip(plan.stages, dependency_kernels, strict=True):
        parts = dependency(stage, kernel, phases, channels, dependency_groups)
        for target, part in parts.items():
            phases[target] = phases[target] + part
    return _finish(phases, s, excess, bias)


def pixel_dcl2d(
    input: Tensor,
    weight: Tensor,
    dependency_kernels: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    groups: int = 1,
    dilation: int | Pair = 1,
    dependency_groups: int = 1,
    dependency_kernel_size: int | Pair = 3,
    schedule: str = "paired",
) -> Tensor:
    """Pixel deconvolution, eq. 3: only ``F_1`` sees the input, ``F_i = conv([F_1 .. F_{i-1}], k_i)``, interleaved.

    ``weight``: (C_in, C_out/groups, h, w), the taps that the first phase has in a transposed convolution of ``kernel_size``
    (h and w are about k / s). The other arguments and the shapes are those of :func:`ipixel_dcl2d`.
    """
    k, s, p, d, op = (_pair(v) for v in (kernel_size, stride, padding, dilation, output_padding))
    anchor = anchor_phase(k, s, p, d)
    plan = make_schedule(schedule, s, _pair(dependency_kernel_size), anchor)
    grid = [output_excess(k[i], s[i], p[i], d[i], op[i]) for i in (0, 1)]
    phases: dict[Phase, Tensor] = {
        anchor: first_phase(input, weight, k, s, p, d, groups, (grid[0][1], grid[1][1]), anchor)
    }
    channels = weight.shape[1] * groups
    for stage, kernel in zip(plan.stages, dependency_kernels, strict=True):
        phases.update(dependency(stage, kernel, phases, channels, dependency_groups))
    return _finish(phases, s, [grid[0][0], grid[1][0]], bias)


def first_phase(
    input: Tensor,
    weight: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    growth: Pair,
    anchor: Phase,
) -> Tensor:
    """``F_1`` on its low-resolution grid: (N, C_out, H + growth_h, W + growth_w).

    ``weight`` holds only this phase's taps, in ascending order of the tap (see :func:`pixelize.polyphase.phase_weight`).
    """
    pads: list[Pair] = []
    steps: list[int] = []
    for i in (0, 1):
        axis = axis_phases(kernel_size[i], stride[i], padding[i], dilation[i])[anchor[i]]
        pads.append((-axis.offsets[0], growth[i] + axis.offsets[-1]))
        steps.append(dilation[i] // gcd(stride[i], dilation[i]))
    c_in, c_out, h, w = weight.shape
    kernel = weight.flip(-2, -1).reshape(groups, c_in // groups, c_out, h, w).transpose(1, 2)
    kernel = kernel.reshape(groups * c_out, c_in // groups, h, w)
    (top, bottom), (left, right) = pads
    if top == bottom >= 0 and left == right >= 0:
        return F.conv2d(input, kernel, None, 1, (top, left), (steps[0], steps[1]), groups)
    padded = F.pad(input, (left, right, top, bottom))
    return F.conv2d(padded, kernel, None, 1, 0, (steps[0], steps[1]), groups)


def dependency(
    stage: Stage, kernel: Tensor, phases: dict[Phase, Tensor], channels: int, groups: int
) -> dict[Phase, Tensor]:
    """What a stage's sources contribute to each of its targets: the direct relations between adjacent pixels.

    ``phases``: the maps made so far, (..., C, h, w) each; outside their grid they count as zero.
    """
    if stage.shared:
        parts: dict[Phase, Tensor] = {}
        for term in stage.terms:
            taps = kernel[:, :, list(term.rows)][:, :, :, list(term.columns)]
            part = F.conv2d(_padded(phases[term.source], term.start, taps), taps, groups=groups)
            parts[term.target] = parts[term.target] + part if term.target in parts else part
        return parts
    starts = {term.source: term.start for term in stage.terms}
    kh, kw = kernel.shape[-2:]
    centred = all(start == (-(kh // 2), -(kw // 2)) for start in starts.values()) and kh % 2 == kw % 2 == 1
    sources = [phases[b] if centred else _padded(phases[b], starts[b], kernel) for b in stage.sources]
    if len(sources) == 1:
        x = sources[0]
    elif groups == 1:
        x = torch.cat(sources, -3)
    else:  # each group holds its own channels of every source
        x = torch.stack([f.unflatten(-3, (groups, channels // groups)) for f in sources], -4).flatten(-5, -3)
    y = F.conv2d(x, kernel, padding=(kh // 2, kw // 2) if centred else 0, groups=groups)
    split = y.unflatten(-3, (groups, len(stage.targets), channels // groups))
    return {target: split.select(-4, i).flatten(-4, -3) for i, target in enumerate(stage.targets)}


def gate_mask(
    kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, anchor: Phase, gate: Tensor
) -> Tensor:
    """(k_h, k_w): 1 at the taps of the first phase, ``gate`` at all others."""
    axes = []
    for i in (0, 1):
        taps = axis_phases(kernel_size[i], stride[i], padding[i], dilation[i])[anchor[i]].taps
        axes.append(torch.tensor([t in taps for t in range(kernel_size[i])], device=gate.device))
    return torch.where(axes[0][:, None] & axes[1], torch.ones_like(gate), gate)


def _extended_conv_transpose(
    x: Tensor, weight: Tensor, s: Pair, p: Pair, op: Pair, groups: int, d: Pair, excess: list[int]
) -> Tensor:
    # The transposed convolution of the zero-extended input, on a whole number of periods. output_padding gives the extra rows as long as
    # it stays under max(stride, dilation); beyond that a row of zeros below the input does.
    extended = [op[0] + excess[0], op[1] + excess[1]]
    grow = [int(extended[i] >= max(s[i], d[i])) for i in (0, 1)]
    if any(grow):
        x = F.pad(x, (0, grow[1], 0, grow[0]))  # which adds one stride to the output
    padding = [extended[i] - grow[i] * s[i] for i in (0, 1)]
    return F.conv_transpose2d(x, weight, None, s, p, tuple(padding), groups, d)


def _padded(x: Tensor, start: Pair, kernel: Tensor) -> Tensor:
    # zeros so that a convolution without padding reads x from `start` on, and gives as many positions as x has
    h, w = kernel.shape[-2:]
    return F.pad(x, (-start[1], w - 1 + start[1], -start[0], h - 1 + start[0]))


def _finish(phases: dict[Phase, Tensor], s: Pair, excess: list[int], bias: Tensor | None) -> Tensor:
    y = interleave(phases, s)
    if any(excess):
        y = y[..., : y.shape[-2] - excess[0], : y.shape[-1] - excess[1]].contiguous(
            memory_format=torch.channels_last if _channels_last(y) else torch.contiguous_format
        )
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def _channels_last(y: Tensor) -> bool:
    return y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()


def _pair(value: int | Sequence[int]) -> Pair:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)
