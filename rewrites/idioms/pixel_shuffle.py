"""Convolution, then a shuffle: a transposed convolution whose kernel holds an ordinary one for each phase.

Before::

    y = pixel_shuffle(conv2d(x, W, padding=p), r)

After::

    y = conv_transpose2d(x, W', stride=r, padding=r(k-1-p))

The convolution's module is replaced by one that returns ``pixel_unshuffle`` of the layer's output: the
shuffle that follows puts it right again, and elementwise functions between the two see what they saw. A
shuffle written as reshape, permute, reshape is one too, whatever the order of its channels, along one axis,
two or three, by the same factor or by one for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.graph.flow import Flow, uses
from pixelize.rewrites.graph.reshapes import shuffle_order, unshuffled
from pixelize.rewrites.graph.resize_factor import Factor, spread
from pixelize.rewrites.idioms.held_before import held_before
from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS, conv_refusal, own_padding
from pixelize.rewrites.idioms.replacement import ConvReplacement, dressed
from pixelize.rewrites.site import Geometry, Site, TransposedConv
from pixelize.rewrites.state.precision import float64

THROUGH = ("alias", "pointwise", "channelwise", "dropout")
"""What may stand between the convolution and the shuffle: it sees what it saw."""


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution is whose output is shuffled and goes nowhere else; a reason or None if it
    is none."""
    if not isinstance(module, CONVOLUTIONS):
        return None
    n = len(module.kernel_size)
    shuffles: set[tuple[Factor, tuple[int, ...] | None]] = set()
    others = set()
    for call in calls:
        for user, op in uses(flow, call, THROUGH):
            if op.kind == "shuffle" and n == 2:
                shuffles.add(((int(op.args["factor"]),) * 2, None))
                continue
            order = shuffle_order(call, user, n)
            if op.kind == "slice" and any(
                o.kind == "shuffle" or shuffle_order(user, u, n) for u, o in uses(flow, user, THROUGH)
            ):
                return "its output is shuffled in parts, each in another way"
            if order is None:
                others.add(op.name)
            else:
                shuffles.add(order)
    if not shuffles:
        return None
    refusal = several(shuffles, others) or conv_refusal(module)
    if refusal:
        return refusal
    factor, own_order = shuffles.pop()
    found = geometry(module, factor)
    if isinstance(found, str):
        return found
    if own_order is not None and module.groups > 1:
        return "a grouped convolution before a shuffle of its own order"
    same = len(set(factor)) == 1
    options = {
        "factor": factor[0] if same else list(factor),
        "order": None if own_order is None else list(own_order),
    }
    return Site(name, names, "pixel_shuffle", type(module).__name__, found, options)


def several(shuffles: Collection[object], others: set[str]) -> str | None:
    """Why an output that is shuffled in these ways, and read by ``others``, makes no site; None if it makes
    one."""
    if not others and len(shuffles) == 1:
        return None
    where = ", ".join(sorted(others)) or "different shuffles"
    return f"its output goes to {where} as well as to the shuffle"


def geometry(module: _ConvNd, factor: Factor) -> Geometry | str:
    """The canonical transposed convolution, or the reason why there is none."""
    padding = own_padding(module)
    if padding is None:
        return "padding='same' with an even kernel is not symmetric"
    if module.padding_mode != "zeros" and any(padding):
        return f"padding_mode is {module.padding_mode!r}: only zeros can be converted before a pixel shuffle"
    if any(d != 1 for d in module.dilation):
        return f"dilation {tuple(module.dilation)} before a pixel shuffle"
    phases = prod(factor)
    if phases == 1 or module.out_channels % phases or (module.out_channels // phases) % module.groups:
        groups = f"{module.out_channels} channels in {module.groups} groups"
        return f"{groups} do not make whole groups of {phases} phases"
    inverse = [k - 1 - p for k, p in zip(module.kernel_size, padding, strict=True)]
    if min(inverse) < 0:
        return f"the convolution's padding {padding} is larger than its kernel"
    return Geometry(
        module.in_channels,
        module.out_channels // phases,
        tuple(r * k for r, k in zip(factor, module.kernel_size, strict=True)),
        factor,
        tuple(r * q for r, q in zip(factor, inverse, strict=True)),
        groups=module.groups,
        bias=module.bias is not None,
    )


def factor_of(options: Mapping[str, Any], n: int) -> Factor:
    """The shuffle's factor along each of ``n`` axes."""
    factor = options["factor"]
    return spread(tuple(factor) if isinstance(factor, list) else (factor,), n)


def are_options(options: Mapping[str, Any], module: _ConvNd) -> bool:
    """Whether ``options`` are some that :func:`match` makes for ``module``."""
    if options.keys() != {"factor", "order"} or not isinstance(options["factor"], int | list):
        return False
    factor, n = factor_of(options, len(module.kernel_size)), len(module.kernel_size)
    if len(factor) != n or any(type(r) is not int or r < 1 for r in factor):
        return False
    order = options["order"]
    return order is None or sorted(order) == list(range(module.out_channels))


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The transposed convolution that convolution and shuffle are together: W'[r(k-1-t) + a] = W[t] of phase
    a.

    The bias is the mean over the phases of each channel; what is left of it stays in :class:`ShuffleConv`.
    """
    assert isinstance(module, _ConvNd)
    weight = merge_phases(module.weight.detach(), site.options, module.groups)
    n = len(module.kernel_size)
    bias = None if module.bias is None else split_bias(module.bias.detach(), site.options, n)[0]
    return TransposedConv(site.geometry, weight, bias)


def merge_phases(weight: Tensor, options: Mapping[str, Any], g: int) -> Tensor:
    """A convolution's layout (C r^n, C_in/g, k, ..) to a transposed one's (C_in, C/g, r k, ..)."""
    n = weight.dim() - 2
    factor, weight = factor_of(options, n), _ordered(weight, options["order"])
    c_out, c_in, *kernel = weight.shape
    phases = prod(factor)
    taps = weight.flip(*range(-n, 0)).reshape(g, c_out // (g * phases), *factor, c_in, *kernel)
    # two axes: (g, C, a, b, I, y, x) to (g, I, C, y, a, x, b)
    full = taps.permute(0, n + 2, 1, *(axis for i in range(n) for axis in (n + 3 + i, 2 + i)))
    size = [r * k for r, k in zip(factor, kernel, strict=True)]
    return full.reshape(g * c_in, c_out // (g * phases), *size).contiguous()


def split_bias(bias: Tensor, options: Mapping[str, Any], n: int) -> tuple[Tensor, Tensor]:
    """A convolution's bias as the mean over the phases of each channel, (C,), and the rest, (C r^n,)."""
    phases = _ordered(bias, options["order"]).reshape(-1, prod(factor_of(options, n)))
    mean = float64(phases).mean(1).to(bias)
    return mean, (phases - mean[:, None]).reshape(-1)


def _ordered(values: Tensor, order: list[int] | None) -> Tensor:
    """Output channels as ``F.pixel_shuffle`` would have them."""
    return values if order is None else values[list(order)]


class ShuffleConv(ConvReplacement):
    """Takes the place of a convolution whose output is shuffled: pixel_unshuffle(layer(x)) and what the bias
    differs by from phase to phase.

    Shapes: input (N, C_in, ..), output (N, C_out, ..) as of the convolution.
    """

    kept: tuple[str, ...] = ("in_channels", "out_channels", "kernel_size", "stride", "groups")
    groups: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]

    def __init__(self, layer: nn.Module, module: _ConvNd | nn.Linear, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.factor = factor_of(options, len(layer.stride))  # type: ignore[arg-type]
        self.options = dict(options)
        order = options["order"]
        # where each channel of the convolution's output lies among the unshuffled ones
        self.places: list[int] | None = (
            None if order is None else sorted(range(len(order)), key=order.__getitem__)
        )
        for name in self.kept:
            setattr(self, name, getattr(module, name))
        self.phase_bias: nn.Parameter | None = None
        if module.bias is not None:
            rest = split_bias(module.bias.detach(), options, len(self.factor))[1]
            self.phase_bias = nn.Parameter(rest, requires_grad=module.bias.requires_grad)
        self.training = module.training

    @property
    def bias(self) -> Tensor | None:
        """The convolution's bias."""
        if self.phase_bias is None:
            return None
        mean: Tensor = self.layer.bias  # type: ignore[assignment]
        bias = mean.repeat_interleave(prod(self.factor)) + self.phase_bias
        return held_before(self, "bias", bias if self.places is None else bias[self.places], bias.shape)

    def _weight_before(self) -> tuple[Tensor | None, Sequence[int]]:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return self._split(self.kernel_size, self.out_channels), shape

    def _split(self, kernel: Sequence[int], channels: int) -> Tensor | None:
        """The convolution's weight of which :func:`merge_phases` made the layer's; None if the layer has
        another."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        if tuple(weight.shape[2:]) != tuple(r * k for r, k in zip(self.factor, kernel, strict=True)):
            return None
        n, g = len(kernel), self.groups
        both = [size for pair in zip(kernel, self.factor, strict=True) for size in pair]
        taps = weight.reshape(g, weight.shape[0] // g, weight.shape[1], *both)
        # (g, I, C, y, a, x, b) to (g, C, a, b, I, y, x)
        taps = taps.permute(0, 2, *range(4, 4 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))
        full = taps.reshape(channels, -1, *kernel).flip(*range(-n, 0))
        return full if self.places is None else full[self.places]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes a state dict of the original convolution as well."""
        if prefix + "weight" in state_dict:
            weight = state_dict.pop(prefix + "weight")
            state_dict[prefix + "layer.weight"] = merge_phases(weight, self.options, self.groups)
        if prefix + "bias" in state_dict:
            mean, rest = split_bias(state_dict.pop(prefix + "bias"), self.options, len(self.factor))
            state_dict[prefix + "layer.bias"], state_dict[prefix + "phase_bias"] = mean, rest
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """What the convolution gave for ``input``."""
        y = unshuffled(self.layer(input), self.factor)
        n = len(self.factor)
        if self.phase_bias is not None:
            y = y + self.phase_bias.to(y.dtype).reshape(-1, *(1,) * n)
        place: tuple[Any, ...] = (..., self.places, *(slice(None),) * n)
        return y if self.places is None else y[place]

    def extra_repr(self) -> str:
        """The shuffle's factor."""
        return f"factor={self.factor}"


IDIOM = Idiom(
    "pixel_shuffle",
    "pixel_shuffle",
    match,
    lambda site, module: site.kind == "pixel_shuffle" and isinstance(module, CONVOLUTIONS),
    lambda site, options, module: (
        geometry(module, factor_of(options, len(module.kernel_size)))  # type: ignore[arg-type]
        if are_options(options, module)  # type: ignore[arg-type]
        else None
    ),
    canonical,
    lambda site, module, layer: dressed(ShuffleConv(layer, module, site.options), module),  # type: ignore[arg-type]
)
