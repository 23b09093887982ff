"""What takes the place of a convolution that reads a resized picture: it finds the small picture in the large
one and runs a transposed convolution on that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.merged_taps import left_inverse, merge_taps, split_taps, take
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS, own_padding, plain_kind
from pixelize.rewrites.idioms.replacement import ConvReplacement, dressed
from pixelize.rewrites.idioms.resize import taps
from pixelize.rewrites.idioms.resize_conv import Range, canonical, is_linear, match_mode, stated
from pixelize.rewrites.state.capturing import capturing
from pixelize.rewrites.watching.claims import Claim, covers
from pixelize.rewrites.watching.watch import claim_of


def complement(ranges: Sequence[Sequence[int]], channels: int) -> list[Range]:
    """The ranges of ``channels`` channels that are not in ``ranges``."""
    edges = [0, *(e for r in ranges for e in r), channels]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def pick(x: Tensor, options: Mapping[str, Any]) -> Tensor:
    """The resized channels of a convolution's input (N, C, ..), without the margin that was padded around
    them."""
    margin = options["margin"]
    n = len(margin)
    x = channels_of(x, options["ranges"], n)
    return x[last_axes([slice(w, x.shape[i - n] - w) for i, w in enumerate(margin)])] if any(margin) else x


def channels_of(x: Tensor, ranges: Sequence[Sequence[int]], n: int) -> Tensor:
    """The channels of ``x`` (N, C, ..), of ``n`` axes, that lie in ``ranges``."""
    parts = [x.narrow(-1 - n, a, b - a) for a, b in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1 - n)


def last_axes(parts: Sequence[slice]) -> tuple[Any, ...]:
    """The index of these parts of the last axes."""
    return (..., *parts)


def along(axis: int, n: int, part: slice) -> tuple[Any, ...]:
    """The index of a part along one of the last ``n`` axes."""
    return (..., part, *(slice(None),) * (n - 1 - axis))


def pads_of(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Widths before and after along each axis in the order that ``F.pad`` takes: the last axis first."""
    return [width for pair in reversed(pairs) for width in pair]


def around_all(widths: Sequence[int]) -> list[int]:
    """What ``F.pad`` takes for these widths on both sides of each axis."""
    return pads_of([(w, w) for w in widths])


class ResizeConv(ConvReplacement):
    """Takes the place of a convolution that reads a nearest-resized image, alone or concatenated with others.

    It receives what the convolution received, (N, C, ..). Where it is known in this very call
    (:func:`pixelize.rewrites.watching.watch.claim_of`) that a resize by ``factor`` made the channels that it
    is there for, it picks the small image out of them, which the resize had only repeated, and runs ``layer``
    on that; channels that were not resized go through ``skip``, an ordinary convolution with the remaining
    weights. In every other call it is the convolution that it replaced, as far as the layer's weight still is
    one.

    Shapes: input (N, C, ..), output (N, C_out, ..) as of the convolution, of one axis, two or three.
    """

    takes_claims = True

    def __init__(self, layer: nn.Module, module: _ConvNd, options: Mapping[str, Any]) -> None:
        super().__init__()
        padding = own_padding(module)
        assert padding is not None
        self.layer = layer
        self.options = dict(options)
        self.factor = tuple(map(int, options["factor"]))
        self.rest = complement(options["ranges"], module.in_channels)
        self.in_channels, self.out_channels = module.in_channels, module.out_channels
        self.kernel_size, self.stride, self.dilation = module.kernel_size, module.stride, module.dilation
        self.groups, self.padding, self.padding_mode = module.groups, padding, module.padding_mode
        self.inverse = left_inverse(self.kernel_size, self.dilation, self.factor, is_linear(options))  # type: ignore[arg-type]
        self.skip: nn.Module | None = None
        if self.rest:
            self.skip = plain_kind(module)(
                sum(b - a for a, b in self.rest),
                module.out_channels,
                module.kernel_size,
                1,
                padding,
                module.dilation,
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
            x = self._own_padded(channels_of(input, self.options["ranges"], len(self.factor)))
            y = self._convolve(x, self._kernel(), self.bias, 1, 0, self.dilation, self.groups)
        return y if self.skip is None else y + self.skip(channels_of(input, self.rest, len(self.factor)))

    @property
    def _convolve(self) -> Callable[..., Tensor]:
        return (F.conv1d, F.conv2d, F.conv3d)[len(self.factor) - 1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes a state dict of the original convolution as well: its weight becomes the layer's and the
        skip's."""
        weight = state_dict.pop(prefix + "weight", None)
        if weight is not None:
            mine = take(weight, self.options["ranges"])
            state_dict[prefix + "layer.weight"] = merge_taps(
                mine, self.dilation, self.factor, self.groups, is_linear(self.options)
            )
            if self.skip is not None:
                state_dict[prefix + "skip.weight"] = take(weight, self.rest).clone()
        if prefix + "bias" in state_dict:
            state_dict[prefix + "layer.bias"] = state_dict.pop(prefix + "bias")
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def _is_resized(self, input: Tensor, claim: Claim | bool | None) -> bool:
        if claim is True:
            return True
        if isinstance(input, Tensor) and input.dim() != len(self.factor) + 2:
            return False
        width = tuple(self.options["margin"])
        margin = (self.options["around"], width) if any(width) else None
        known = claim_of(input) if claim is None else claim
        if not covers(known, self._mode, margin, self.factor, self.options["ranges"]):  # type: ignore[arg-type]
            return False
        return not isinstance(input, Tensor) or self._reaches(input)

    @property
    def _mode(self) -> str:
        """The resize's mode: nearest or linear."""
        return "linear" if is_linear(self.options) else "nearest"

    def _reaches(self, input: Tensor) -> bool:
        """Whether what lies beyond the border is what the layer takes it for: where the last block is cut and
        reflected, one pixel on lies another block."""
        if self.options["around"] != "reflect":
            return True
        margin, around, n = self.options["margin"], self._around(), len(self.factor)
        return all(
            (input.shape[i - n] - 2 * margin[i]) % s == 0 or around[i] == 0 for i, s in enumerate(self.factor)
        )

    def _around(self) -> list[int]:
        """What the convolution saw beyond the picture on each side of each axis: the margin and its own
        padding."""
        return [m + p for m, p in zip(self.options["margin"], self.padding, strict=True)]

    def _up_sampled(self, resized: Tensor) -> Tensor:
        small = resized[last_axes([slice(None, None, s) for s in self.factor])]
        if self.options["around"] != "zeros":
            q = [-(-a // s) for a, s in zip(self._around(), self.factor, strict=True)]
            y = self.layer(F.pad(small, around_all(q), mode="replicate"))
        else:
            y = self.layer(small)
        # what a symbolic trace knows to be resized was so by a number: its blocks are whole
        return y if isinstance(y, fx.Proxy) else self._cut(y, small, resized)  # type: ignore[return-value]

    def _cut(self, y: Tensor, small: Tensor, resized: Tensor) -> Tensor:
        """``y`` without what the last blocks have beyond the picture, which the convolution saw as
        padding."""
        n, around = len(self.factor), self._around()
        excess = [-length % s for length, s in zip(resized.shape[-n:], self.factor, strict=True)]
        if capturing() or not any(excess):
            return y  # of a size that is still open no more is known than that the blocks are whole
        own = [
            slice(resized.shape[i - n] + 2 * around[i] - self.dilation[i] * (self.kernel_size[i] - 1))
            for i in range(n)
        ]
        y = y[last_axes(own)]
        if self.options["around"] != "zeros" or not self._has_kernel():
            return y  # the edge goes on as it was
        whole = small
        for i, s in enumerate(self.factor):
            whole = whole.repeat_interleave(s, i - n)
        beyond = F.pad(torch.zeros_like(resized), pads_of([(0, e) for e in excess]), value=1.0)
        seen = self._convolve(whole * beyond, self._kernel(), None, 1, around, self.dilation, self.groups)
        return y - seen[last_axes(own)]

    def _own_padded(self, x: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, around_all(self.padding), mode=mode) if any(self.padding) else x

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
            d * (k - 1) + len(taps(s, is_linear(self.options)))
            for k, d, s in zip(self.kernel_size, self.dilation, self.factor, strict=True)
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
        site.kind != "pixel_shuffle" and isinstance(module, CONVOLUTIONS) and not is_linear(site.options)
    ),
    stated,
    canonical,
    lambda site, module, layer: dressed(ResizeConv(layer, module, site.options), module),  # type: ignore[arg-type]
)
