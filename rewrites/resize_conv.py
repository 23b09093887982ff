"""Nearest resize, then convolution: a transposed convolution in disguise.

    u = interpolate(x, scale_factor=s, mode="nearest")          y = conv_transpose2d(x, W', stride=s,
    padding=k-1-p) y = conv2d(cat([u, skip]), W, padding=p)             ==         + conv2d(skip, W_skip,
    padding=p)

Nearest resize is a transposed convolution with a kernel of s ones, so W' is the full convolution of those
ones with the flipped W: s+k-1 taps, of which each output phase uses about k/s along each axis. Exact, borders
included. Where the padding repeats the edge (``replicate``, or ``reflect`` by one pixel, which is the same
inside a block), x is padded by q = ceil(p/s) such pixels instead and the transposed convolution's padding is
k-1 + qs-p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pixelize.rewrites.flow import Blocks, Factor, Flow, read_by
from pixelize.rewrites.site import Geometry, Site, TransposedConv

Range = tuple[int, int]
NO_MIXING = "a 1x1 convolution of a resized picture"


def conv_refusal(module: nn.Conv2d) -> str | None:
    """Why a convolution that reads a resized image cannot become a transposed one, or None if it can."""
    if type(module).forward is not nn.Conv2d.forward:
        return f"{type(module).__name__} has a forward of its own, not nn.Conv2d's"
    if hasattr(module, "parametrizations") or "weight" not in module._parameters:
        return "its weight is computed (spectral_norm, weight_norm): remove the parametrization first"
    if tuple(module.stride) != (1, 1):
        return f"the convolution has stride {tuple(module.stride)}"
    return None


def own_padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """The padding in numbers; None for ``padding="same"`` with an even kernel, which pads one side more."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (total[0] // 2, total[1] // 2) if total[0] % 2 == total[1] % 2 == 0 else None
    return int(module.padding[0]), int(module.padding[1])


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Conv2d, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution module is, given all its calls in a graph; a reason if it cannot be one,
    None if it reads no resize.

    A 1x1 convolution mixes no pixels, makes no pattern and gains nothing: it counts as a bare resize.
    """
    seen = [flow.blocks.get(read_by(flow, call)) for call in calls]
    if not any(seen):
        return None
    first = seen[0]
    if first is None or any(
        b is None or (b.factors, b.margin) != (first.factors, first.margin) for b in seen
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
    kind = "resize" if tuple(module.kernel_size) == (1, 1) else "resize_conv"
    return Site(name, names, kind, type(module).__name__, found, options)  # type: ignore[arg-type]


def plan(module: nn.Conv2d, blocks: Blocks) -> dict[str, Any] | str:
    """What a replacement needs to know beside the module: the factor, the channels that have it, the padding
    before and its kind."""
    factor, ranges = common_factor(blocks.over(module.in_channels))
    padding = own_padding(module)
    if padding is None:
        return "padding='same' with an even kernel is not symmetric"
    mode, *margin = blocks.margin or ("zeros", 0, 0)
    if module.padding_mode != "zeros" and any(padding):
        inside = all(p == 0 or (p == 1 and s > 1) for p, s in zip(padding, factor, strict=True))
        if module.padding_mode not in ("replicate", "reflect") or (
            module.padding_mode == "reflect" and not inside
        ):
            return f"padding_mode is {module.padding_mode!r}: not what a block image repeats"
        own = module.padding_mode
    else:
        own = "zeros"  # type: ignore[assignment]
    if any(padding) and any(margin) and own != mode:
        return f"padded twice, with {mode} and by the convolution with {own}"
    return {
        "factor": list(factor),
        "ranges": [list(r) for r in ranges],
        "margin": list(margin),
        "around": own if any(padding) else mode,
    }


def geometry(module: nn.Conv2d, options: Mapping[str, Any]) -> Geometry | str:
    """The canonical transposed convolution of the resized channels, or the reason why there is none."""
    factor, margin = options["factor"], options["margin"]
    channels = sum(b - a for a, b in options["ranges"])
    padding = own_padding(module)
    assert padding is not None
    span = [module.dilation[i] * (module.kernel_size[i] - 1) for i in (0, 1)]
    around = [padding[i] + margin[i] for i in (0, 1)]
    if options["around"] != "zeros":
        inverse = [span[i] + -around[i] % factor[i] for i in (0, 1)]
    else:
        inverse = [span[i] - around[i] for i in (0, 1)]
    if min(inverse) < 0:
        return f"the convolution's padding {tuple(around)} is larger than its kernel"
    if any(module.dilation[i] > max(factor[i], 1) for i in (0, 1)):
        return f"dilation {tuple(module.dilation)}: the transposed convolution would cost more than it saves"
    if module.groups > 1 and channels != module.in_channels:
        return "a grouped convolution over a concatenation"
    return Geometry(
        channels,
        module.out_channels,
        (span[0] + factor[0], span[1] + factor[1]),
        (factor[0], factor[1]),
        (inverse[0], inverse[1]),
        (0, 0),
        module.groups,
        (1, 1),
        module.bias is not None,
    )


def common_factor(factors: Sequence[Factor]) -> tuple[Factor, list[Range]]:
    """The block size that a conversion uses, and the channel ranges that have it.

    The greatest common one of all resized channels; where they share none, the most frequent one.
    """
    resized = [f for f in factors if f != (1, 1)]
    shared = (gcd(*(f[0] for f in resized)), gcd(*(f[1] for f in resized)))
    if shared == (1, 1):
        shared = max(set(resized), key=resized.count)
    taken = [i for i, f in enumerate(factors) if f[0] % shared[0] == 0 and f[1] % shared[1] == 0]
    ranges: list[Range] = []
    for i in taken:
        if ranges and ranges[-1][1] == i:
            ranges[-1] = (ranges[-1][0], i + 1)
        else:
            ranges.append((i, i + 1))
    return shared, ranges


def canonical(site: Site, module: nn.Conv2d) -> TransposedConv:
    """The transposed convolution that the resize and its share of the convolution are together."""
    weight = _take(module.weight.detach(), site.options["ranges"])
    bias = None if module.bias is None else module.bias.detach().clone()
    full = merge_taps(weight.double(), module.dilation, site.options["factor"], module.groups)
    return TransposedConv(site.geometry, full.to(weight.dtype), bias)


def merge_taps(weight: Tensor, dilation: Sequence[int], factor: Sequence[int], groups: int) -> Tensor:
    """Conv2d layout (C_out, C_in/groups, k, k) to ConvTranspose2d layout (C_in, C_out/groups, d(k-1)+s, ..).

    W'[T] = sum of W[t] over the taps t with 0 <= T - d(k-1-t) < s: the flipped, dilated kernel convolved with
    s ones.
    """
    c_out, c_in, kh, kw = weight.shape
    grouped = weight.reshape(groups, c_out // groups, c_in, kh, kw).transpose(1, 2)
    flipped = grouped.reshape(groups * c_in, c_out // groups, kh, kw).flip(-2, -1)
    ones = torch.ones(1, 1, factor[0], factor[1], dtype=weight.dtype, device=weight.device)
    # scattering each tap over s pixels is itself a transposed convolution, with stride d
    full = F.conv_transpose2d(flipped.reshape(-1, 1, kh, kw), ones, stride=tuple(dilation))
    return full.reshape(groups * c_in, c_out // groups, *full.shape[-2:])


def split_taps(
    weight: Tensor, kernel_size: Sequence[int], dilation: Sequence[int], groups: int, factor: Sequence[int]
) -> Tensor:
    """The convolution kernel nearest, in least squares, to what :func:`merge_taps` made of it: its left
    inverse."""
    axes = []
    for k, d, s in zip(kernel_size, dilation, factor, strict=True):
        matrix = torch.zeros(d * (k - 1) + s, k, dtype=torch.float64)
        for t in range(k):
            matrix[d * (k - 1 - t) : d * (k - 1 - t) + s, t] = 1
        axes.append(torch.linalg.pinv(matrix).to(weight.device, weight.dtype))
    flat = axes[0] @ weight @ axes[1].T
    c_in, c_out = weight.shape[:2]
    grouped = flat.reshape(groups, c_in // groups, c_out, *kernel_size).transpose(1, 2)
    return grouped.reshape(groups * c_out, c_in // groups, *kernel_size)


def _take(weight: Tensor, ranges: Sequence[Sequence[int]]) -> Tensor:
    """The input channels of a Conv2d weight that lie in ``ranges``."""
    if weight.shape[1] < ranges[-1][1]:  # a grouped convolution is taken whole
        return weight
    return torch.cat([weight[:, a:b] for a, b in ranges], 1)


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
    if len(ranges) == 1:
        a, b = ranges[0]
        return x[:, a:b]
    return torch.cat([x[:, a:b] for a, b in ranges], 1)


def is_block_image(x: Tensor, factor: Sequence[int]) -> bool:
    """Whether ``x`` (..., H, W) is constant over blocks of ``factor`` pixels counted from the top left
    corner."""
    h, w = x.shape[-2:]
    small = x[..., :: factor[0], :: factor[1]]
    whole = small.repeat_interleave(factor[0], -2).repeat_interleave(factor[1], -1)
    return bool(((whole[..., :h, :w] == x) | x.isnan()).all())


class ResizeConv2d(nn.Module):
    """Takes the place of a convolution that reads a nearest-resized image, alone or concatenated with others.

    It receives what the convolution received, (N, C, H, W), picks the small image out of it, which the resize
    had only repeated, and runs
    ``layer`` on that; channels that were not resized go through ``skip``, an ordinary convolution with the
    remaining weights. A picture whose last blocks are cut (a resize to an odd size), or that was not resized
    at all, gives what the convolution gave, as far as the layer's weight still is one.

    Shapes: input (N, C, H, W), output (N, C_out, H', W') as of the convolution.
    """

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
            rest = _take(module.weight.detach(), self.rest).clone()
            self.skip.weight = nn.Parameter(rest, requires_grad=module.weight.requires_grad)
        self.training = module.training
        self._looked_at: dict[tuple[int, int, bool], bool] = {}

    @property
    def weight(self) -> Tensor:
        """The layer's weight, for code that asks a convolution for its device or type."""
        return self.layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """What the convolution gave for ``input``, the small image's part of it made by the layer."""
        resized = pick(input, self.options)
        if self._is_resized(resized) and not self._reflects_a_cut(resized):
            y = self._up_sampled(resized)
        else:
            x = channels_of(input, self.options["ranges"])
            y = F.conv2d(self._own_padded(x), self._kernel(), self.bias, 1, 0, self.dilation, self.groups)
        return y if self.skip is None else y + self.skip(channels_of(input, self.rest))

    def _is_resized(self, x: Tensor) -> bool:
        """Whether ``x`` repeats its pixels, looked at once for each size and mode; a graph being captured
        takes it for granted."""
        if type(x) is not Tensor or x.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        case = (x.shape[-2], x.shape[-1], self.training)
        if case not in self._looked_at:
            self._looked_at[case] = is_block_image(x.detach(), self.factor)
        return self._looked_at[case]

    def _reflects_a_cut(self, x: Tensor) -> bool:
        """Whether the last block is cut and reflected: one pixel on lies another block."""
        if isinstance(x, fx.Proxy) or self.options["around"] != "reflect":
            return False
        return any(x.shape[-2 + i] % self.factor[i] and self._around(i) for i in (0, 1))

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
        # a symbolic trace knows no sizes and takes whole blocks for granted
        return y if isinstance(y, fx.Proxy) else self._cut(y, small, resized)  # type: ignore[return-value]

    def _cut(self, y: Tensor, small: Tensor, resized: Tensor) -> Tensor:
        """``y`` without what the last blocks have beyond the picture, which the convolution saw as
        padding."""
        (h, w), (sh, sw) = resized.shape[-2:], self.factor
        if h % sh == 0 and w % sw == 0:
            return y
        size = [
            (h, w)[i] + 2 * self._around(i) - self.dilation[i] * (self.kernel_size[i] - 1) for i in (0, 1)
        ]
        y = y[..., : size[0], : size[1]]
        if self.options["around"] != "zeros" or tuple(self.layer.weight.shape[2:]) != tuple(  # type: ignore[index]
            self.layer.kernel_size  # type: ignore[arg-type]
        ):
            return y  # the edge goes on as it was; of a PixelDCL no weight tells what the convolution was
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
        weight = self.layer.weight
        if tuple(weight.shape[2:]) != tuple(self.layer.kernel_size):  # type: ignore[arg-type, index]
            raise ValueError(
                f"a converted resize-convolution got a picture that was not resized by {self.factor}; its "
                f"layer ({type(self.layer).__name__}) cannot stand in for the convolution it replaced: leave "
                "this module out of the conversion (exclude=...) or use layer='ipixeldcl'"
            )
        return split_taps(weight, self.kernel_size, self.dilation, self.groups, self.factor)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The resize's factor and the channels it made."""
        return f"factor={self.factor}, resized channels={self.options['ranges']}"
