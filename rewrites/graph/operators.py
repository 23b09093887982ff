"""What a node of a graph does, in one vocabulary for aten operators, torch functions, tensor methods and
modules.

Two captures of the same model name its operators differently: ``torch.export`` says ``aten.relu_.default``,
symbolic tracing
``torch.nn.functional.relu``, the method ``relu`` or a module of class ``nn.ReLU``. :func:`describe` makes
them one.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pixelize.rewrites.graph.operator_names import (
    ALIASES,
    CHANNELWISE,
    CHANNELWISE_MODULES,
    CONVOLUTIONS,
    DROPOUTS,
    PAD_MODULES,
    PADS,
    POINTWISE_MODULES,
    PYTHON_OPERATORS,
    RESIZES,
    is_pointwise,
)

OpKind = Literal[
    "resize",
    "pointwise",
    "channelwise",
    "alias",
    "cat",
    "slice",
    "item",
    "dropout",
    "conv",
    "conv_transpose",
    "linear",
    "shuffle",
    "pad",
    "other",
]


@dataclass(frozen=True)
class Op:
    """One node: its kind, the name to show a reader, and its arguments by the names that the kind uses.

    ``resize``: mode, size, scale (each a tuple of one number for each axis, of a single one that holds for
    all, or None), input. ``cat``: tensors, dim. ``slice``: input, dim,
    start, stop, step.
    ``conv``, ``conv_transpose`` and ``linear``: input, weight, bias (nodes) or module (in a graph whose nodes
    are modules). ``shuffle``: input, factor.
    ``pad``: input, pads (left, right, top, bottom, ..: the last axis first), mode, value.
    """

    kind: OpKind
    name: str
    args: dict[str, Any] = field(default_factory=dict)


def describe(node: fx.Node, root: nn.Module) -> Op:
    """What ``node`` does; ``root`` owns the modules that the graph calls."""
    if node.op == "call_module":
        return _describe_module(node, root.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return Op("other", str(node.target))
    name = _name(node)
    if name == "getitem":
        return Op("item", name, {"input": node.args[0], "index": node.args[1]})
    if name in RESIZES:
        return _resize(node, name)
    if name in ("interpolate", "upsample"):
        a = _bind(node, ("input", "size", "scale_factor", "mode", "align_corners"))
        scale = a.get("scale_factor")
        return Op(
            "resize",
            name,
            _sized(a["input"], a.get("size"), scale, a.get("mode") or "nearest", a.get("align_corners")),
        )
    if name in CONVOLUTIONS:
        return _convolution(node, name)
    if name == "linear":
        return Op("linear", name, _bind(node, ("input", "weight", "bias")))
    if name in ("cat", "concat", "concatenate"):
        a = _bind(node, ("tensors", "dim"))
        return Op("cat", name, {"tensors": a["tensors"], "dim": a.get("dim", 0)})
    if name == "slice" and len(node.args) >= 2:
        a = _bind(node, ("input", "dim", "start", "stop", "step"))
        return Op("slice", name, a)
    if name in ("pixel_shuffle",):
        a = _bind(node, ("input", "factor"))
        return Op("shuffle", name, a)
    if name in PADS:
        return _pad(node, name)
    if name == "repeat_interleave":
        return _repeat(node, name)
    if name in DROPOUTS:
        a = _bind(node, ("input", "p"))
        return Op("alias" if a.get("p", 0.5) == 0 else "dropout", name, a)
    if name in CHANNELWISE:
        return Op("channelwise", name, {"input": node.args[0] if node.args else node.kwargs.get("input")})
    if name in ALIASES:
        return Op("alias", name, {"input": node.args[0] if node.args else node.kwargs.get("input")})
    return Op("pointwise" if is_pointwise(name) else "other", name)


def _name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = name.rstrip("_") or name
    return PYTHON_OPERATORS.get(name, name)


def _bind(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Positional arguments by name; the first goes by several names (``self``, ``x``) when it is a
    keyword."""
    bound = dict(zip(names, node.args, strict=False))
    bound.update({k: v for k, v in node.kwargs.items() if k in names})
    return bound


def _tuple(value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _sized(input: Any, size: Any, scale: Any, mode: str, corners: Any = None) -> dict[str, Any]:
    return {
        "input": input,
        "size": _tuple(size),
        "scale": _tuple(scale),
        "mode": mode,
        "align_corners": corners,
    }


def _resize(node: fx.Node, name: str) -> Op:
    mode = RESIZES[name]
    names = ["input", "output_size", "align_corners", "scales"]
    if mode.startswith("nearest"):
        names.remove("align_corners")
    overload = getattr(node.target, "_overloadname", "vec")
    if overload != "vec":
        names[names.index("scales") :] = [s.name for s in node.target._schema.arguments[len(names) - 1 :]]  # type: ignore[union-attr]
    a = _bind(node, tuple(names))
    scale = a.get("scales") or a.get("scale_factors")
    if scale is None:
        given = [v for key, v in a.items() if key.startswith("scales_")]
        scale = tuple(given) if given and None not in given else None
    return Op("resize", name, _sized(a["input"], a.get("output_size"), scale, mode, a.get("align_corners")))


def _pad(node: fx.Node, name: str) -> Op:
    mode = PADS[name]
    a = _bind(node, ("input", "pads", "value") if mode else ("input", "pads", "mode", "value"))
    pads = a.get("pads", a.get("pad", node.kwargs.get("pad")))
    return Op(
        "pad",
        name,
        {
            "input": a["input"],
            "pads": pads,
            "mode": mode or a.get("mode") or "constant",
            "value": a.get("value"),
        },
    )


def _repeat(node: fx.Node, name: str) -> Op:
    a = _bind(node, ("input", "repeats", "dim"))
    shape, dim = shape_of(a["input"]), a.get("dim")
    if not isinstance(a.get("repeats"), int) or not isinstance(dim, int):
        return Op("other", name)
    n = len(shape) - 2 if shape is not None else 2  # unknown: of a picture, as nearly all are
    axis = dim + n if dim < 0 else dim - 2
    if not 0 <= axis < n:
        return Op("other", name)
    scale = tuple(a["repeats"] if i == axis else 1 for i in range(n))
    return Op("resize", name, _sized(a["input"], None, scale, "nearest"))


def _convolution(node: fx.Node, name: str) -> Op:
    a = _bind(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
    transposed = name.startswith("conv_transpose")
    if name.endswith("convolution"):
        full = _bind(
            node,
            (
                "input",
                "weight",
                "bias",
                "stride",
                "padding",
                "dilation",
                "transposed",
                "output_padding",
                "groups",
            ),
        )
        transposed, a = bool(full.get("transposed")), full
    elif transposed:
        a = _bind(
            node, ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        )
    return Op("conv_transpose" if transposed else "conv", name, a)


def _describe_module(node: fx.Node, module: nn.Module) -> Op:
    name = type(module).__name__
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*node.args, **node.kwargs).arguments
    except TypeError:
        return Op("other", name)
    input = next(iter(bound.values()), None)
    if isinstance(module, _ConvTransposeNd):
        return Op("conv_transpose", name, {"input": input, "module": str(node.target)})
    if isinstance(module, _ConvNd):
        return Op("conv", name, {"input": input, "module": str(node.target)})
    if isinstance(module, nn.Linear):
        return Op("linear", name, {"input": input, "module": str(node.target)})
    if isinstance(module, nn.Upsample):
        return Op(
            "resize", name, _sized(input, module.size, module.scale_factor, module.mode, module.align_corners)
        )
    if type(module) in PAD_MODULES:
        value = getattr(module, "value", 0)
        return Op(
            "pad",
            name,
            {"input": input, "pads": module.padding, "mode": PAD_MODULES[type(module)], "value": value},
        )
    if isinstance(module, nn.PixelShuffle):
        return Op("shuffle", name, {"input": input, "factor": module.upscale_factor})
    if isinstance(module, CHANNELWISE_MODULES):
        return Op("channelwise", name, {"input": input})
    if isinstance(module, POINTWISE_MODULES):
        return Op("pointwise", name)
    if isinstance(module, nn.Identity):
        return Op("alias", name, {"input": input})
    if isinstance(module, nn.Dropout):
        return Op("alias" if module.p == 0 else "dropout", name, {"input": input})
    return Op("other", name)


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's value at capture, or None where the capture has none."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return tuple(int(d) for d in value.shape) if isinstance(value, Tensor) else None
