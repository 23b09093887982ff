"""What takes the place of a convolution that reads a resized picture: it finds the small picture in the large
one and runs a transposed convolution on that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import mod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first part of ``x`` (..., *size)."""
    for i, length in enumerate(size, -len(size)):
        if capturing():  # the strides of a part would be compared with those of a whole
            x = x.index_select(i, torch.arange(length, device=x.device))
        else:
            x = x.narrow(i, 0, length)
    return x


class ResizeConv(ConvReplacement):
    """Takes the place of a convolution that reads a nearest-resized image, alone or concatenated with others.

    It receives what the convolution received, (N, C, ..). Where it is known in this very call
    (:func:`pixelize.rewrites.watching.watch.claim_of`) that a resize by ``factor`` made the channels that it
    is there for, it picks the small image out of them, which the resize had only repeated, and runs ``layer``
    on that; channels that were not resized go through ``skip``, an ordinary convolution with the remaining
    weights. In every other call it is the convolution that it replaced, and once the layer was trained the
    layer all the same wherever the picture is a resized one (:meth:`_extended`).

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
        n = len(self.factor)
        if isinstance(input, Tensor) and input.dim() == n + 1:  # a single picture
            return self.forward(input[None], claim)[0]
        known = self._is_resized(input, claim)
        resized = pick(input, self.options)
        if known and (not isinstance(input, Tensor) or self._is_whole(resized)):
            y = self._up_sampled(resized)
        else:
            y = self._extended(input, resized, known and not self._has_kernel())
        return y if self.skip is None else y + self.skip(channels_of(input, self.rest, n))

    def _is_whole(self, resized: Tensor) -> bool:
        """Whether a picture known to be resized ends with a block. Of a size that is still open no more is
        known than that it does."""
        return capturing() or not any(map(mod, resized.shape[-len(self.factor) :], self.factor))

    def _extended(self, input: Tensor, resized: Tensor, cut: bool) -> Tensor:
        """For any picture u: what the layer makes of the small one that is read off it, and what the
        convolution makes of what u and the small one's enlargement differ by: nothing where u was resized.

        What the last blocks have beyond u is dropped. ``cut``: that is all; the edge goes on as it was.
        """
        n, around = len(self.factor), self._around()
        seen = [resized.shape[i - n] + 2 * w for i, w in enumerate(around)]
        span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        enlarged = self._enlarged(self._completed(resized))
        y = cropped(self._up_sampled(enlarged), [a - b for a, b in zip(seen, span, strict=True)])
        if cut:
            return y
        x = self._own_padded(channels_of(input, self.options["ranges"], n))
        taken = cropped(self._padded_around(enlarged, around), seen)
        return y + self._convolve(x - taken, self._kernel(), None, 1, 0, self.dilation, self.groups)

    def _completed(self, resized: Tensor) -> Tensor:
        """A picture of whole blocks with the same small one."""
        return resized

    def _enlarged(self, whole: Tensor) -> Tensor:
        """The resized picture with the same small one as ``whole``."""
        y = self._small(whole)
        for i, s in enumerate(self.factor):
            y = y.repeat_interleave(s, i - len(self.factor))
        return y

    def _small(self, resized: Tensor) -> Tensor:
        return resized[last_axes([slice(None, None, s) for s in self.factor])]

    def _padded_around(self, x: Tensor, around: Sequence[int]) -> Tensor:
        mode = "constant" if self.options["around"] == "zeros" else self.options["around"]
        if mode == "reflect" and not is_linear(self.options):
            mode = "replicate"  # reflected by one pixel, once or twice, a block of several goes on as it is
        return F.pad(x, around_all(around), mode=mode) if any(around) else x

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
        """What the layer makes of a resized picture, its last blocks completed."""
        small = self._small(resized)
        if self.options["around"] == "zeros":
            return self.layer(small)  # type: ignore[no-any-return]
        q = [-(-a // s) for a, s in zip(self._around(), self.factor, strict=True)]
        return self.layer(F.pad(small, around_all(q), mode="replicate"))  # type: ignore[no-any-return]

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

    def _weight_before(self) -> tuple[Tensor | None, Sequence[int]]:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if not self._has_kernel():
            return None, shape
        weight = self._kernel()
        if self.skip is not None:
            both = ((self.options["ranges"], weight), (self.rest, self.skip.weight))
            parts: dict[int, Tensor] = {}
            for ranges, held in both:
                widths = [b - a for a, b in ranges]
                pieces = torch.split(held, widths, 1)  # type: ignore[arg-type]
                parts.update(zip((a for a, _ in ranges), pieces, strict=True))
            weight = torch.cat([parts[start] for start in sorted(parts)], 1)
        return weight, shape

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
