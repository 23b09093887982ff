"""Convolution, then PixelShuffle: a transposed convolution whose kernel holds r*r ordinary ones.

    y = pixel_shuffle(conv2d(x, W, padding=p), r)    ==    y = conv_transpose2d(x, W', stride=r, padding=r(k-1-p))

The convolution's module is replaced by one that returns ``pixel_unshuffle`` of the layer's output: the shuffle that follows puts it right
again, and elementwise functions between the two see what they saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from pixelize.rewrites.flow import Flow, uses
from pixelize.rewrites.resize_conv import conv_refusal, symmetric_padding
from pixelize.rewrites.site import Geometry, Site, TransposedConv
from torch import Tensor, fx, nn


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Conv2d, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution is whose output goes to a pixel shuffle and nowhere else; a reason or None if it is none."""
    factors = set()
    others = set()
    for call in calls:
        for _, op in uses(flow, call):
            if op.kind == "shuffle":
                factors.add(int(op.args["factor"]))
            else:
                others.add(op.name)
    if not factors:
        return None
    if others or len(factors) > 1:
        return f"its output goes to {', '.join(sorted(others)) or 'shuffles of several factors'} as well as to the shuffle"
    refusal = conv_refusal(module)
    if refusal:
        return refusal
    found = geometry(module, factors.pop())
    if isinstance(found, str):
        return found
    options = {"factor": found.stride[0]}
    return Site(name, names, "pixel_shuffle", type(module).__name__, found, options)


def geometry(module: nn.Conv2d, r: int) -> Geometry | str:
    """The canonical transposed convolution, or the reason why there is none."""
    padding = symmetric_padding(module)
    if padding is None:
        return "padding='same' with an even kernel is not symmetric"
    if tuple(module.dilation) != (1, 1):
        return f"dilation {tuple(module.dilation)} before a pixel shuffle"
    if r == 1 or module.out_channels % (r * r) or (module.out_channels // (r * r)) % module.groups:
        return f"{module.out_channels} channels in {module.groups} groups do not make whole groups of {r * r} phases"
    inverse = [module.kernel_size[i] - 1 - padding[i] for i in (0, 1)]
    if min(inverse) < 0:
        return f"the convolution's padding {padding} is larger than its kernel"
    return Geometry(
        module.in_channels,
        module.out_channels // (r * r),
        (r * module.kernel_size[0], r * module.kernel_size[1]),
        (r, r),
        (r * inverse[0], r * inverse[1]),
        (0, 0),
        module.groups,
        (1, 1),
        module.bias is not None,
    )


def canonical(site: Site, module: nn.Conv2d) -> TransposedConv:
    """The transposed convolution that convolution and shuffle are together: W'[r(k-1-t) + a] = W[t] of phase a.

    The bias is the mean over the phases of each channel; what is left of it stays in :class:`ShuffleConv2d`.
    """
    r, g = site.options["factor"], module.groups
    weight = module.weight.detach()
    c_out, c_in, kh, kw = weight.shape
    taps = weight.flip(-2, -1).reshape(g, c_out // (g * r * r), r, r, c_in, kh, kw)
    # (g, C, a, b, I, y, x) to (g, I, C, y, a, x, b)
    full = taps.permute(0, 4, 1, 5, 2, 6, 3).reshape(g * c_in, c_out // (g * r * r), kh * r, kw * r)
    bias = None
    if module.bias is not None:
        bias = module.bias.detach().double().reshape(-1, r * r).mean(1).to(weight.dtype)
    return TransposedConv(site.geometry, full.contiguous(), bias)


class ShuffleConv2d(nn.Module):
    """Takes the place of a convolution whose output is shuffled: pixel_unshuffle(layer(x)) and what the bias differs by from phase to phase.

    Shapes: input (N, C_in, H, W), output (N, C_out r^2, H', W') as of the convolution.
    """

    def __init__(self, layer: nn.Module, module: nn.Conv2d, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.factor = int(options["factor"])
        self.in_channels, self.out_channels = module.in_channels, module.out_channels
        self.kernel_size, self.stride, self.groups = module.kernel_size, module.stride, module.groups
        self.phase_bias: nn.Parameter | None = None
        if module.bias is not None:
            phases = module.bias.detach().reshape(-1, self.factor**2)
            rest = (phases - phases.double().mean(1, keepdim=True).to(phases.dtype)).reshape(-1)
            self.phase_bias = nn.Parameter(rest, requires_grad=module.bias.requires_grad)
        self.training = module.training

    @property
    def weight(self) -> Tensor:
        """The layer's weight, for code that asks a convolution for its device or type."""
        return self.layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """What the convolution gave for ``input``."""
        y = F.pixel_unshuffle(self.layer(input), self.factor)
        return y if self.phase_bias is None else y + self.phase_bias[:, None, None]

    def extra_repr(self) -> str:
        """The shuffle's factor."""
        return f"factor={self.factor}"
