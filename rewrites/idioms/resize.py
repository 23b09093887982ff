"""A bare resize, by itself a depthwise transposed convolution; converted only where a caller asks for this
kind of site.

Nearest, by s::

    y = interpolate(x, scale_factor=s, mode="nearest")
    y = conv_transpose2d(x, ones(s, s), stride=s, groups=C)

Bilinear, by 2::

    y = interpolate(x, scale_factor=2, mode="bilinear")
    y = conv_transpose2d(pad(x, 1, "replicate"), outer([1, 3, 3, 1]) / 16, stride=2, padding=3, groups=C)

Only a module, ``nn.Upsample``, can be replaced: a call of ``F.interpolate`` in somebody's forward cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pixelize.rewrites.graph.flow import Flow, resize_factor
from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.replacement import dressed
from pixelize.rewrites.site import Geometry, Site, TransposedConv


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a resize module is, or the reason why it is none."""
    if not isinstance(module, nn.Upsample):
        return "called as a function: only an nn.Upsample module can be replaced"
    shapes = {(shape_of(flow.ops[c].args["input"]) or (0, 0))[1] for c in calls}
    channels = shapes.pop()
    if not channels:
        return "on an unknown number of channels: example inputs would tell"
    if shapes:
        return "called on tensors of different numbers of channels"
    mode = module.mode
    if mode == "bilinear" and not module.align_corners:
        scale = module.scale_factor
        pair = scale if isinstance(scale, tuple) else (scale, scale)
        if any(v is None or v != int(v) or v < 2 for v in pair):
            return "bilinear resize by no integer factor"
        factor = (int(pair[0]), int(pair[1]))  # type: ignore[arg-type]
    elif mode.startswith("nearest"):
        found, reason = resize_factor(calls[0], flow.ops[calls[0]])
        if found is None or module.scale_factor is None:
            return reason or "resize to a fixed size: its factor changes with the input's"
        factor = found
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
    for bilinear."""
    (sh, sw), bilinear = options["factor"], options["mode"] == "bilinear"
    kernel = tuple(len(taps(s, bilinear)) for s in (sh, sw))
    padding = tuple((s + (kernel[i] - s) // 2) if bilinear else 0 for i, s in enumerate((sh, sw)))
    return Geometry(
        channels,
        channels,
        (kernel[0], kernel[1]),
        (sh, sw),
        (padding[0], padding[1]),
        (0, 0),
        channels,
        (1, 1),
        False,
    )


def is_factor(value: Any) -> bool:
    """Whether a site's option is a factor along each axis."""
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int and v >= 1 for v in value)


def are_options(options: Mapping[str, Any]) -> bool:
    """Whether ``options`` are some that :func:`match` makes."""
    return (
        options.keys() == {"factor", "mode", "dtype", "device"}
        and is_factor(options["factor"])
        and options["mode"] in ("nearest", "nearest-exact", "bilinear")
        and isinstance(getattr(torch, str(options["dtype"]), None), torch.dtype)
    )


def taps(s: int, bilinear: bool) -> list[float]:
    """What one input pixel gives to the output pixels around it, along one axis."""
    if not bilinear:
        return [1.0] * s
    # output o lies at (o + 1/2) / s - 1/2: the triangle of half-width s, sampled at half or whole pixels
    count = 2 * s if s % 2 == 0 else 2 * s - 1
    return [1 - abs(t - (count - 1) / 2) / s for t in range(count)]


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The resize as a transposed convolution, in the type and on the device of the model that it was found
    in."""
    bilinear = site.options["mode"] == "bilinear"
    axes = [taps(s, bilinear) for s in site.options["factor"]]
    rows, columns = (torch.tensor(axis, dtype=torch.float64, device="cpu") for axis in axes)
    kernel = (rows[:, None] * columns).expand(site.geometry.in_channels, 1, -1, -1)
    weight = kernel.to(site.options["device"], getattr(torch, site.options["dtype"])).clone()
    return TransposedConv(site.geometry, weight, None)


class ResizeTransposed2d(nn.Module):
    """Takes the place of an ``nn.Upsample``: ``layer`` on the picture, with one more pixel on each side where
    the resize was bilinear.

    What is no picture of the layer's channels and type is resized as it was.
    """

    def __init__(self, layer: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(True)
        self.edge = options["mode"] == "bilinear"
        self.mode, self.scale_factor = options["mode"], tuple(options["factor"])
        self.channels = int(layer.in_channels)  # type: ignore[call-overload, arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, s H, s W)."""
        if isinstance(input, Tensor) and (
            input.dim() != 4
            or input.shape[1] != self.channels
            or input.dtype != next(self.layer.parameters()).dtype
        ):
            scale = tuple(float(s) for s in self.scale_factor[: input.dim() - 2])
            return F.interpolate(input, scale_factor=scale, mode=self.mode)  # type: ignore[arg-type]
        y = self.layer(F.pad(input, (1, 1, 1, 1), mode="replicate") if self.edge else input)
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
    lambda site, module, layer: dressed(ResizeTransposed2d(layer, site.options), module),
)
