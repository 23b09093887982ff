"""A linear layer over the channels of a grid, and a shuffle of its output into pixels: a transposed
convolution whose kernel is as large as its stride.

Before::

    y = linear(x, W)                                   # (N, h, w, C_in) to (N, h, w, C p q)
    y = y.view(N, h, w, C, p, q).permute(0, 3, 1, 4, 2, 5).reshape(N, C, h p, w q)

After::

    y = conv_transpose2d(x.permute(0, 3, 1, 2), W', stride=(p, q))

The grid must be the input's own, along one axis, two or three; the output's channels may come last as well.
Where the input is a row of tokens the layer never learns their grid: it is listed with the reason. The linear
layer's module is replaced, as a convolution's is before a shuffle
(:mod:`pixelize.rewrites.idioms.pixel_shuffle`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune

from pixelize.rewrites.graph.flow import Flow, uses
from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.graph.reshapes import shuffle_order, unfolds
from pixelize.rewrites.graph.resize_factor import Factor
from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.pixel_shuffle import ShuffleConv, merge_phases, several, split_bias
from pixelize.rewrites.idioms.plain_conv import INSTANCE_FORWARD, PRUNED
from pixelize.rewrites.idioms.replacement import dressed
from pixelize.rewrites.site import Geometry, Site, TransposedConv

THROUGH = ("alias", "pointwise", "dropout")
"""What may stand between the linear layer and the shuffle: it sees what it saw."""
TOKENS = "its output is unfolded into pixels, and its input, tokens in a row, does not tell their grid"


def match(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a linear layer is whose output is shuffled and goes nowhere else; a reason or None if it
    is none."""
    if not isinstance(module, nn.Linear):
        return None
    shuffles: set[tuple[Factor, tuple[int, ...]]] = set()
    others, tokens = set(), False
    for call in calls:
        n = len(shape_of(call) or ()) - 2
        for user, op in uses(flow, call, THROUGH):
            order = shuffle_order(call, user, n, last=True) if 1 <= n <= 3 else None
            if order is not None and prod(order[0]) > 1:
                shuffles.add(order)
                continue
            others.add(op.name)
            tokens = tokens or unfolds(call, user)
    if not shuffles:
        return TOKENS if tokens else None
    reason = several(shuffles, others) or refusal(module)
    if reason:
        return reason
    factor, channels = shuffles.pop()
    options = {"factor": list(factor), "order": list(channels)}
    return Site(name, names, "pixel_shuffle", type(module).__name__, geometry(module, factor), options)


def refusal(module: nn.Linear) -> str | None:
    """Why a linear layer does something else than its attributes tell, or None if it does not."""
    if "forward" in module.__dict__:
        return INSTANCE_FORWARD
    if type(module).forward is not nn.Linear.forward:
        return f"{type(module).__name__} has a forward of its own, not nn.Linear's"
    if prune.is_pruned(module):
        return PRUNED
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is computed from others: make that permanent first, then convert"
    taken = {"layer", "factor", "places", "phase_bias", "options"}
    if clash := taken & {*module.__dict__, *module._modules, *module._parameters, *dir(type(module))}:
        return f"its attribute {min(clash)!r} has the name of one that its replacement needs"
    return None


def geometry(module: nn.Linear, factor: Factor) -> Geometry:
    """The canonical transposed convolution."""
    channels = module.out_features // prod(factor)
    return Geometry(module.in_features, channels, factor, factor, bias=module.bias is not None)


def _stated(site: Site, options: Mapping[str, Any], module: nn.Module) -> Geometry | str | None:
    assert isinstance(module, nn.Linear)
    factor, order = options.get("factor"), options.get("order")
    if options.keys() != {"factor", "order"} or not isinstance(factor, list) or not isinstance(order, list):
        return None
    if not 1 <= len(factor) <= 3 or any(type(r) is not int or r < 1 for r in factor) or prod(factor) < 2:
        return None
    if module.out_features % prod(factor) or sorted(order) != list(range(module.out_features)):
        return None
    return refusal(module) or geometry(module, tuple(factor))


def _canonical(site: Site, module: nn.Module) -> TransposedConv:
    assert isinstance(module, nn.Linear)
    n = len(site.geometry.stride)
    weight = merge_phases(_as_taps(module.weight.detach(), n), site.options, 1)
    bias = None if module.bias is None else split_bias(module.bias.detach(), site.options, n)[0]
    return TransposedConv(site.geometry, weight, bias)


def _as_taps(weight: Tensor, n: int) -> Tensor:
    """A linear layer's weight as that of a convolution of one tap."""
    return weight.reshape(*weight.shape, *(1,) * n)


class ShuffleLinear(ShuffleConv):
    """Takes the place of a linear layer whose output is shuffled.

    Shapes: input (N, *grid, C_in), output (N, *grid, C_out) as of the linear layer. Raises ValueError for an
    input without a grid of as many axes.
    """

    kept = ("in_features", "out_features")
    groups = 1
    in_features: int
    out_features: int

    def _weight_before(self) -> tuple[Tensor | None, Sequence[int]]:
        weight = self._split((1,) * len(self.factor), self.out_features)
        shape = (self.out_features, self.in_features)
        return None if weight is None else weight.reshape(shape), shape

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes a state dict of the original linear layer as well."""
        weight = state_dict.get(prefix + "weight")
        if weight is not None:
            state_dict[prefix + "weight"] = _as_taps(weight, len(self.factor))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input: Tensor) -> Tensor:
        """What the linear layer gave for ``input``."""
        n = len(self.factor)
        if input.dim() != n + 2:
            raise ValueError(
                f"this converted {type(self).__name__} was seen on inputs (N, *grid, C) with {n} axes, "
                f"and got {tuple(input.shape)}: leave it out of the conversion (exclude=...)"
            )
        return super().forward(input.movedim(-1, 1)).movedim(1, -1)


IDIOM = Idiom(
    "linear_shuffle",
    "pixel_shuffle",
    match,
    lambda site, module: site.kind == "pixel_shuffle" and isinstance(module, nn.Linear),
    _stated,
    _canonical,
    lambda site, module, layer: dressed(ShuffleLinear(layer, module, site.options), module),  # type: ignore[arg-type]
)
