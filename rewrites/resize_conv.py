"""Nearest resize, then convolution: a transposed convolution in disguise.

    u = interpolate(x, scale_factor=s, mode="nearest")          y = conv_transpose2d(x, W', stride=s, padding=k-1-p)
    y = conv2d(cat([u, skip]), W, padding=p)             ==         + conv2d(skip, W_skip, padding=p)

Nearest resize is a transposed convolution with a kernel of s ones, so W' is the full convolution of those ones with the flipped W: s+k-1
taps, of which each output phase uses about k/s along each axis. Exact, borders included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from pixelize.rewrites.flow import Factor, Flow
from pixelize.rewrites.site import Geometry, Site, TransposedConv
from torch import Tensor, fx, nn

Range = tuple[int, int]


def conv_refusal(module: nn.Conv2d) -> str | None:
    """Why a convolution that reads a resized image cannot become a transposed one, or None if it can."""
    if type(module).forward is not nn.Conv2d.forward:
        return f"{type(module).__name__} has a forward of its own, not nn.Conv2d's"
    if (
        hasattr(module, "parametrizations")
        or (module._forward_pre_hooks
        and "weight" not in module._parameters)
    ):
        return "its weight is computed (spectral_norm, weight_norm): remove the parametrization first"
    if tuple(module.stride) != (1, 1):
        return f"the convolution has stride {tuple(module.stride)}"
    if module.padding_mode != "zeros":
        return f"padding_mode is {module.padding_mode!r}: only zeros can be converted"
    return None


def symmetric_padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """The padding in numbers; None for ``padding="same"`` with an even kernel, which pads one side more."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (total[0] // 2, total[1] // 2) if total[0] % 2 == total[1] % 2 == 0 else None
    return int(module.padding[0]), int(module.padding[1])


def geometry(module: nn.Conv2d, factor: Factor, channels: int) -> Geometry | str:
    """The canonical transposed convolution of the resized channels, or the reason why there is none."""
    padding = symmetric_padding(module)
    if padding is None:
        return "padding='same' with an even kernel is not symmetric"
    kernel = [module.dilation[i] * (module.kernel_size[i] - 1) + factor[i] for i in (0, 1)]
    inverse = [module.dilation[i] * (module.kernel_size[i] - 1) - padding[i] for i in (0, 1)]
    if min(inverse) < 0:
        return f"the convolution's padding {padding} is larger than its kernel"
    if any(module.dilation[i] > max(factor[i], 1) for i in (0, 1)):
        return f"dilation {tuple(module.dilation)}: the transposed convolution would cost more than the convolution"
    if module.groups > 1 and channels != module.in_channels:
        return "a grouped convolution over a concatenation"
    return Geometry(
        channels,
        module.out_channels,
        (kernel[0], kernel[1]),
        factor,
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


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Conv2d, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution module is, given all its calls in a graph; a reason if it cannot be one, None if it reads no resize."""
    seen = []
    for call in calls:
        blocks = flow.blocks.get(flow.ops[call].args["input"])
        seen.append(common_factor(blocks.over(module.in_channels)) if blocks is not None else None)
    if not any(seen):
        return None
    if any(s != seen[0] for s in seen) or seen[0] is None:
        return "called in several places, not always after the same resize"
    refusal = conv_refusal(module)
    if refusal:
        return refusal
    factor, ranges = seen[0]
    found = geometry(module, factor, sum(b - a for a, b in ranges))
    if isinstance(found, str):
        return found
    options = {"factor": list(factor), "ranges": [list(r) for r in ranges]}
    return Site(name, names, "resize_conv", type(module).__name__, found, options)


def canonical(site: Site, module: nn.Conv2d) -> TransposedConv:
    """The transposed convolution that the resize and its share of the convolution are together."""
    weight = _take(module.weight.detach(), site.options["ranges"])
    bias = None if module.bias is None else module.bias.detach().clone()
    full = merge_taps(weight.double(), tuple(module.dilation), tuple(site.options["factor"]), module.groups)
    return TransposedConv(site.geometry, full.to(weight.dtype), bias)


def merge_taps(weight: Tensor, dilation: tuple[int, ...], factor: tuple[int, ...], groups: int) -> Tensor:
    """Conv2d layout (C_out, C_in/groups, k, k) to ConvTranspose2d layout (C_in, C_out/groups, d(k-1)+s, ..).

    W'[T] = sum of W[t] over the taps t with 0 <= T - d(k-1-t) < s: the flipped, dilated kernel convolved with s ones.
    """
    c_out, c_in, kh, kw = weight.shape
    grouped = weight.reshape(groups, c_out // groups, c_in, kh, kw).transpose(1, 2)
    flipped = grouped.reshape(groups * c_in, c_out // groups, kh, kw).flip(-2, -1)
    ones = torch.ones(1, 1, factor[0], factor[1], dtype=weight.dtype, device=weight.device)
    # scattering each tap over s pixels is itself a transposed convolution with stride d
    flat = flipped.reshape(-1, 1, kh, kw)
    full = F.conv_transpose2d(flat, ones, stride=dilation)
    return full.reshape(groups * c_in, c_out // groups, *full.shape[-2:])


def _take(weight: Tensor, ranges: Sequence[Sequence[int]]) -> Tensor:
    """The input channels of a Conv2d weight that lie in ``ranges``."""
    if weight.shape[1] < ranges[-1][1]:  # a grouped convolution is taken whole
        return weight
    return torch.cat([weight[:, a:b] for a, b in ranges], 1)


def complement(ranges: Sequence[Sequence[int]], channels: int) -> list[Range]:
    """The ranges of ``channels`` channels that are not in ``ranges``."""
    edges = [0, *(e for r in ranges for e in r), channels]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


class ResizeConv2d(nn.Module):
    """Takes the place of a convolution that reads a nearest-resized image, alone or concatenated with others.

    It receives what the convolution received, (N, C, s_h h, s_w w), picks the small image out of it, which the resize had
    only repeated, and runs ``layer`` on that; channels that were not resized go through ``skip``, an ordinary
    convolution with the remaining weights. A picture whose last block is cut (a resize to an odd size) gives what the convolution gave
    there too, as far as the layer's weight still is one.

    Shapes: input (N, C, H, W), output (N, C_out, H', W') as of the convolution.
    """

    def __init__(self, layer: nn.Module, module: nn.Conv2d, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.factor = tuple(options["factor"])
        self.ranges = [tuple(r) for r in options["ranges"]]
        self.rest = complement(self.ranges, module.in_channels)
        self.in_channels, self.out_channels = module.in_channels, module.out_channels
        self.kernel_size, self.dilation, self.groups = module.kernel_size, module.dilation, module.groups
        self.stride, self.padding_mode = module.stride, module.padding_mode
        self.padding = symmetric_padding(module)
        self.skip: nn.Conv2d | None = None
        if self.rest:
            self.skip = nn.Conv2d(
                sum(b - a for a, b in self.rest), module.out_channels, module.kernel_size, 1, self.padding,
                module.dilation, bias=False, device="meta", dtype=module.weight.dtype,
            )  # fmt: skip
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
        resized = pick(input, self.ranges)
        if self._is_resized(resized):
            small = resized[..., :: self.factor[0], :: self.factor[1]]
            y = self._cut(self.layer(small), small, resized)
        else:
            y = F.conv2d(resized, self._kernel(), self.bias, 1, self.padding, self.dilation, self.groups)
        return y if self.skip is None else y + self.skip(pick(input, self.rest))

    def _is_resized(self, x: Tensor) -> bool:
        """Whether ``x`` repeats its pixels, looked at once for each size and mode; a graph that is being captured takes it for granted."""
        if type(x) is not Tensor or x.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        case = (x.shape[-2], x.shape[-1], self.training)
        if case not in self._looked_at:
            self._looked_at[case] = is_block_image(x.detach(), self.factor)
        return self._looked_at[case]

    def _kernel(self) -> Tensor:
        """The convolution that the layer's weight still is: exact as inherited, the nearest one after training."""
        weight = self.layer.weight
        if tuple(weight.shape[2:]) != tuple(self.layer.kernel_size):
            raise ValueError(
                f"a converted resize-convolution got a picture that was not resized by {self.factor}; its layer "
                f"({type(self.layer).__name__}) cannot stand in for the convolution it replaced: leave this module out of the "
                "conversion (exclude=...) or use layer='ipixeldcl'"
            )
        return split_taps(weight, self.kernel_size, self.dilation, self.groups, self.factor)

    def _cut(self, y: Tensor, small: Tensor, resized: Tensor) -> Tensor:
        """The output for a picture whose last blocks are cut: the convolution saw zeros where whole blocks would go on."""
        if isinstance(y, fx.Proxy):  # symbolic tracing: sizes are unknown, whole blocks are taken for granted
            return y
        h, w = resized.shape[-2:]
        if h % self.factor[0] == 0 and w % self.factor[1] == 0:
            return y
        out = [(h, w)[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel_size[i] - 1) for i in (0, 1)]
        y = y[..., : out[0], : out[1]]
        if tuple(self.layer.weight.shape[2:]) != tuple(self.layer.kernel_size):
            return y  # PixelDCL: no weight tells what the convolution was, the border stays the layer's own
        whole = small.repeat_interleave(self.factor[0], -2).repeat_interleave(self.factor[1], -1)
        beyond = F.pad(torch.zeros_like(resized), (0, -w % self.factor[1], 0, -h % self.factor[0]), value=1.0)
        excess = F.conv2d(whole * beyond, self._kernel(), None, 1, self.padding, self.dilation, self.groups)
        return y - excess[..., : out[0], : out[1]]

    def extra_repr(self) -> str:
        """The resize's factor and the channels it made."""
        return f"factor={self.factor}, resized channels={self.ranges}"


def is_block_image(x: Tensor, factor: Sequence[int]) -> bool:
    """Whether ``x`` (..., H, W) is constant over blocks of ``factor`` pixels counted from the top left corner."""
    h, w = x.shape[-2:]
    small = x[..., :: factor[0], :: factor[1]]
    whole = small.repeat_interleave(factor[0], -2).repeat_interleave(factor[1], -1)
    return bool(((whole[..., :h, :w] == x) | x.isnan()).all())


def split_taps(
    weight: Tensor,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    factor: tuple[int, ...],
) -> Tensor:
    """The convolution kernel nearest, in least squares, to what :func:`merge_taps` made of it: its left inverse."""
    kh, kw = kernel_size
    axes = []
    for k, d, s in zip((kh, kw), dilation, factor, strict=True):
        matrix = torch.zeros(d * (k - 1) + s, k, dtype=torch.float64)
        for t in range(k):
            matrix[d * (k - 1 - t) : d * (k - 1 - t) + s, t] = 1
        axes.append(torch.linalg.pinv(matrix).to(weight.device, weight.dtype))
    flat = axes[0] @ weight @ axes[1].T
    c_in, c_out = weight.shape[:2]
    grouped = flat.reshape(groups, c_in // groups, c_out, kh, kw).transpose(1, 2)
    return grouped.reshape(groups * c_out, c_in // groups, kh, kw)


def pick(x: Tensor, ranges: Sequence[Sequence[int]]) -> Tensor:
    """The channels of ``x`` (N, C, H, W) that lie in ``ranges``."""
    if len(ranges) == 1:
        a, b = ranges[0]
        return x[:, a:b]
    return torch.cat([x[:, a:b] for a, b in ranges], 1)
