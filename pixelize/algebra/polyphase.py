"""The polyphase form of a transposed convolution: pure functions, no modules.

A transposed convolution sends input index ``i`` through tap ``t`` to output index ``o = s*i - p + d*t``
(stride ``s``, padding ``p``, dilation ``d``). The outputs of one *phase* ``a = o mod s`` use only the taps
with ``(a + p - d*t) mod s == 0``, each at the low-resolution offset ``q = (a + p - d*t) / s``, so that

    F_a[j] = sum over those taps of  x[j + q] * w[t],        output[s*j + a] = F_a[j].

With strides ``s_1 .. s_n`` it is their product of ordinary convolutions whose outputs are interleaved: the
periodical shuffling of Gao et al., *Pixel Deconvolutional Networks*, eq. 1. Phases may have different
windows, and some have no taps at all (``k < s``).

All axes are alike: n = 1 for waveforms, 2 for pictures, 3 for volumes and films. "size", "kernel" and the
like stand for n numbers, one for each axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, ...]
"""One number for each axis."""
Phase = tuple[int, ...]
"""A phase of the output grid: the index modulo the stride, for each axis."""
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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

    ``kernel``: (C_out, C_in, *window).
    """

    kernel: Tensor
    origin: Size


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


def all_phases(stride: Sequence[int]) -> list[Phase]:
    """Every phase, the last axis running fastest."""
    return list(product(*map(range, stride)))


def anchor_phase(
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Phase:
    """The first phase, the one that always sees the input: the origin, or the first after it that has taps.

    Phase 0 of an axis has no taps when the kernel is smaller than the stride or both are even and the
    padding is odd.
    """
    return tuple(
        next(a for a, axis in enumerate(axis_phases(k, s, p, d)) if axis.taps)
        for k, s, p, d in zip(kernel_size, stride, padding, dilation, strict=True)
    )


def sub_kernel(weight: Tensor, axes: Sequence[AxisPhase], groups: int) -> Tensor:
    """The ordinary-convolution kernel of one phase, ``axes`` being what it reads along each axis.

    ``weight``: (C_in, C_out/groups, *kernel), the layout of ``nn.ConvTransposeNd``.
    Returns (C_out, C_in/groups, *taps), the layout of ``nn.ConvNd``.
    """
    taps = _indexed(weight, [axis.taps for axis in axes])
    c_in, c_out, *window = taps.shape
    grouped = taps.reshape(groups, c_in // groups, c_out, *window).transpose(1, 2)
    return grouped.reshape(groups * c_out, c_in // groups, *window)


def phase_weight(weight: Tensor, *axes: AxisPhase) -> Tensor:
    """One phase's taps in the transposed layout, ascending: (C_in, C_out/groups, *taps)."""
    return _indexed(weight, [sorted(axis.taps) for axis in axes])


def _indexed(weight: Tensor, taps: Sequence[Sequence[int]]) -> Tensor:
    for axis, wanted in enumerate(taps, 2):
        weight = weight[(slice(None),) * axis + (list(wanted),)]
    return weight


def phase_filters(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> dict[Phase, PhaseFilter]:
    """A transposed convolution, ``weight`` (C_in, C_out/groups, *kernel), as one dense low-resolution
    filter for each phase.
    """
    by_axis = [axis_phases(*g) for g in zip(weight.shape[2:], stride, padding, dilation, strict=True)]
    filters = {}
    for phase in all_phases(stride):
        axes = [phases[a] for phases, a in zip(by_axis, phase, strict=True)]
        kernel = ungrouped(sub_kernel(weight, axes, groups), groups)
        if not all(axis.taps for axis in axes):
            empty = kernel.new_zeros(*kernel.shape[:2], *(1 for _ in axes))
            filters[phase] = PhaseFilter(empty, (0,) * len(axes))
            continue
        window = [axis.offsets[-1] - axis.offsets[0] + 1 for axis in axes]
        spread = kernel.new_zeros(*kernel.shape[:2], *window)
        spread[last_axes(slice(None, None, axis.step) for axis in axes)] = kernel
        filters[phase] = PhaseFilter(spread, tuple(axis.offsets[0] for axis in axes))
    return filters


def ungrouped(kernel: Tensor, groups: int) -> Tensor:
    """A grouped convolution kernel (C_out, C_in/groups, *window) as a dense one (C_out, C_in, *window)."""
    if groups == 1:
        return kernel
    c_out, c_in, *window = kernel.shape
    dense = kernel.new_zeros(groups, c_out // groups, groups, c_in, *window)
    index = torch.arange(groups, device=kernel.device)
    dense[index, :, index] = kernel.reshape(groups, c_out // groups, c_in, *window)
    return dense.reshape(c_out, groups * c_in, *window)


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


def last_axes(index: Iterable[Any]) -> tuple[Any, ...]:
    """``index`` as an index of a tensor's last axes."""
    return (..., *index)


def padded(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """``x`` with that many zeros before and after its last axes; negative numbers take away."""
    return F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])


def compose(outer: Tensor, start: Size, inner: PhaseFilter) -> PhaseFilter:
    """The filter of a convolution of a filtered signal: ``outer`` (C2, C1, *window), reading from ``start``,
    after ``inner``.

    Exact where no border is near: a layer zero-pads the inner signal at the border, a single filter cannot.
    """
    inner_kernel = inner.kernel.transpose(0, 1)  # (C_in, C1, *window): the input channels as a batch
    window, axes = outer.shape[2:], range(2, outer.dim())
    # full convolution of the two kernels: correlate with the flipped outer kernel on a fully padded inner one
    convolve = CONVOLUTIONS[len(window)]
    combined = convolve(inner_kernel, outer.flip(*axes), padding=tuple(k - 1 for k in window))
    origin = tuple(a + b for a, b in zip(inner.origin, start, strict=True))
    return PhaseFilter(combined.transpose(0, 1), origin)


def add_filters(filters: list[PhaseFilter]) -> PhaseFilter:
    """The sum of filters with different windows, on the smallest window that holds them all."""
    first = tuple(map(min, zip(*(f.origin for f in filters), strict=True)))
    last = tuple(map(max, zip(*(_end(f) for f in filters), strict=True)))
    total = torch.zeros((), dtype=filters[0].kernel.dtype, device=filters[0].kernel.device)
    for f in filters:
        before = [a - b for a, b in zip(f.origin, first, strict=True)]
        after = [a - b for a, b in zip(last, _end(f), strict=True)]
        total = total + padded(f.kernel, before, after)
    return PhaseFilter(total, first)


def _end(f: PhaseFilter) -> Size:
    return tuple(start + size for start, size in zip(f.origin, f.kernel.shape[2:], strict=True))
