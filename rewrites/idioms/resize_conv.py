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
from math import gcd
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.graph.flow import Blocks, Flow, read_by
from pixelize.rewrites.graph.operator_names import LINEAR
from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.graph.resize_factor import Factor, spread
from pixelize.rewrites.idioms.merged_taps import merge_taps, take
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS, conv_refusal, has_one_tap, own_padding
from pixelize.rewrites.idioms.resize import is_factor, taps
from pixelize.rewrites.site import Geometry, Site, TransposedConv

Range = tuple[int, int]


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
    stated = geometry(module, options)
    if isinstance(stated, str):
        return stated
    kind = "resize" if has_one_tap(module) else "resize_conv"
    return Site(name, names, kind, type(module).__name__, stated, options)  # type: ignore[arg-type]


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
