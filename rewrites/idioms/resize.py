"""A bare resize, by itself a depthwise transposed convolution; converted only where a caller asks for this
kind of site.

Nearest, by s::

    y = interpolate(x, scale_factor=s, mode="nearest")
    y = conv_transpose2d(x, ones(s, s), stride=s, groups=C)

Linear, by 2::

    y = interpolate(x, scale_factor=2, mode="bilinear")
    y = conv_transpose2d(pad(x, 1, "replicate"), outer([1, 3, 3, 1]) / 16, stride=2, padding=3, groups=C)

Likewise along one axis and along three. Only a module, ``nn.Upsample``, can be replaced: a call of
``F.interpolate`` in somebody's forward cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pixelize.rewrites.graph.flow import Flow
from pixelize.rewrites.graph.operator_names import LINEAR
from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.graph.resize_factor import resize_factor, spread
from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.replacement import MadeFor, dressed
from pixelize.rewrites.site import Geometry, Site, TransposedConv


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a resize module is, or the reason why it is none."""
    if not isinstance(module, nn.Upsample):
        return "called as a function: only an nn.Upsample module can be replaced"
    shapes = {(shape_of(flow.ops[c].args["input"]) or (0, 0)) for c in calls}
    kinds = {(shape[1], len(shape) - 2) for shape in shapes}
    channels, n = kinds.pop()
    if not channels or not n:
        return "on an unknown number of channels: example inputs would tell"
    if kinds:
        return "called on tensors of different numbers of channels or axes"
    mode = module.mode
    factor: tuple[int, ...]
    if mode in LINEAR and not module.align_corners:
        scale = module.scale_factor
        scales = spread(scale if isinstance(scale, tuple) else (scale,), n)  # type: ignore[arg-type]
        if any(v is None or v != int(v) or v < 2 for v in scales):
            return f"{mode} resize by no integer factor"
        factor = tuple(map(int, scales))
    elif mode.startswith("nearest"):
        known, reason = resize_factor(calls[0], flow.ops[calls[0]])
        if known is None or module.scale_factor is None:
            return reason or "resize to a fixed size: its factor changes with the input's"
        factor = spread(known, n)
    else:
        return f"{mode} resize" + (
            " with align_corners: its phases change from pixel to pixel" if module.align_corners else ""
        )
    options = {
        "factor": list(factor),
        "mode": mode,
        "dtype": str(flow.like.dtype).removeprefix("torch."),
        "device": str(flow.like.device),
    }
    return Site(name, names, "resize", type(module).__name__, geometry(channels, options), options)


def geometry(channels: int, options: Mapping[str, Any]) -> Geometry:
    """The depthwise transposed convolution: s taps for nearest, 2s (2s-1 for odd s) on an edge of one pixel
    for linear."""
    factor, linear = tuple(options["factor"]), options["mode"] in LINEAR
    kernel = tuple(len(taps(s, linear)) for s in factor)
    padding = tuple(s + (k - s) // 2 if linear else 0 for k, s in zip(kernel, factor, strict=True))
    return Geometry(channels, channels, kernel, factor, padding, groups=channels, bias=False)


def is_factor(value: Any, axes: Sequence[int]) -> bool:
    """Whether a site's option is a factor along each axis, of one of these numbers of axes."""
    return isinstance(value, list) and len(value) in axes and all(type(v) is int and v >= 1 for v in value)


def are_options(options: Mapping[str, Any]) -> bool:
    """Whether ``options`` are some that :func:`match` makes."""
    return (
        options.keys() == {"factor", "mode", "dtype", "device"}
        and is_factor(options["factor"], (1, 2, 3))
        and options["mode"] in ("nearest", "nearest-exact", LINEAR[len(options["factor"]) - 1])
        and isinstance(getattr(torch, str(options["dtype"]), None), torch.dtype)
    )


def taps(s: int, linear: bool) -> list[float]:
    """What one input pixel gives to the output pixels around it, along one axis."""
    if not linear:
        return [1.0] * s
    # output o lies at (o + 1/2) / s - 1/2: the triangle of half-width s, sampled at half or whole pixels
    count = 2 * s if s % 2 == 0 else 2 * s - 1
    return [1 - abs(t - (count - 1) / 2) / s for t in range(count)]


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The resize as a transposed convolution, in the type and on the device of the model that it was found
    in."""
    linear = site.options["mode"] in LINEAR
    axes = [torch.tensor(taps(s, linear), dtype=torch.float64, device="cpu") for s in site.options["factor"]]
    kernel = reduce(lambda outer, axis: outer[..., None] * axis, axes)
    weight = kernel.to(site.options["device"], getattr(torch, site.options["dtype"]))
    weight = weight.expand(site.geometry.in_channels, 1, *kernel.shape).clone()
    return TransposedConv(site.geometry, weight, None)


class ResizeTransposed(MadeFor):
    """Takes the place of an ``nn.Upsample``: ``layer`` on the picture, with one more pixel on each side where
    the resize was linear.

    What is no picture of the layer's channels and type is resized as it was.
    """

    made_for = frozenset(["mode", "scale_factor", "size", "align_corners"])

    def __init__(self, layer: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(True)
        self.edge = (1, 1) * len(options["factor"]) if options["mode"] in LINEAR else None
        self.mode, self.scale_factor = options["mode"], tuple(options["factor"])
        self.channels = int(layer.in_channels)  # type: ignore[call-overload, arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, s H, s W), and so on."""
        if isinstance(input, Tensor) and (
            input.dim() != len(self.scale_factor) + 2
            or input.shape[1] != self.channels
            or input.dtype != next(self.layer.parameters()).dtype
        ):
            scale = tuple(float(s) for s in self.scale_factor[: input.dim() - 2])
            return F.interpolate(input, scale_factor=scale, mode=self.mode)  # type: ignore[arg-type]
        y = self.layer(F.pad(input, self.edge, mode="replicate") if self.edge else input)
        return y.to(input.dtype)  # under autocast a resize keeps its input's type


IDIOM = Idiom(
    "resize",
    "resize",
    match,
    lambda site, module: isinstance(module, nn.Upsample),
    lambda site, options, module: (
        geometry(site.geometry.in_channels, options) if are_options(options) else None
    ),
    canonical,
    lambda site, module, layer: dressed(ResizeTransposed(layer, site.options), module),
)
