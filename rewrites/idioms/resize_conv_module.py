"""What takes the place of a convolution that reads a resized picture: it finds the small picture in the large
one and runs a transposed convolution on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.replacement import ConvReplacement, dressed
from pixelize.rewrites.idioms.resize import taps
from pixelize.rewrites.idioms.resize_conv import (
    Range,
    canonical,
    is_bilinear,
    left_inverse,
    match_mode,
    merge_taps,
    own_padding,
    split_taps,
    stated,
    take,
)
from pixelize.rewrites.watching.claims import Claim, covers
from pixelize.rewrites.watching.watch import claim_of


def complement(ranges: Sequence[Sequence[int]], channels: int) -> list[Range]:
    """The ranges of ``channels`` channels that are not in ``ranges``."""
    edges = [0, *(e for r in ranges for e in r), channels]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def pick(x: Tensor, options: Mapping[str, Any]) -> Tensor:
    """The resized channels of a convolution's input (N, C, H, W), without the margin that was padded around
    them."""
    (top, left), ranges = options["margin"], options["ranges"]
    x = channels_of(x, ranges)
    return x[..., top : x.shape[-2] - top, left : x.shape[-1] - left] if top or left else x


def channels_of(x: Tensor, ranges: Sequence[Sequence[int]]) -> Tensor:
    """The channels of ``x`` (N, C, H, W) that lie in ``ranges``."""
    parts = [x.narrow(-3, a, b - a) for a, b in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -3)


class ResizeConv2d(ConvReplacement):
    """Takes the place of a convolution that reads a nearest-resized image, alone or concatenated with others.

    It receives what the convolution received, (N, C, H, W). Where it is known in this very call
    (:func:`pixelize.rewrites.watching.watch.claim_of`) that a resize by ``factor`` made the channels that it
    is there for, it picks the small image out of them, which the resize had only repeated, and runs ``layer``
    on that; channels that were not resized go through ``skip``, an ordinary convolution with the remaining
    weights. In every other call it is the convolution that it replaced, as far as the layer's weight still is
    one.

    Shapes: input (N, C, H, W), output (N, C_out, H', W') as of the convolution.
    """

    takes_claims = True

    def __init__(self, layer: nn.Module, module: nn.Conv2d, options: Mapping[str, Any]) -> None:
        super().__init__()
        padding = own_padding(module)
        assert padding is not None
        self.layer = layer
        self.options = dict(options)
        self.factor = (int(options["factor"][0]), int(options["factor"][1]))
        self.rest = complement(options["ranges"], module.in_channels)
        self.in_channels, self.out_channels = module.in_channels, module.out_channels
        self.kernel_size, self.stride, self.dilation = module.kernel_size, module.stride, module.dilation
        self.groups, self.padding, self.padding_mode = module.groups, padding, module.padding_mode
        self.inverse = left_inverse(self.kernel_size, self.dilation, self.factor, is_bilinear(options))  # type: ignore[arg-type]
        self.skip: nn.Conv2d | None = None
        if self.rest:
            self.skip = nn.Conv2d(
                sum(b - a for a, b in self.rest),
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                1,
                padding,
                module.dilation,  # type: ignore[arg-type]
                bias=False,
                padding_mode=module.padding_mode,
                device="meta",
            )
            rest = take(module.weight.detach(), self.rest).clone()
            self.skip.weight = nn.Parameter(rest, requires_grad=module.weight.requires_grad)
        self.training = module.training

    def forward(self, input: Tensor, claim: Claim | bool | None = None) -> Tensor:
        """What the convolution gave for ``input``, the small image's part of it made by the layer.

        ``claim``: what is known of ``input``, where the caller knows it; True for all that is needed.
        """
        if self._is_resized(input, claim):
            resized = pick(input, self.options)
            y = self._up_sampled(resized)
        else:
            x = channels_of(input, self.options["ranges"])
            y = F.conv2d(self._own_padded(x), self._kernel(), self.bias, 1, 0, self.dilation, self.groups)
        return y if self.skip is None else y + self.skip(channels_of(input, self.rest))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes a state dict of the original convolution as well: its weight becomes the layer's and the
        skip's."""
        weight = state_dict.pop(prefix + "weight", None)
        if weight is not None:
            mine = take(weight, self.options["ranges"])
            state_dict[prefix + "layer.weight"] = merge_taps(
                mine, self.dilation, self.factor, self.groups, is_bilinear(self.options)
            )
            if self.skip is not None:
                state_dict[prefix + "skip.weight"] = take(weight, self.rest).clone()
        if prefix + "bias" in state_dict:
            state_dict[prefix + "layer.bias"] = state_dict.pop(prefix + "bias")
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def _is_resized(self, input: Tensor, claim: Claim | bool | None) -> bool:
        if claim is True:
            return True
        top, left = self.options["margin"]
        margin = (self.options["around"], top, left) if top or left else None
        known = claim_of(input) if claim is None else claim
        if not covers(known, self._mode, margin, self.factor, self.options["ranges"]):  # type: ignore[arg-type]
            return False
        return not isinstance(input, Tensor) or self._reaches(input, top, left)

    @property
    def _mode(self) -> str:
        """The resize's mode: nearest or bilinear."""
        return "bilinear" if is_bilinear(self.options) else "nearest"

    def _reaches(self, input: Tensor, top: int, left: int) -> bool:
        """Whether what lies beyond the border is what the layer takes it for: where the last block is cut and
        reflected, one pixel on lies another block."""
        if self.options["around"] != "reflect":
            return True
        size = (input.shape[-2] - 2 * top, input.shape[-1] - 2 * left)
        return all(size[i] % self.factor[i] == 0 or self._around(i) == 0 for i in (0, 1))

    def _around(self, axis: int) -> int:
        """What the convolution saw beyond the picture on each side of an axis: the margin and its own
        padding."""
        return self.options["margin"][axis] + self.padding[axis]

    def _up_sampled(self, resized: Tensor) -> Tensor:
        small = resized[..., :: self.factor[0], :: self.factor[1]]
        if self.options["around"] != "zeros":
            q = [-(-self._around(i) // self.factor[i]) for i in (0, 1)]
            y = self.layer(F.pad(small, (q[1], q[1], q[0], q[0]), mode="replicate"))
        else:
            y = self.layer(small)
        # what a symbolic trace knows to be resized was so by a number: its blocks are whole
        return y if isinstance(y, fx.Proxy) else self._cut(y, small, resized)  # type: ignore[return-value]

    def _cut(self, y: Tensor, small: Tensor, resized: Tensor) -> Tensor:
        """``y`` without what the last blocks have beyond the picture, which the convolution saw as
        padding."""
        (h, w), (sh, sw) = resized.shape[-2:], self.factor
        if torch.compiler.is_compiling() or (h % sh == 0 and w % sw == 0):
            return y  # of a size that is still open no more is known than that the blocks are whole
        size = [
            (h, w)[i] + 2 * self._around(i) - self.dilation[i] * (self.kernel_size[i] - 1) for i in (0, 1)
        ]
        y = y[..., : size[0], : size[1]]
        if self.options["around"] != "zeros" or not self._has_kernel():
            return y  # the edge goes on as it was
        whole = small.repeat_interleave(sh, -2).repeat_interleave(sw, -1)
        beyond = F.pad(torch.zeros_like(resized), (0, -w % sw, 0, -h % sh), value=1.0)
        around = (self._around(0), self._around(1))
        excess = F.conv2d(whole * beyond, self._kernel(), None, 1, around, self.dilation, self.groups)
        return y - excess[..., : size[0], : size[1]]

    def _own_padded(self, x: Tensor) -> Tensor:
        h, w = self.padding
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, (w, w, h, h), mode=mode) if h or w else x

    def _kernel(self) -> Tensor:
        """The convolution that the layer's weight still is: exact as inherited, the nearest one after
        training."""
        if not self._has_kernel():
            raise ValueError(
                f"a converted resize-convolution got a picture of which it is not known to be resized by "
                f"{self.factor}; its "
                f"layer ({type(self.layer).__name__}) cannot stand in for the convolution it replaced: leave "
                "this module out of the conversion (exclude=...) or use layer='ipixeldcl'"
            )
        return split_taps(self.layer.weight, self.kernel_size, self.groups, self.inverse)  # type: ignore[arg-type]

    def _has_kernel(self) -> bool:
        """Whether the layer's weight tells what the convolution was: that of a PixelDCL, or one folded into a
        larger kernel, does not."""
        size = tuple(
            self.dilation[i] * (self.kernel_size[i] - 1)
            + len(taps(self.factor[i], is_bilinear(self.options)))
            for i in (0, 1)
        )
        return tuple(self.layer.weight.shape[2:]) == size  # type: ignore[index]

    def extra_repr(self) -> str:
        """The resize's factor and the channels it made."""
        return f"factor={self.factor}, resized channels={self.options['ranges']}"


IDIOM = Idiom(
    "resize_conv",
    "resize_conv",
    partial(match_mode, False),
    lambda site, module: (
        site.kind != "pixel_shuffle" and isinstance(module, nn.Conv2d) and not is_bilinear(site.options)
    ),
    stated,
    canonical,
    lambda site, module, layer: dressed(ResizeConv2d(layer, module, site.options), module),  # type: ignore[arg-type]
)
