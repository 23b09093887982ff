"""The taps of a convolution that reads a resized picture, merged into those of a transposed one, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from pixelize.rewrites.idioms.resize import taps
from pixelize.rewrites.state.precision import float64

Inverse = list[list[list[float]]]


def take(weight: Tensor, ranges: Sequence[Sequence[int]]) -> Tensor:
    """The input channels of a convolution's weight that lie in ``ranges``: a view of it where that can be."""
    if weight.shape[1] < ranges[-1][1]:  # a grouped convolution is taken whole
        return weight
    if len(ranges) == 1:
        return weight[:, slice(*ranges[0])]
    return torch.cat([weight[:, a:b] for a, b in ranges], 1)


def merge_taps(
    weight: Tensor, dilation: Sequence[int], factor: Sequence[int], groups: int, linear: bool = False
) -> Tensor:
    """A convolution's layout (C_out, C_in/groups, k, ..) to a transposed one's (C_in, C_out/groups, d(k-1)+s,
    ..).

    W'[T] = sum of W[t] over the taps t with 0 <= T - d(k-1-t) < s: the flipped, dilated kernel convolved with
    s ones (or the triangle of a linear resize). Summed in float64, in parts that a cache holds.
    """
    c_out, c_in, *kernel = weight.shape
    axes = _tap_sums(kernel, dilation, factor, linear)
    sums_of = reduce(torch.kron, axes).to(float64(weight.new_empty(0)).device)
    full = weight.new_empty(groups * c_in, c_out // groups, sums_of.shape[1])
    step = max(1, min(c_in, 2**17 // (c_out // groups * sums_of.shape[0])))
    parts, sums = (sums_of.new_empty(step, c_out // groups, n) for n in sums_of.shape)
    for g, block in enumerate(weight.reshape(groups, c_out // groups, c_in, sums_of.shape[0])):
        for start in range(0, c_in, step):
            n = min(step, c_in - start)
            part = parts[:n].copy_(block[:, start : start + n].transpose(0, 1))
            full[g * c_in + start : g * c_in + start + n] = torch.matmul(part, sums_of, out=sums[:n])
    return full.view(*full.shape[:2], *(axis.shape[1] for axis in axes))


def _tap_sums(
    kernel_size: Sequence[int], dilation: Sequence[int], factor: Sequence[int], linear: bool
) -> list[Tensor]:
    # for each axis the taps of the transposed convolution, (k, d(k-1)+..), that each tap of the convolution
    # adds to
    axes = []
    for k, d, s in zip(kernel_size, dilation, factor, strict=True):
        one = torch.tensor(taps(s, linear), dtype=torch.float64, device="cpu")
        matrix = torch.zeros(k, d * (k - 1) + len(one), dtype=torch.float64, device="cpu")
        for t in range(k):
            matrix[t, d * (k - 1 - t) : d * (k - 1 - t) + len(one)] = one
        axes.append(matrix)
    return axes


def left_inverse(
    kernel_size: Sequence[int], dilation: Sequence[int], factor: Sequence[int], linear: bool = False
) -> Inverse:
    """For each axis the matrix that takes the taps of :func:`merge_taps` back to those of the convolution."""
    return [torch.linalg.pinv(a.mT).tolist() for a in _tap_sums(kernel_size, dilation, factor, linear)]


def split_taps(weight: Tensor, kernel_size: Sequence[int], groups: int, inverse: Inverse) -> Tensor:
    """The convolution kernel nearest, in least squares, to what :func:`merge_taps` made of it."""
    kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
    flat = weight.to(kind)
    for dim, axis in enumerate(inverse, 2):
        matrix = torch.tensor(axis, dtype=kind, device=weight.device)
        flat = (flat.transpose(dim, -1) @ matrix.mT).transpose(dim, -1)
    c_in, c_out = weight.shape[:2]
    grouped = flat.reshape(groups, c_in // groups, c_out, *kernel_size).transpose(1, 2)
    return grouped.reshape(groups * c_out, c_in // groups, *kernel_size).to(weight.dtype)
