"""Functional forms of the layers: :func:`ipixel_dcl2d` (eq. 2) and :func:`pixel_dcl2d` (eq. 3).

Both are linear in the input up to one bias per channel, added once at the end, outside the recursion over
the phases. Tensors are (N, C, H, W) or unbatched (C, H, W); the output keeps the memory format that the
convolutions give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import product
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.algebra.polyphase import Phase, anchor_phase, axis_phases, output_excess
from pixelize.algebra.schedule import Schedule, Stage, build_schedule
from pixelize.layers.interleave import add_up, interleave, is_channels_last, split_phases

Pair = tuple[int, int]
T = TypeVar("T")


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
        weight: (C_in, C_out/groups, k_h, k_w), as for ``torch.nn.functional.conv_transpose2d``: the part of
            every ``k_i`` that sees the input. With all dependency kernels zero the result is that function's.
        dependency_kernels: one kernel for each stage of the schedule
            (:meth:`pixelize.algebra.schedule.Stage.kernel_shape`).
        bias: (C_out,), added to every phase.
        input_gate: a number as a 0-dimensional tensor that scales the input's part in all phases but the
            first: 1 (or None) is iPixelDCL, 0 is PixelDCL.

    Returns:
        (N, C_out, H_out, W_out), ``H_out = (H-1) s - 2p + d (k-1) + output_padding + 1``.
    """
    s, p, d, op = _pair(stride), _pair(padding), _pair(dilation), _pair(output_padding)
    k = (weight.shape[2], weight.shape[3])
    anchor = _anchor(k, s, p, d)
    plan = _plan(schedule, s, _pair(dependency_kernel_size), anchor)
    if input_gate is not None:
        weight = weight * gate_mask(k, s, p, d, anchor, input_gate.to(weight.dtype))
    excess = [output_excess(k[i], s[i], p[i], d[i], op[i])[0] for i in (0, 1)]
    base = _extended_conv_transpose(input, weight, s, p, op, groups, d, excess)
    maps = {phase: [f] for phase, f in split_phases(base, s).items()}
    channels = weight.shape[1] * groups
    _make_phases(maps, plan, dependency_kernels, channels, dependency_groups)
    size = (base.shape[-2] - excess[0], base.shape[-1] - excess[1])
    return interleave(maps, s, size=size, bias=bias, channels_last=is_channels_last(base))


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
    """Pixel deconvolution, eq. 3: only ``F_1`` sees the input, ``F_i = conv([F_1 .. F_{i-1}], k_i)``,
    interleaved.

    ``weight``: (C_in, C_out/groups, h, w), the taps that the first phase has in a transposed convolution of
    ``kernel_size`` (h and w are about k / s). The other arguments and the shapes are those of
    :func:`ipixel_dcl2d`.
    """
    k, s, p, d, op = (_pair(v) for v in (kernel_size, stride, padding, dilation, output_padding))
    anchor = _anchor(k, s, p, d)
    plan = _plan(schedule, s, _pair(dependency_kernel_size), anchor)
    grid = [output_excess(k[i], s[i], p[i], d[i], op[i]) for i in (0, 1)]
    first = first_phase(input, weight, k, s, p, d, groups, (grid[0][1], grid[1][1]), anchor)
    maps = {anchor: [first]}
    channels = weight.shape[1] * groups
    _make_phases(maps, plan, dependency_kernels, channels, dependency_groups)
    size = (s[0] * first.shape[-2] - grid[0][0], s[1] * first.shape[-1] - grid[1][0])
    return interleave(maps, s, size=size, bias=bias, channels_last=is_channels_last(first))


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

    ``weight`` holds only this phase's taps, in ascending order of the tap (see
    :func:`pixelize.algebra.polyphase.phase_weight`): a phase of a transposed convolution is a transposed
    convolution of stride 1, which takes the weight as it lies in memory.
    """
    steps, lead, after = _window(kernel_size, stride, padding, dilation, anchor)
    tail = (after[0] - growth[0], after[1] - growth[1])
    crop = _symmetric(lead, tail)
    y = F.conv_transpose2d(input, weight, None, 1, crop, 0, groups, steps)
    return _cropped(y, crop, lead, tail)


def dependency(
    stage: Stage, kernel: Tensor, phases: dict[Phase, Tensor], channels: int, groups: int
) -> dict[Phase, Tensor]:
    """What a stage's sources contribute to each of its targets: the direct relations between adjacent pixels.

    ``phases``: the maps made so far, (..., C, h, w) each; outside their grid they count as zero.
    """
    parts = _dependency(stage, kernel, phases, channels, groups)
    return {target: add_up(terms) for target, terms in parts.items()}


def _make_phases(
    maps: dict[Phase, list[Tensor]], plan: Schedule, kernels: Sequence[Tensor], channels: int, groups: int
) -> None:
    # Adds to ``maps`` what each stage contributes. Maps that later stages read are added up; the others are
    # left to the interleaving.
    for stage, kernel in zip(plan.stages, kernels, strict=True):
        sources = {}
        for source in stage.sources:
            sources[source] = _source(maps[source])
            maps[source] = [sources[source]]
        for target, parts in _dependency(stage, kernel, sources, channels, groups).items():
            maps[target] = [*maps.get(target, []), *parts]


def _dependency(
    stage: Stage, kernel: Tensor, phases: dict[Phase, Tensor], channels: int, groups: int
) -> dict[Phase, list[Tensor]]:
    # The contributions as lists of maps yet to be added up. Dense kernels: all sources side by side, one
    # convolution for all targets. Grouped and shared ones: a convolution for each pair, since their channels
    # would have to be shuffled otherwise.
    if groups == 1 and not stage.shared:
        starts = [next(t.start for t in stage.terms if t.source == source) for source in stage.sources]
        kh, kw = kernel.shape[-2:]
        padding = (0, 0)
        if kh % 2 == kw % 2 == 1 and set(starts) == {(-(kh // 2), -(kw // 2))}:
            padding = (kh // 2, kw // 2)
            sources = [phases[source] for source in stage.sources]
        else:
            sources = [
                _padded(phases[b], start, kernel) for b, start in zip(stage.sources, starts, strict=True)
            ]
        x = sources[0] if len(sources) == 1 else torch.cat(sources, -3)
        y = F.conv2d(x, kernel, None, 1, padding)
        return {target: [part] for target, part in zip(stage.targets, y.split(channels, -3), strict=True)}
    parts: dict[Phase, list[Tensor]] = {target: [] for target in stage.targets}
    for term, taps in zip(stage.terms, _taps(stage, kernel, channels, groups), strict=True):
        kh, kw = taps.shape[-2:]
        lead = [
            term.start[0] + kh - 1,
            term.start[1] + kw - 1,
        ]  # of the full convolution, which reads from 1 - k on
        tail = [-term.start[0], -term.start[1]]
        crop = _symmetric(lead, tail)
        y = F.conv2d(phases[term.source], taps, None, 1, (kh - 1 - crop[0], kw - 1 - crop[1]), 1, groups)
        parts[term.target].append(_cropped(y, crop, lead, tail))
    return parts


def _taps(stage: Stage, kernel: Tensor, channels: int, groups: int) -> list[Tensor]:
    # Each term's part of a stage's kernel: (C, C/groups, h, w). Contiguous: torch's own backward of small
    # convolutions fails for the strides that indexing gives a channels_last kernel.
    if stage.shared:
        return [kernel[:, :, _slice_of(t.rows), _slice_of(t.columns)].contiguous() for t in stage.terms]
    width, targets, sources = channels // groups, stage.targets, stage.sources
    blocks = kernel.reshape(groups, len(targets), width, len(sources), width, *kernel.shape[-2:])
    apart = blocks.permute(1, 3, 0, 2, 4, 5, 6).reshape(-1, channels, width, *kernel.shape[-2:])
    pairs = dict(zip(product(targets, sources), apart.contiguous().unbind(), strict=True))
    return [pairs[term.target, term.source] for term in stage.terms]


def _slice_of(taps: tuple[int, ...]) -> slice:
    # evenly spaced indices as a slice: indexing by a list is slow, and its gradient more so
    return slice(taps[0], taps[-1] + 1, taps[1] - taps[0] if len(taps) > 1 else 1)


def _source(terms: Sequence[Tensor]) -> Tensor:
    # several convolutions read it, each of which would copy a strided view
    total = add_up(terms)
    last = is_channels_last(total)
    return total.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _constant(function: Callable[..., T]) -> Callable[..., T]:
    # What depends on a layer's geometry alone is worked out once. A compiler does so anyway, looks through a
    # cache, and warns that it does.
    kept = lru_cache(maxsize=512)(function)

    @wraps(function)
    def call(*arguments: Any) -> T:
        return function(*arguments) if torch.compiler.is_dynamo_compiling() else kept(*arguments)

    return call


_plan = _constant(build_schedule)
_anchor = _constant(anchor_phase)


@_constant
def _window(
    kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, anchor: Phase
) -> tuple[Pair, Pair, Pair]:
    # The first phase's taps: how far apart the inputs are that they read, and how many rows and columns the
    # full convolution, which has H + span rows, has before the first and after the last of H.
    axes = [axis_phases(kernel_size[i], stride[i], padding[i], dilation[i])[anchor[i]] for i in (0, 1)]
    (a, b), (c, d) = ((axis.offsets[-1], axis.step * (len(axis.taps) - 1)) for axis in axes)
    return (axes[0].step, axes[1].step), (a, c), (b - a, d - c)


def _symmetric(lead: Sequence[int], tail: Sequence[int]) -> Pair:
    # the part of a crop that both sides share: a convolution does it by padding less
    return max(0, min(lead[0], tail[0])), max(0, min(lead[1], tail[1]))


def _cropped(y: Tensor, done: Pair, lead: Sequence[int], tail: Sequence[int]) -> Tensor:
    # drops ``lead`` rows and columns before and ``tail`` after, less what is done; negative ones are zeros
    # to be added
    cut = [(lead[i] - done[i], tail[i] - done[i]) for i in (0, 1)]
    if any(n < 0 for side in cut for n in side):
        return F.pad(y, (-cut[1][0], -cut[1][1], -cut[0][0], -cut[0][1]))
    (top, bottom), (left, right) = cut
    if not (top or bottom or left or right):
        return y
    return y[..., top : y.shape[-2] - bottom, left : y.shape[-1] - right]


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
    # The transposed convolution of the zero-extended input, on a whole number of periods. output_padding
    # gives the extra rows as long as it stays under max(stride, dilation); beyond that a row of zeros below
    # the input does.
    extended = [op[0] + excess[0], op[1] + excess[1]]
    grow = [int(extended[i] >= max(s[i], d[i])) for i in (0, 1)]
    if any(grow):
        x = F.pad(x, (0, grow[1], 0, grow[0]))  # which adds one stride to the output
    padding = [extended[i] - grow[i] * s[i] for i in (0, 1)]
    return F.conv_transpose2d(x, weight, None, s, p, tuple(padding), groups, d)


def _padded(x: Tensor, start: Pair, kernel: Tensor) -> Tensor:
    # zeros so that a convolution without padding reads x from `start` on and gives as many positions
    h, w = kernel.shape[-2:]
    return F.pad(x, (-start[1], w - 1 + start[1], -start[0], h - 1 + start[0]))


def _pair(value: int | Sequence[int]) -> Pair:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)
