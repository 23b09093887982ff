"""Functional forms of the layers on convolutions, section 2.4 of Gao et al.: :func:`ipixel_conv` and
:func:`pixel_conv`.

The output of a convolution, of any stride c, is split into the phases of a period s along each axis. Phase a
of convolution w is itself a convolution, of stride c s, of the shifted input,

    B_a[m] = sum over t of  w[t] x[c (s m + a) - p + d t],

and a pixel convolution adds the direct relations between adjacent output pixels:

    iPixelConv  F_a = B_a + sum over b before a of D_ab * F_b,      output[s m + a] = F_a[m] + bias
    PixelConv   F_0 = B_0,  F_a = sum over b before a of D_ab * F_b

with the same schedules, dependency kernels D and interleaving as a pixel deconvolution. With all D zero
iPixelConv is the convolution. The weight tells the number of axes, n = 1, 2 or 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pixelize.algebra.polyphase import CONVOLUTIONS, Phase, Size, padded
from pixelize.layers.dependencies import DependencyDesign, completed, sizes
from pixelize.layers.interleave import split_phases

Padding = int | Sequence[int] | str


def ipixel_conv(
    input: Tensor,
    weight: Tensor,
    dependency_kernels: Sequence[Tensor],
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    period: int | Sequence[int] = 2,
    dependency_groups: int = 1,
    dependency_kernel_size: int | Sequence[int] = 3,
    schedule: str = "paired",
    input_gate: Tensor | None = None,
) -> Tensor:
    """Input pixel convolution: every phase of the output sees the input and the phases made before it.

    Args:
        input: (N, C_in, *size) or (C_in, *size).
        weight: (C_out, C_in/groups, *kernel), as for ``torch.nn.functional.conv2d`` and its siblings. With
            all dependency kernels zero the result is that function's.
        dependency_kernels: one kernel for each stage of the schedule
            (:meth:`pixelize.algebra.schedule.Stage.kernel_shape`), over ``period``.
        bias: (C_out,), added to every phase.
        padding, padding_mode: as for ``nn.Conv2d``: numbers, ``"same"`` or ``"valid"``; ``"zeros"``,
            ``"reflect"``, ``"replicate"`` or ``"circular"``.
        period: into how many phases the output is split along each axis.
        input_gate: a number as a 0-dimensional tensor that scales the input's part in all phases but the
            first: 1 (or None) is iPixelConv, 0 is PixelConv.

    Returns:
        (N, C_out, *size), with the sizes of a convolution.
    """
    at = _geometry(input, weight, stride, padding, dilation, padding_mode, period)
    maps, base = _input_phases(at, weight, groups, input_gate)
    design = DependencyDesign(dependency_groups, dependency_kernel_size, schedule)
    return completed(maps, base, dependency_kernels, bias, at.period, at.size, at.first, design)


def pixel_conv(
    input: Tensor,
    weight: Tensor,
    dependency_kernels: Sequence[Tensor],
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    period: int | Sequence[int] = 2,
    dependency_groups: int = 1,
    dependency_kernel_size: int | Sequence[int] = 3,
    schedule: str = "paired",
) -> Tensor:
    """Pixel convolution: only the first phase sees the input, by one convolution of stride ``stride *
    period``; the others are made from it.

    Arguments and shapes are those of :func:`ipixel_conv`, and it is that function with its gate at 0.
    """
    at = _geometry(input, weight, stride, padding, dilation, padding_mode, period)
    maps, base = _first_phase(at, weight, groups)
    design = DependencyDesign(dependency_groups, dependency_kernel_size, schedule)
    return completed(maps, base, dependency_kernels, bias, at.period, at.size, at.first, design)


def input_phases(
    input: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
    padding_mode: str,
    period: Size,
    input_gate: Tensor | None,
    only_first: bool,
) -> dict[Phase, Tensor]:
    """What each phase of a pixel convolution sees of the input, (N, C_out, *grid), before any dependency;
    ``only_first``: as in a PixelConv."""
    at = _geometry(input, weight, stride, padding, dilation, padding_mode, period)
    maps, _ = (
        _first_phase(at, weight, groups) if only_first else _input_phases(at, weight, groups, input_gate)
    )
    return {phase: parts[0] for phase, parts in maps.items()}


def _input_phases(
    at: _Geometry, weight: Tensor, groups: int, input_gate: Tensor | None
) -> tuple[dict[Phase, list[Tensor]], Tensor]:
    # zeros after the input, so that the output is a whole number of periods
    missing = [c * (-m % s) for c, m, s in zip(at.stride, at.size, at.period, strict=True)]
    x = padded(at.input, (0,) * len(missing), missing)
    base = CONVOLUTIONS[len(missing)](x, weight, None, at.stride, at.padding, at.dilation, groups)
    maps = {phase: [f] for phase, f in split_phases(base, at.period).items()}
    if input_gate is not None:
        gate = input_gate.to(base.dtype)
        maps = {phase: fs if phase == at.first else [fs[0] * gate] for phase, fs in maps.items()}
    return maps, base


def _first_phase(at: _Geometry, weight: Tensor, groups: int) -> tuple[dict[Phase, list[Tensor]], Tensor]:
    steps = tuple(c * s for c, s in zip(at.stride, at.period, strict=True))
    base = CONVOLUTIONS[len(steps)](at.input, weight, None, steps, at.padding, at.dilation, groups)
    return {at.first: [base]}, base


# the weight tells the number of axes
ipixel_conv1d = ipixel_conv2d = ipixel_conv3d = ipixel_conv
pixel_conv1d = pixel_conv2d = pixel_conv3d = pixel_conv


class _Geometry(NamedTuple):
    """Where a convolution reads and what it writes: its input with all the padding that it cannot do itself,
    one number for each axis of everything else, ``size`` being the output's.
    """

    input: Tensor
    stride: Size
    padding: Size
    dilation: Size
    period: Size
    size: Size
    first: Phase


def _geometry(
    input: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    padding_mode: str,
    period: int | Sequence[int],
) -> _Geometry:
    n = weight.dim() - 2
    c, d, s = sizes(stride, n, "stride"), sizes(dilation, n, "dilation"), sizes(period, n, "period")
    x, p = _padded_input(input, tuple(weight.shape[2:]), padding, d, padding_mode)
    axes = zip(x.shape[-n:], weight.shape[2:], c, p, d, strict=True)
    size = tuple((m + 2 * e - f * (k - 1) - 1) // b + 1 for m, k, b, e, f in axes)
    return _Geometry(x, c, p, d, s, size, (0,) * n)


def _padded_input(x: Tensor, kernel: Size, padding: Padding, d: Size, mode: str) -> tuple[Tensor, Size]:
    # the input with all padding on it that a convolution cannot do, and what is left for it
    n = len(kernel)
    if padding == "valid":
        return x, (0,) * n
    if padding == "same":
        total = [b * (k - 1) for k, b in zip(kernel, d, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = list(sizes(padding, n, "padding"))  # type: ignore[arg-type]
    if mode == "zeros":
        if before == after:
            return x, tuple(before)
        return padded(x, before, after), (0,) * n
    if any(before) or any(after):
        x = F.pad(x, [m for pair in zip(before[::-1], after[::-1], strict=True) for m in pair], mode)
    return x, (0,) * n
