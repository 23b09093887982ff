"""Resize, then convolution: a transposed convolution in disguise.

Before::

    u = interpolate(x, scale_factor=s, mode="nearest")
    y = conv2d(cat([u, skip]), W, padding=p)

After::

    y = conv_transpose2d(x, W', stride=s, padding=k-1-p) + conv2d(skip, W_skip, padding=p)

Nearest resize is a transposed convolution with a kernel of s ones, so W' is the full convolution of those
ones with the flipped W: s+k-1 taps, of which each output phase uses about k/s along each axis. Exact, borders
included. Where the padding repeats the edge (``replicate``, or ``reflect`` by one pixel, which is the same
inside a block), x is padded by q = ceil(p/s) such pixels instead and the transposed convolution's padding is
k-1 + qs-p. A linear resize is one too, with a triangle in the place of the ones
(:mod:`pixelize.rewrites.idioms.linear_conv`). All of it holds along one axis, two or three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import gcd
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pixelize.rewrites.graph.flow import Blocks, Factor, Flow, read_by, spread
from pixelize.rewrites.graph.operators import LINEAR, shape_of
from pixelize.rewrites.idioms.resize import is_factor, taps
from pixelize.rewrites.site import Geometry, Site, TransposedConv
from pixelize.rewrites.state.precision import float64

Range = tuple[int, int]
INSTANCE_FORWARD = (
    "its forward was set on the instance, as accelerate's hooks do: take them off "
    "(accelerate.hooks.remove_hook_from_module), convert, and put them on again"
)
CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PRUNED = "pruned: make that permanent first (torch.nn.utils.prune.remove), then convert"


def conv_refusal(module: _ConvNd) -> str | None:
    """Why a convolution that reads a resized image cannot become a transposed one, or None if it can."""
    reason = own_refusal(module)
    if reason:
        return reason
    if any(c != 1 for c in module.stride):
        return f"the convolution has stride {tuple(module.stride)}"
    taken = {"layer", "skip", "options", "factor", "rest", "inverse", "places", "phase_bias"}
    if clash := taken & {*module.__dict__, *module._modules, *module._parameters, *dir(type(module))}:
        return f"its attribute {min(clash)!r} has the name of one that its replacement needs"
    return None


def own_refusal(module: _ConvNd) -> str | None:
    """Why a convolution does something else than its attributes tell, or None if it does not."""
    kind = type(module)
    if "forward" in module.__dict__:
        return INSTANCE_FORWARD
    plain = plain_kind(module)
    if kind.forward is not plain.forward or kind._conv_forward is not plain._conv_forward:  # type: ignore[attr-defined]
        return f"{kind.__name__} has a forward of its own, not nn.{plain.__name__}'s"
    if prune.is_pruned(module):
        return PRUNED
    if not parametrize.is_parametrized(module) and "weight" not in module._parameters:
        norms = [h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm | SpectralNorm)]
        if not norms:
            return "its weight is no parameter, and what computes it is not known"
    c_in, c_out, groups = module.in_channels, module.out_channels, module.groups
    if tuple(module.weight.shape) != (c_out, c_in // groups, *module.kernel_size):
        return f"its weight has the shape {tuple(module.weight.shape)}, which its attributes do not tell"
    return None


def plain_kind(module: _ConvNd) -> type[nn.Module]:
    """Which of torch's convolutions a module is."""
    return next(kind for kind in CONVOLUTIONS if isinstance(module, kind))


def own_padding(module: _ConvNd) -> tuple[int, ...] | None:
    """The padding in numbers; None for ``padding="same"`` with an even kernel, which pads one side more."""
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple(t // 2 for t in total) if all(t % 2 == 0 for t in total) else None
    return tuple(map(int, module.padding))


def match_mode(
    linear: bool, flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution module is which reads a resize of that mode, given all its calls in a
    graph; a reason if it cannot be one, None if it reads no such resize.

    A convolution with a kernel of one tap mixes no pixels, makes no pattern and gains nothing: it counts as a
    bare resize.
    """
    if not isinstance(module, CONVOLUTIONS):
        return None
    n = len(module.kernel_size)
    values = [read_by(flow, call) for call in calls]
    if any(len(shape) != n + 2 for v in values if (shape := shape_of(v)) is not None):
        return None  # not (N, C, ..)
    seen = [flow.blocks.get(v) for v in values]
    if not any(b is not None and (b.mode == "linear") == linear for b in seen):
        return None
    first = seen[0]
    if first is None or any(
        b is None or (b.factors, b.margin, b.mode) != (first.factors, first.margin, first.mode) for b in seen
    ):
        return "called in several places, not always after the same resize"
    refusal = conv_refusal(module)
    if refusal:
        return refusal
    options = plan(module, first)
    if isinstance(options, str):
        return options
    found = geometry(module, options)
    if isinstance(found, str):
        return found
    kind = "resize" if has_one_tap(module) else "resize_conv"
    return Site(name, names, kind, type(module).__name__, found, options)  # type: ignore[arg-type]


def has_one_tap(module: nn.Module) -> bool:
    """Whether a module is a convolution that mixes no pixels."""
    return isinstance(module, CONVOLUTIONS) and all(k == 1 for k in module.kernel_size)


def plan(module: _ConvNd, blocks: Blocks) -> dict[str, Any] | str:
    """What a replacement needs to know beside the module: the factor, the channels that have it, the padding
    before and its kind."""
    linear, n = blocks.mode == "linear", len(module.kernel_size)
    factors = [spread(f, n) for f in blocks.over(module.in_channels)]
    if any(len(f) != n for f in factors):
        return f"resized along {len(factors[0])} axes, convolved along {n}"
    factor, ranges = common_factor(factors, linear)
    padding = own_padding(module)
    if padding is None:
        return "padding='same' with an even kernel is not symmetric"
    mode, margin = blocks.margin or ("zeros", (0,) * n)
    if len(margin) != n:
        return "padded along some of its axes only"
    if module.padding_mode != "zeros" and any(padding):
        inside = linear or all(p == 0 or (p == 1 and s > 1) for p, s in zip(padding, factor, strict=True))
        if module.padding_mode not in ("replicate", "reflect") or (
            module.padding_mode == "reflect" and not inside
        ):
            return f"padding_mode is {module.padding_mode!r}: not what a block image repeats"
        own = module.padding_mode
    else:
        own = "zeros"  # type: ignore[assignment]
    if any(padding) and any(margin) and own != mode:
        return f"padded twice, with {mode} and by the convolution with {own}"
    if any(padding) and any(margin) and own == "reflect" and linear:
        return "padded twice by reflection"
    return {
        "factor": list(factor),
        "ranges": [list(r) for r in ranges],
        "margin": list(margin),
        "around": own if any(padding) else mode,
        **({"mode": LINEAR[n - 1]} if linear else {}),
    }


def geometry(module: _ConvNd, options: Mapping[str, Any]) -> Geometry | str:
    """The canonical transposed convolution of the resized channels, or the reason why there is none."""
    factor, margin, axes = options["factor"], options["margin"], range(len(module.kernel_size))
    channels = sum(b - a for a, b in options["ranges"])
    padding = own_padding(module)
    assert padding is not None
    span = [module.dilation[i] * (module.kernel_size[i] - 1) for i in axes]
    around = [padding[i] + margin[i] for i in axes]
    size = [len(taps(s, is_linear(options))) for s in factor]
    if is_linear(options):
        edge = [edge_of(around[i], factor[i]) for i in axes]
        inverse = [(size[i] - factor[i]) // 2 + edge[i] * factor[i] + span[i] - around[i] for i in axes]
    elif options["around"] != "zeros":
        inverse = [span[i] + -around[i] % factor[i] for i in axes]
    else:
        inverse = [span[i] - around[i] for i in axes]
    if min(inverse) < 0:
        return f"the convolution's padding {tuple(around)} is larger than its kernel"
    if any(module.dilation[i] > factor[i] and span[i] for i in axes):
        return f"dilation {tuple(module.dilation)}: the transposed convolution would cost more than it saves"
    if module.groups > 1 and channels != module.in_channels:
        return "a grouped convolution over a concatenation"
    return Geometry(
        channels,
        module.out_channels,
        tuple(span[i] + size[i] for i in axes),
        tuple(factor),
        tuple(inverse),
        groups=module.groups,
        bias=module.bias is not None,
    )


def are_options(options: Mapping[str, Any], module: _ConvNd) -> bool:
    """Whether ``options`` are some that :func:`plan` makes for ``module``."""
    n = len(module.kernel_size)
    if options.keys() - {"mode"} != {"factor", "ranges", "margin", "around"} or not is_factor(
        options["factor"], (n,)
    ):
        return False
    if (
        options["around"] not in ("zeros", "replicate", "reflect")
        or options.get("mode", LINEAR[n - 1]) != LINEAR[n - 1]
    ):
        return False
    edges = [edge for r in options["ranges"] for edge in r]
    return (
        own_padding(module) is not None
        and conv_refusal(module) is None
        and is_factor([width + 1 for width in options["margin"]], (n,))
        and all(len(r) == 2 and r[0] < r[1] for r in options["ranges"])
        and edges == sorted(edges)
        and len(edges) > 0
        and edges[0] >= 0
        and edges[-1] <= module.in_channels
    )


def is_linear(options: Mapping[str, Any]) -> bool:
    """Whether a site's resize is linear between its pixels: bilinear, along two axes."""
    return options.get("mode") in LINEAR


def stated(site: Site, options: Mapping[str, Any], module: nn.Module) -> Geometry | str | None:
    """The geometry of a site with these options, None if :func:`plan` makes no such options for it."""
    assert isinstance(module, _ConvNd)
    return geometry(module, options) if are_options(options, module) else None


def edge_of(around: int, factor: int) -> int:
    """By how many pixels a small picture's edge is repeated so that its linear enlargement goes on for
    ``around`` pixels beyond the border: pixel -m lies at (1/2 - m) / s - 1/2, at least 1."""
    return max(1, -(-(2 * around - 1 + factor) // (2 * factor)))


def common_factor(factors: Sequence[Factor], linear: bool = False) -> tuple[Factor, list[Range]]:
    """The block size that a conversion uses, and the channel ranges that have it.

    The greatest common one of all resized channels; where they share none, or a block is not constant, the
    most frequent one.
    """
    resized = [f for f in factors if any(s != 1 for s in f)]
    shared = tuple(gcd(*along) for along in zip(*resized, strict=True))
    if all(s == 1 for s in shared) or linear:
        shared = max(resized, key=resized.count)
    taken = [
        i
        for i, f in enumerate(factors)
        if f == shared or (not linear and all(a % b == 0 for a, b in zip(f, shared, strict=True)))
    ]
    ranges: list[Range] = []
    for i in taken:
        if ranges and ranges[-1][1] == i:
            ranges[-1] = (ranges[-1][0], i + 1)
        else:
            ranges.append((i, i + 1))
    return shared, ranges


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The transposed convolution that the resize and its share of the convolution are together."""
    assert isinstance(module, _ConvNd)
    weight = take(module.weight.detach(), site.options["ranges"])
    bias = None if module.bias is None else module.bias.detach().clone()
    full = merge_taps(weight, module.dilation, site.options["factor"], module.groups, is_linear(site.options))
    return TransposedConv(site.geometry, full, bias)


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


Inverse = list[list[list[float]]]


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


def take(weight: Tensor, ranges: Sequence[Sequence[int]]) -> Tensor:
    """The input channels of a convolution's weight that lie in ``ranges``: a view of it where that can be."""
    if weight.shape[1] < ranges[-1][1]:  # a grouped convolution is taken whole
        return weight
    if len(ranges) == 1:
        return weight[:, slice(*ranges[0])]
    return torch.cat([weight[:, a:b] for a, b in ranges], 1)
