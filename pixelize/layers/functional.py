"""Functional forms of the layers on transposed convolutions: :func:`ipixel_dcl` (eq. 2) and :func:`pixel_dcl`
(eq. 3).

Both are linear in the input up to one bias per channel, added once at the end, outside the recursion over
the phases. The weight tells the number of axes, n = 1, 2 or 3; tensors are (N, C, *size) or unbatched
(C, *size), and the output keeps the memory format that the convolutions give.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt, sub
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.algebra.polyphase import Phase, Size, anchor_phase, axis_phases, output_excess, padded
from pixelize.layers.dependencies import DependencyDesign, completed, constant, cropped, shared_crop, sizes
from pixelize.layers.interleave import in_graph, split_phases

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def ipixel_dcl(
    input: Tensor,
    weight: Tensor,
    dependency_kernels: Sequence[Tensor],
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    dependency_groups: int = 1,
    dependency_kernel_size: int | Sequence[int] = 3,
    schedule: str = "paired",
    input_gate: Tensor | None = None,
) -> Tensor:
    """Input pixel deconvolution, eq. 2: ``F_i = conv([F_in, F_1 .. F_{i-1}], k_i)``, interleaved.

    Args:
        input: (N, C_in, *size) or (C_in, *size).
        weight: (C_in, C_out/groups, *kernel), as for ``torch.nn.functional.conv_transpose2d`` and its
            siblings: the part of every ``k_i`` that sees the input. With all dependency kernels zero the
            result is that function's.
        dependency_kernels: one kernel for each stage of the schedule
            (:meth:`pixelize.algebra.schedule.Stage.kernel_shape`).
        bias: (C_out,), added to every phase.
        input_gate: a number as a 0-dimensional tensor that scales the input's part in all phases but the
            first: 1 (or None) is iPixelDCL, 0 is PixelDCL.

    Returns:
        (N, C_out, *size), ``(H-1) s - 2p + d (k-1) + output_padding + 1`` along each axis.

    Raises what torch raises for sizes that it refuses, ArgumentError for a schedule that there is not.
    """
    k, n = tuple(weight.shape[2:]), weight.dim() - 2
    s, p, d = sizes(stride, n, "stride"), sizes(padding, n, "padding"), sizes(dilation, n, "dilation")
    op = sizes(output_padding, n, "output_padding")
    grid = _grid(k, s, p, d, op)
    if _refused(input, grid):
        return _TRANSPOSED[n](input, weight, bias, s, p, op, groups, d)  # which tells why
    if input_gate is not None:
        weight = weight * gate_mask(k, s, p, d, grid.first, input_gate.to(weight.dtype))
    if any(grid.grow):
        input = padded(input, (0,) * n, grid.grow)
    base = _TRANSPOSED[n](input, weight, None, s, p, grid.extended, groups, d)
    maps = {phase: [f] for phase, f in split_phases(base, s).items()}
    size = tuple(map(sub, base.shape[-n:], grid.excess))
    design = DependencyDesign(dependency_groups, dependency_kernel_size, schedule)
    return completed(maps, base, dependency_kernels, bias, s, size, grid.first, design)


def pixel_dcl(
    input: Tensor,
    weight: Tensor,
    dependency_kernels: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    dependency_groups: int = 1,
    dependency_kernel_size: int | Sequence[int] = 3,
    schedule: str = "paired",
    input_kernels: dict[Phase, Tensor] | None = None,
) -> Tensor:
    """Pixel deconvolution, eq. 3: only ``F_1`` sees the input, ``F_i = conv([F_1 .. F_{i-1}], k_i)``,
    interleaved.

    ``weight``: (C_in, C_out/groups, *taps), the taps that the first phase has in a transposed convolution of
    ``kernel_size`` (about k / s along each axis). ``input_kernels``: likewise those of further phases that
    see the input, if any do. The other arguments, the shapes and the errors are those of :func:`ipixel_dcl`.
    """
    n = weight.dim() - 2
    k, s, p = sizes(kernel_size, n, "kernel_size"), sizes(stride, n, "stride"), sizes(padding, n, "padding")
    d, op = sizes(dilation, n, "dilation"), sizes(output_padding, n, "output_padding")
    grid = _grid(k, s, p, d, op)
    if _refused(input, grid):
        full = weight.new_empty(*weight.shape[:2], *k)
        return _TRANSPOSED[n](input, full, None, s, p, op, groups, d)  # which tells why
    seen = {grid.first: weight, **(input_kernels or {})}
    maps = {a: [first_phase(input, taps, k, s, p, d, groups, grid.growth, a)] for a, taps in seen.items()}
    base = maps[grid.first][0]
    size = tuple(a * m - e for a, m, e in zip(s, base.shape[-n:], grid.excess, strict=True))
    design = DependencyDesign(dependency_groups, dependency_kernel_size, schedule)
    return completed(maps, base, dependency_kernels, bias, s, size, grid.first, design)


# the weight tells the number of axes
ipixel_dcl1d = ipixel_dcl2d = ipixel_dcl3d = ipixel_dcl
pixel_dcl1d = pixel_dcl2d = pixel_dcl3d = pixel_dcl


def first_phase(
    input: Tensor,
    weight: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
    growth: Size,
    anchor: Phase,
) -> Tensor:
    """``F_1`` on its low-resolution grid: (N, C_out, *(size + growth)).

    ``weight`` holds only this phase's taps, in ascending order of the tap (see
    :func:`pixelize.algebra.polyphase.phase_weight`): a phase of a transposed convolution is a transposed
    convolution of stride 1, which takes the weight as it lies in memory.
    """
    steps, lead, after = _window(kernel_size, stride, padding, dilation, anchor)
    tail = [a - g for a, g in zip(after, growth, strict=True)]
    both, crop = shared_crop(lead, tail)
    return cropped(_TRANSPOSED[len(stride)](input, weight, None, 1, both, 0, groups, steps), crop)


@constant
def _window(
    kernel_size: Size, stride: Size, padding: Size, dilation: Size, anchor: Phase
) -> tuple[Size, Size, Size]:
    # A phase's taps along each axis: how far apart the inputs are that they read, and how many positions the
    # full convolution, which has H + span of them, has before the first and after the last of H.
    geometry = zip(kernel_size, stride, padding, dilation, anchor, strict=True)
    axes = [axis_phases(k, s, p, d)[a] for k, s, p, d, a in geometry]
    lead = tuple(axis.offsets[-1] for axis in axes)
    after = tuple(axis.step * (len(axis.taps) - 1) - axis.offsets[-1] for axis in axes)
    return tuple(axis.step for axis in axes), lead, after


def gate_mask(
    kernel_size: Size, stride: Size, padding: Size, dilation: Size, anchor: Phase, gate: Tensor
) -> Tensor:
    """(*kernel_size): 1 at the taps of the first phase, ``gate`` at all others."""
    own = torch.ones((), dtype=torch.bool, device=gate.device)
    for k, s, p, d, a in zip(kernel_size, stride, padding, dilation, anchor, strict=True):
        taps = axis_phases(k, s, p, d)[a].taps
        own = own[..., None] & torch.tensor([t in taps for t in range(k)], device=gate.device)
    return torch.where(own, torch.ones_like(gate), gate)


class _Grid(NamedTuple):
    """How the low-resolution grid of the phases lies to the output and to the input, for each axis.

    ``first``: the first phase. ``excess``, ``growth``: see
    :func:`pixelize.algebra.polyphase.output_excess`. ``extended``, ``grow``: the output padding that makes
    the output a whole number of periods, and zeros after the input: it must stay under max(stride,
    dilation), and beyond that a zero adds one stride. ``smallest``: the input that gives an output at all;
    None if torch refuses the output padding.
    """

    first: Phase
    excess: Size
    growth: Size
    extended: Size
    grow: Size
    smallest: Size | None


@constant
def _grid(k: Size, s: Size, p: Size, d: Size, op: Size) -> _Grid:
    axes = list(zip(k, s, p, d, op, strict=True))
    excess, growth = zip(*(output_excess(*axis) for axis in axes), strict=True)
    extended = [a + b for a, b in zip(op, excess, strict=True)]
    grow = tuple(int(e >= max(a, b)) for e, a, b in zip(extended, s, d, strict=True))
    accepted = all(0 <= e < max(a, b) for e, a, b in zip(op, s, d, strict=True))
    smallest = tuple(1 - (b * (a - 1) + e - 2 * c) // m for a, m, c, b, e in axes)
    return _Grid(
        anchor_phase(k, s, p, d),
        excess,
        growth,
        tuple(e - g * a for e, g, a in zip(extended, grow, s, strict=True)),
        grow,
        smallest if accepted else None,
    )


def _refused(input: Tensor, grid: _Grid) -> bool:
    # whether torch's own transposed convolution raises; in a graph sizes are not asked for
    if grid.smallest is None:
        return True
    return not in_graph() and any(map(lt, input.shape[-len(grid.smallest) :], grid.smallest))
