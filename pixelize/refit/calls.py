"""Every convolution, transposed convolution and linear map that a model runs, in order, whoever calls it:
a module, a function with the model's own tensor, a parametrization, a layer in a plain list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.rewrites.state.modes import SafeFunctionMode
from pixelize.rewrites.state.modules import modules_of

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_LINEAR = ("input", "weight", "bias")
_KINDS: dict[Any, tuple[str, int, tuple[str, ...]]] = {
    torch.conv1d: ("convolution", 1, _CONVOLUTION),
    torch.conv2d: ("convolution", 2, _CONVOLUTION),
    torch.conv3d: ("convolution", 3, _CONVOLUTION),
    torch.conv_transpose1d: ("transposed", 1, _TRANSPOSED),
    torch.conv_transpose2d: ("transposed", 2, _TRANSPOSED),
    torch.conv_transpose3d: ("transposed", 3, _TRANSPOSED),
    F.linear: ("linear", 0, _LINEAR),
}


@dataclass(frozen=True)
class Call:
    """One run of an operator with weights: y = op(x, weight), x (N, C, ...) or, if linear, (..., C)."""

    kind: str
    """ "convolution", "transposed" or "linear"."""
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return () if self.kind == "linear" else tuple(self.weight.shape[2:])

    def multiply_adds(self, output: Tensor) -> float:
        """Of the whole batch."""
        at = self.input if self.kind == "transposed" else output
        places = at.numel() / (at.shape[1] if self.kind != "linear" else at.shape[-1])
        return float(places * self.weight.numel())


def _pairs(value: Any, n: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * n


def _call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    kind, n, names = _KINDS[function]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    weight = given["weight"]
    dilation = _pairs(given.get("dilation", 1), n)
    padding = given.get("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
    return Call(
        kind, given["input"], weight, given.get("bias"), _pairs(given.get("stride", 1), n),
        _pairs(padding, n), dilation, given.get("groups", 1),
    )  # fmt: skip


Compute = Callable[[Tensor], Tensor]
"""Runs an operator on an input."""


class Watch(SafeFunctionMode):
    """In this, ``each(number, call, compute)`` stands for every operator with weights that is run.

    ``compute(x)`` runs it on an input; what ``each`` returns is what the model goes on with. ``shuffled`` is
    told what each pixel shuffle is given, and its factor.
    """

    def __init__(
        self,
        each: Callable[[int, Call, Compute], Tensor],
        shuffled: Callable[[Tensor, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.each, self.shuffled, self.number = each, shuffled, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.pixel_shuffle and self.shuffled is not None:
            shuffle = dict(zip(("input", "upscale_factor"), args, strict=False)) | given
            self.shuffled(shuffle["input"], shuffle["upscale_factor"])
        if func not in _KINDS:
            return func(*args, **given)
        number, self.number = self.number, self.number + 1

        def compute(x: Tensor) -> Tensor:
            if args:
                return func(x, *args[1:], **given)
            return func(**{**given, "input": x})

        return self.each(number, _call(func, args, given), compute)


def calls_seen(
    run: Callable[[Any], Tensor], per_run: int, wanted: Mapping[int, str], batches: Iterable[Any]
) -> dict[str, list[Call]]:
    """The runs of some operators, of ``per_run`` in each run of a model, on batches of data: by the name that
    ``wanted`` has for an operator's number, in the order in which they come."""
    seen: dict[str, list[Call]] = {name: [] for name in wanted.values()}

    def look(number: int, call: Call, compute: Compute) -> Tensor:
        if number % per_run in wanted:
            seen[wanted[number % per_run]].append(call)
        return compute(call.input)

    with torch.no_grad(), Watch(look):
        for batch in batches:
            run(batch)
    return seen


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by its first qualified name, whatever the model calls its attributes."""
    found: dict[int, tuple[str, Tensor]] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for key, value in module._parameters.items():
            if value is not None:
                found.setdefault(id(value), (prefix + key, value))
        waiting += [(f"{prefix}{k}.", m) for k, m in reversed(module._modules.items()) if m is not None]
    return dict(found.values())


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """In this, the model's parameters of these names are other tensors, wherever it holds them.

    (``torch.func.functional_call`` would go by attribute names, which a model may shadow.)
    """
    named = named_parameters(model)
    other = {id(named[name]): value for name, value in values.items()}
    places = [
        (module._parameters, key, value)
        for module in modules_of(model)
        for key, value in module._parameters.items()
        if id(value) in other
    ]
    try:
        for holder, key, value in places:
            holder[key] = other[id(value)]  # type: ignore[assignment]
        yield
    finally:
        for holder, key, value in places:
            holder[key] = value


def leaves_of(tensor: Tensor) -> list[Tensor]:
    """The leaves that a tensor was computed from: itself, if it was not."""
    if tensor.grad_fn is None:
        return [tensor]
    found, seen, waiting = [], set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found


@dataclass(frozen=True)
class SeenCall:
    """What is kept of a call of the first run: where it stands and what it reads and makes, by name."""

    number: int
    kind: str
    weight: str
    """Name of the parameter to refit: the weight's own, or the one of its shape that it is computed from."""
    bias: str
    read: tuple[float, ...]
    made: tuple[float, ...]
    """How many pixels of the picture one place of the input and of the output stand for, along each axis."""
    features: int
    multiply_adds: float
    """Of one sample."""
    doubts: str = ""
    """Why it cannot be refitted."""
    shuffle: int = 1
    """Factor of the pixel shuffle that its output goes through at once."""


def calls_of(model: nn.Module, run: Callable[[], Tensor]) -> list[SeenCall]:
    """The operators with weights in one run, which gives the picture (1, C, *size).

    All parameters must require a gradient.
    """
    names = {id(p): name for name, p in named_parameters(model).items()}
    seen: list[_Sight] = []
    outputs: list[Tensor] = []
    factors: dict[int, int] = {}

    def look(number: int, call: Call, compute: Compute) -> Tensor:
        output = compute(call.input)
        features = call.weight[0].numel()
        if call.kind == "transposed":  # of the phase that has most taps
            taps = (-(-k // s) for k, s in zip(call.kernel, call.stride, strict=True))
            features = call.weight.shape[0] // call.groups * math.prod(taps)
        shapes = tuple(call.input.shape), tuple(output.shape)
        seen.append(_Sight(call.kind, call.weight, call.bias, *shapes, features, call.multiply_adds(output)))
        outputs.append(output.detach())  # the weights' own history is all that is wanted
        return outputs[-1]

    def shuffled(x: Tensor, factor: int) -> None:
        factors.update({n: factor for n, output in enumerate(outputs) if output is x})

    with torch.enable_grad(), Watch(look, shuffled):
        picture = run()
    size = tuple(picture.shape[2:])
    weights = {names[id(p)]: p for sight in seen for p in leaves_of(sight.weight) if id(p) in names}
    overwritten = _overwritten(model, weights, run)
    found = []
    for number, sight in enumerate(seen):
        weight, doubts = "", ""
        behind = [p for p in leaves_of(sight.weight) if id(p) in names and p.shape == sight.weight.shape]
        if len(behind) == 1 and behind[0].is_floating_point():
            weight = names[id(behind[0])]
        else:
            doubts = "its weight is no parameter of the model, nor computed from one of its shape"
        if weight in overwritten:
            doubts = "the model computes its weight anew whenever it runs"
        bias = "" if sight.bias is None else names.get(id(sight.bias), "")
        scales = _scale(size, sight.read, sight.kind), _scale(size, sight.made, sight.kind)
        cost = sight.multiply_adds / max(1, len(picture))
        factor = factors.get(number, 1)
        found.append(
            SeenCall(number, sight.kind, weight, bias, *scales, sight.features, cost, doubts, factor)
        )
    return found


def _overwritten(model: nn.Module, weights: Mapping[str, Tensor], run: Callable[[], Tensor]) -> set[str]:
    """Those that a run puts back to other numbers: what is refitted there would not last."""

    def other(weight: Tensor) -> Tensor:
        return weight.detach() * 1.01 + 1e-3

    values = {name: other(w) for name, w in weights.items() if w.is_floating_point()}
    with torch.no_grad(), replaced(model, values):
        run()
    return {name for name, value in values.items() if not torch.equal(value, other(weights[name]))}


@dataclass(frozen=True)
class _Sight:
    kind: str
    weight: Tensor
    bias: Tensor | None
    read: tuple[int, ...]
    made: tuple[int, ...]
    features: int
    multiply_adds: float


def _scale(size: tuple[int, ...], shape: tuple[int, ...], kind: str) -> tuple[float, ...]:
    axes = len(size)
    if kind == "linear":  # tokens: as many as places, and perhaps a class token
        if len(shape) == axes + 2:
            return tuple(n / places for n, places in zip(size, shape[1:-1], strict=True))
        tokens = shape[-2] if len(shape) > 2 else 1
        side = max(1, round((math.prod(size) / max(tokens, 1)) ** (1 / axes)))
        return (float(side),) * axes
    if len(shape) < axes + 2:
        return (math.inf,) * axes
    return tuple(n / places for n, places in zip(size, shape[-axes:], strict=True))
