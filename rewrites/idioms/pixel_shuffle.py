"""Convolution, then PixelShuffle: a transposed convolution whose kernel holds r*r ordinary ones.

Before::

    y = pixel_shuffle(conv2d(x, W, padding=p), r)

After::

    y = conv_transpose2d(x, W', stride=r, padding=r(k-1-p))

The convolution's module is replaced by one that returns ``pixel_unshuffle`` of the layer's output: the
shuffle that follows puts it right again, and elementwise functions between the two see what they saw. A
shuffle written as reshape, permute, reshape is one too, whatever the order of its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.graph.flow import Flow, uses
from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.replacement import ConvReplacement, dressed
from pixelize.rewrites.idioms.resize_conv import conv_refusal, own_padding
from pixelize.rewrites.site import Geometry, Site, TransposedConv
from pixelize.rewrites.state.precision import float64

THROUGH = ("alias", "pointwise", "channelwise", "dropout")
"""What may stand between the convolution and the shuffle: it sees what it saw."""
_MOVES = ("view", "reshape", "permute", "transpose", "_unsafe_view", "unflatten", "clone", "contiguous")


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution is whose output is shuffled and goes nowhere else; a reason or None if it
    is none."""
    if not isinstance(module, nn.Conv2d):
        return None
    shuffles: set[tuple[int, tuple[int, ...] | None]] = set()
    others = set()
    for call in calls:
        for user, op in uses(flow, call, THROUGH):
            if op.kind == "shuffle":
                shuffles.add((int(op.args["factor"]), None))
                continue
            order = shuffle_order(call, user)
            if order is None:
                others.add(op.name)
            else:
                shuffles.add(order)
    if not shuffles:
        return None
    if others or len(shuffles) > 1:
        where = ", ".join(sorted(others)) or "different shuffles"
        return f"its output goes to {where} as well as to the shuffle"
    refusal = conv_refusal(module)
    if refusal:
        return refusal
    factor, order = shuffles.pop()  # type: ignore[assignment]
    found = geometry(module, factor)
    if isinstance(found, str):
        return found
    if order is not None and module.groups > 1:
        return "a grouped convolution before a shuffle of its own order"
    options = {"factor": factor, "order": None if order is None else list(order)}
    return Site(name, names, "pixel_shuffle", type(module).__name__, found, options)


def shuffle_order(value: fx.Node, user: fx.Node) -> tuple[int, tuple[int, ...]] | None:
    """The factor r of a shuffle that ``user`` begins, and which channel of ``value`` each (c, a, b) of the
    output takes.

    Follows reshapes and permutations from ``user`` on, doing them to numbered elements; None if they are no
    shuffle.
    """
    shape = shape_of(value)
    if shape is None or len(shape) != 4:
        return None
    n, channels, h, w = shape
    x = torch.arange(n * channels * h * w).reshape(shape)
    source: fx.Node | None = None
    node = user
    while True:
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            or node.target.overloadpacket.__name__ not in _MOVES
        ):
            return None
        if len(node.all_input_nodes) != 1 or (source is not None and node.all_input_nodes[0] is not source):
            return None
        try:
            x = node.target(x, *node.args[1:], **node.kwargs)
        except Exception:  # sizes that the capture does not hold as numbers
            return None
        if x.dim() == 4 and x.shape[0] == n and x.shape[2] % h == 0 and x.shape[2] > h:
            break
        if len(node.users) != 1:
            return None
        source, node = node, next(iter(node.users))
    r = x.shape[2] // h
    if x.shape != (n, channels // (r * r), h * r, w * r):
        return None
    order = (x[0, :, :r, :r] // (h * w)).reshape(-1)
    expected = F.pixel_shuffle(torch.arange(n * channels * h * w).reshape(shape)[:, order], r)
    return (r, tuple(order.tolist())) if torch.equal(expected, x) else None


def geometry(module: nn.Conv2d, r: int) -> Geometry | str:
    """The canonical transposed convolution, or the reason why there is none."""
    padding = own_padding(module)
    if padding is None:
        return "padding='same' with an even kernel is not symmetric"
    if module.padding_mode != "zeros" and any(padding):
        return f"padding_mode is {module.padding_mode!r}: only zeros can be converted before a pixel shuffle"
    if tuple(module.dilation) != (1, 1):
        return f"dilation {tuple(module.dilation)} before a pixel shuffle"
    if r == 1 or module.out_channels % (r * r) or (module.out_channels // (r * r)) % module.groups:
        groups = f"{module.out_channels} channels in {module.groups} groups"
        return f"{groups} do not make whole groups of {r * r} phases"
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


def are_options(options: Mapping[str, Any], module: nn.Conv2d) -> bool:
    """Whether ``options`` are some that :func:`match` makes for ``module``."""
    if options.keys() != {"factor", "order"} or type(options["factor"]) is not int or options["factor"] < 2:
        return False
    order = options["order"]
    return order is None or sorted(order) == list(range(module.out_channels))


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The transposed convolution that convolution and shuffle are together: W'[r(k-1-t) + a] = W[t] of phase
    a.

    The bias is the mean over the phases of each channel; what is left of it stays in :class:`ShuffleConv2d`.
    """
    assert isinstance(module, _ConvNd)
    weight = merge_phases(module.weight.detach(), site.options, module.groups)
    bias = None if module.bias is None else _split_bias(module.bias.detach(), site.options)[0]
    return TransposedConv(site.geometry, weight, bias)


def merge_phases(weight: Tensor, options: Mapping[str, Any], g: int) -> Tensor:
    """Conv2d layout (C r^2, C_in/g, k, k) to ConvTranspose2d layout (C_in, C/g, r k, r k)."""
    r, weight = options["factor"], _ordered(weight, options["order"])
    c_out, c_in, kh, kw = weight.shape
    taps = weight.flip(-2, -1).reshape(g, c_out // (g * r * r), r, r, c_in, kh, kw)
    # (g, C, a, b, I, y, x) to (g, I, C, y, a, x, b)
    full = taps.permute(0, 4, 1, 5, 2, 6, 3).reshape(g * c_in, c_out // (g * r * r), kh * r, kw * r)
    return full.contiguous()


def _split_bias(bias: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """A convolution's bias as the mean over the phases of each channel, (C,), and the rest, (C r^2,)."""
    phases = _ordered(bias, options["order"]).reshape(-1, options["factor"] ** 2)
    mean = float64(phases).mean(1).to(bias)
    return mean, (phases - mean[:, None]).reshape(-1)


def _ordered(values: Tensor, order: list[int] | None) -> Tensor:
    """Output channels as ``F.pixel_shuffle`` would have them."""
    return values if order is None else values[list(order)]


def unshuffled(x: Tensor, r: int) -> Tensor:
    """``F.pixel_unshuffle``, of an empty batch too."""
    if isinstance(x, fx.Proxy) or x.shape[0] != 0:
        return F.pixel_unshuffle(x, r)
    *batch, c, h, w = x.shape
    return x.new_empty(*batch, c * r * r, h // r, w // r) + 0 * x.sum()


class ShuffleConv2d(ConvReplacement):
    """Takes the place of a convolution whose output is shuffled: pixel_unshuffle(layer(x)) and what the bias
    differs by from phase to phase.

    Shapes: input (N, C_in, H, W), output (N, C_out r^2, H', W') as of the convolution.
    """

    def __init__(self, layer: nn.Module, module: nn.Conv2d, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.factor = int(options["factor"])
        self.options = dict(options)
        order = options["order"]
        # where each channel of the convolution's output lies among the unshuffled ones
        self.places: list[int] | None = (
            None if order is None else sorted(range(len(order)), key=order.__getitem__)
        )
        self.in_channels, self.out_channels = module.in_channels, module.out_channels
        self.kernel_size, self.stride, self.groups = module.kernel_size, module.stride, module.groups
        self.phase_bias: nn.Parameter | None = None
        if module.bias is not None:
            rest = _split_bias(module.bias.detach(), options)[1]
            self.phase_bias = nn.Parameter(rest, requires_grad=module.bias.requires_grad)
        self.training = module.training

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes a state dict of the original convolution as well."""
        if prefix + "weight" in state_dict:
            weight = state_dict.pop(prefix + "weight")
            state_dict[prefix + "layer.weight"] = merge_phases(weight, self.options, self.groups)
        if prefix + "bias" in state_dict:
            mean, rest = _split_bias(state_dict.pop(prefix + "bias"), self.options)
            state_dict[prefix + "layer.bias"], state_dict[prefix + "phase_bias"] = mean, rest
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """What the convolution gave for ``input``."""
        y = unshuffled(self.layer(input), self.factor)
        y = y if self.phase_bias is None else y + self.phase_bias.to(y.dtype)[:, None, None]
        return y if self.places is None else y[..., self.places, :, :]

    def extra_repr(self) -> str:
        """The shuffle's factor."""
        return f"factor={self.factor}"


IDIOM = Idiom(
    "pixel_shuffle",
    "pixel_shuffle",
    match,
    lambda site, module: site.kind == "pixel_shuffle" and isinstance(module, nn.Conv2d),
    lambda site, options, module: (
        geometry(module, options["factor"]) if are_options(options, module) else None  # type: ignore[arg-type]
    ),
    canonical,
    lambda site, module, layer: dressed(ShuffleConv2d(layer, module, site.options), module),  # type: ignore[arg-type]
)
