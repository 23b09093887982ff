"""The polyphase form of a transposed convolution: pure functions, no modules.

A transposed convolution sends input index ``i`` through tap ``t`` to output index ``o = s*i - p + d*t``
(stride ``s``, padding ``p``, dilation ``d``). The outputs of one *phase* ``a = o mod s`` use only the taps
with ``(a + p - d*t) mod s == 0``, each at the low-resolution offset ``q = (a + p - d*t) / s``, so that

    F_a[j] = sum over those taps of  x[j + q] * w[t],        output[s*j + a] = F_a[j].

It is ``s_h * s_w`` ordinary convolutions whose outputs are interleaved: the periodical shuffling of Gao et
al., *Pixel Deconvolutional Networks*, eq. 1. Phases may have different windows, and some have no taps at all
(``k < s``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

Phase = tuple[int, int]
"""A phase of the output grid: (row modulo the vertical stride, column modulo the horizontal stride)."""


@dataclass(frozen=True)
class AxisPhase:
    """The taps that one phase uses along one axis.

    ``taps`` are indices into the transposed kernel and ``offsets`` the low-resolution offsets they read,
    both in ascending order of the offset; consecutive offsets are ``step`` apart.
    """

    taps: tuple[int, ...]
    offsets: tuple[int, ...]
    step: int


@dataclass(frozen=True)
class PhaseFilter:
    """A low-resolution filter ``F[j] = sum_q kernel[:, :, q] x[j + origin + q]``.

    ``kernel``: (C_out, C_in, h, w).
    """

    kernel: Tensor
    origin: tuple[int, int]


def axis_phases(kernel_size: int, stride: int, padding: int, dilation: int) -> tuple[AxisPhase, ...]:
    """For each phase ``a = 0 .. stride-1`` of one axis, the taps it uses and the offsets they read."""
    step = dilation // gcd(stride, dilation)
    phases = []
    for a in range(stride):
        taps = [t for t in range(kernel_size) if (a + padding - dilation * t) % stride == 0]
        taps.reverse()  # the offset falls as the tap rises
        offsets = tuple((a + padding - dilation * t) // stride for t in taps)
        phases.append(AxisPhase(tuple(taps), offsets, step))
    return tuple(phases)


def anchor_phase(
    kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Phase:
    """The first phase, the one that always sees the input: (0, 0), or the first after it that has taps.

    Phase 0 of an axis has no taps when the kernel is smaller than the stride or both are even and the
    padding is odd.
    """
    anchor = []
    for k, s, p, d in zip(kernel_size, stride, padding, dilation, strict=True):
        anchor.append(next(a for a, axis in enumerate(axis_phases(k, s, p, d)) if axis.taps))
    return anchor[0], anchor[1]


def sub_kernel(weight: Tensor, rows: AxisPhase, columns: AxisPhase, groups: int) -> Tensor:
    """The ordinary-convolution kernel of one phase.

    ``weight``: (C_in, C_out/groups, k_h, k_w), the layout of ``nn.ConvTranspose2d``.
    Returns (C_out, C_in/groups, len(rows.taps), len(columns.taps)), the layout of ``nn.Conv2d``.
    """
    taps = weight[:, :, list(rows.taps)][:, :, :, list(columns.taps)]
    c_in, c_out, h, w = taps.shape
    grouped = taps.reshape(groups, c_in // groups, c_out, h, w).transpose(1, 2)
    return grouped.reshape(groups * c_out, c_in // groups, h, w)


def phase_weight(weight: Tensor, rows: AxisPhase, columns: AxisPhase) -> Tensor:
    """One phase's taps in the transposed layout, ascending: (C_in, C_out/groups, h, w)."""
    return weight[:, :, sorted(rows.taps)][:, :, :, sorted(columns.taps)]


def phase_filters(
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> dict[Phase, PhaseFilter]:
    """A transposed convolution, ``weight`` (C_in, C_out/groups, k_h, k_w), as one dense low-resolution
    filter for each phase.
    """
    axes = [axis_phases(weight.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    filters = {}
    for a, rows in enumerate(axes[0]):
        for b, columns in enumerate(axes[1]):
            kernel = ungrouped(sub_kernel(weight, rows, columns, groups), groups)
            if not rows.taps or not columns.taps:
                filters[a, b] = PhaseFilter(kernel.new_zeros(*kernel.shape[:2], 1, 1), (0, 0))
                continue
            spread = kernel.new_zeros(
                *kernel.shape[:2],
                rows.offsets[-1] - rows.offsets[0] + 1,
                columns.offsets[-1] - columns.offsets[0] + 1,
            )
            spread[:, :, :: rows.step, :: columns.step] = kernel
            filters[a, b] = PhaseFilter(spread, (rows.offsets[0], columns.offsets[0]))
    return filters


def ungrouped(kernel: Tensor, groups: int) -> Tensor:
    """A grouped convolution kernel (C_out, C_in/groups, h, w) as a dense one (C_out, C_in, h, w)."""
    if groups == 1:
        return kernel
    c_out, c_in, h, w = kernel.shape
    dense = kernel.new_zeros(groups, c_out // groups, groups, c_in, h, w)
    index = torch.arange(groups, device=kernel.device)
    dense[index, :, index] = kernel.reshape(groups, c_out // groups, c_in, h, w)
    return dense.reshape(c_out, groups * c_in, h, w)


def output_excess(
    kernel_size: int, stride: int, padding: int, dilation: int, output_padding: int
) -> tuple[int, int]:
    """How the low-resolution grid of the phases lies to the output and to the input of one axis.

    Returns ``(excess, growth)``: the phases live on ``ceil(H_out / s)`` positions, which is ``(H_out +
    excess) / s`` and ``H_in + growth``. Both are constants of the layer, whatever the input's size.
    """
    size = dilation * (kernel_size - 1) + output_padding + 1 - stride - 2 * padding  # H_out - s * H_in
    excess = -size % stride
    return excess, (size + excess) // stride


def compose(outer: Tensor, start: tuple[int, int], inner: PhaseFilter) -> PhaseFilter:
    """The filter of a convolution of a filtered signal: ``outer`` (C2, C1, k_h, k_w), reading from
    ``start``, after ``inner``.

    Exact where no border is near: a layer zero-pads the inner signal at the border, a single filter cannot.
    """
    inner_kernel = inner.kernel.transpose(0, 1)  # (C_in, C1, h, w): the input channels as a batch
    kh, kw = outer.shape[-2:]
    # full convolution of the two kernels: correlate with the flipped outer kernel on a fully padded inner one
    combined = F.conv2d(inner_kernel, outer.flip(-2, -1), padding=(kh - 1, kw - 1))
    return PhaseFilter(combined.transpose(0, 1), (inner.origin[0] + start[0], inner.origin[1] + start[1]))


def add_filters(filters: list[PhaseFilter]) -> PhaseFilter:
    """The sum of filters with different windows, on the smallest window that holds them all."""
    top = min(f.origin[0] for f in filters)
    left = min(f.origin[1] for f in filters)
    bottom = max(f.origin[0] + f.kernel.shape[2] for f in filters)
    right = max(f.origin[1] + f.kernel.shape[3] for f in filters)
    total = torch.zeros((), dtype=filters[0].kernel.dtype, device=filters[0].kernel.device)
    for f in filters:
        y, x = f.origin
        h, w = f.kernel.shape[-2:]
        total = total + F.pad(f.kernel, (x - left, right - x - w, y - top, bottom - y - h))
    return PhaseFilter(total, (top, left))
