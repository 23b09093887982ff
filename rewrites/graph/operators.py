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
    "shuffle",
    "pad",
    "other",
]


@dataclass(frozen=True)
class Op:
    """One node: its kind, the name to show a reader, and its arguments by the names that the kind uses.

    ``resize``: mode, size, scale (each a pair or None), input. ``cat``: tensors, dim. ``slice``: input, dim,
    start, stop, step.
    ``conv`` and ``conv_transpose``: input, weight, bias (nodes) or module (in a graph whose nodes are
    modules). ``shuffle``: input, factor.
    ``pad``: input, pads (left, right, top, bottom), mode, value.
    """

    kind: OpKind
    name: str
    args: dict[str, Any] = field(default_factory=dict)


_RESIZES = {
    "upsample_nearest2d": "nearest",
    "_upsample_nearest_exact2d": "nearest-exact",
    "upsample_bilinear2d": "bilinear",
    "_upsample_bilinear2d_aa": "bilinear",
    "upsample_bicubic2d": "bicubic",
    "_upsample_bicubic2d_aa": "bicubic",
}
# one affine map for each channel (or each sample and channel): what was constant over a block stays so
_CHANNELWISE = {
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "instance_norm", "group_norm",
    "native_group_norm", "prelu", "_prelu_kernel", "feature_dropout", "dropout2d",
}  # fmt: skip
_ALIASES = {
    "contiguous",
    "clone",
    "to",
    "_to_copy",
    "type_as",
    "detach",
    "alias",
    "lift_fresh_copy",
    "float",
    "half",
    "double",
    "bfloat16",
    "type",
    "cuda",
    "cpu",
    "identity",
    "positive",
    "_assert_tensor_metadata",
}
_PADS = {
    "pad": None,
    "constant_pad_nd": "constant",
    "reflection_pad2d": "reflect",
    "replication_pad2d": "replicate",
}
_PAD_MODULES = {
    nn.ZeroPad2d: "constant",
    nn.ConstantPad2d: "constant",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
}
_UNTAGGED = {"leaky_relu"}  # pointwise, but torch 2.6 does not say so
_DROPOUTS = {"dropout", "native_dropout", "alpha_dropout", "bernoulli", "rrelu", "rrelu_with_noise"}
_OPERATORS = {
    "truediv": "div",
    "iadd": "add",
    "imul": "mul",
    "isub": "sub",
    "itruediv": "div",
    "hard_sigmoid": "hardsigmoid",
}
_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
_CHANNELWISE_MODULES = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.PReLU,
    nn.Dropout2d,
)


def describe(node: fx.Node, root: nn.Module) -> Op:
    """What ``node`` does; ``root`` owns the modules that the graph calls."""
    if node.op == "call_module":
        return _describe_module(node, root.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return Op("other", str(node.target))
    name = _name(node)
    if name == "getitem":
        return Op("item", name, {"input": node.args[0], "index": node.args[1]})
    if name in _RESIZES:
        return _resize(node, name)
    if name in ("interpolate", "upsample"):
        a = _bind(node, ("input", "size", "scale_factor", "mode", "align_corners"))
        scale = a.get("scale_factor")
        return Op(
            "resize",
            name,
            _sized(a["input"], a.get("size"), scale, a.get("mode") or "nearest", a.get("align_corners")),
        )
    if name in ("conv2d", "conv_transpose2d", "convolution", "_convolution"):
        return _convolution(node, name)
    if name in ("cat", "concat", "concatenate"):
        a = _bind(node, ("tensors", "dim"))
        return Op("cat", name, {"tensors": a["tensors"], "dim": a.get("dim", 0)})
    if name == "slice" and len(node.args) >= 2:
        a = _bind(node, ("input", "dim", "start", "stop", "step"))
        return Op("slice", name, a)
    if name in ("pixel_shuffle",):
        a = _bind(node, ("input", "factor"))
        return Op("shuffle", name, a)
    if name in _PADS:
        return _pad(node, name)
    if name == "repeat_interleave":
        return _repeat(node, name)
    if name in _DROPOUTS:
        a = _bind(node, ("input", "p"))
        return Op("alias" if a.get("p", 0.5) == 0 else "dropout", name, a)
    if name in _CHANNELWISE:
        return Op("channelwise", name, {"input": node.args[0] if node.args else node.kwargs.get("input")})
    if name in _ALIASES:
        return Op("alias", name, {"input": node.args[0] if node.args else node.kwargs.get("input")})
    return Op("pointwise" if is_pointwise(name) else "other", name)


def _name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = name.rstrip("_") or name
    return _OPERATORS.get(name, name)


def is_pointwise(name: str) -> bool:
    """Whether the aten operator of that name makes each value of its result of one value of each operand."""
    if name in _UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _bind(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Positional arguments by name; the first goes by several names (``self``, ``x``) when it is a
    keyword."""
    bound = dict(zip(names, node.args, strict=False))
    bound.update({k: v for k, v in node.kwargs.items() if k in names})
    return bound


def _pair(value: Any) -> tuple[Any, Any] | None:
    if value is None:
        return None
    return (value[0], value[1]) if isinstance(value, list | tuple) else (value, value)


def _sized(input: Any, size: Any, scale: Any, mode: str, corners: Any = None) -> dict[str, Any]:
    return {
        "input": input,
        "size": _pair(size),
        "scale": _pair(scale),
        "mode": mode,
        "align_corners": corners,
    }


def _resize(node: fx.Node, name: str) -> Op:
    mode = _RESIZES[name]
    names = ["input", "output_size", "align_corners", "scales"]
    if mode.startswith("nearest"):
        names.remove("align_corners")
    overload = getattr(node.target, "_overloadname", "vec")
    if overload != "vec":
        names[names.index("scales") :] = ["scales_h", "scales_w"]
    a = _bind(node, tuple(names))
    scale = a.get("scales") or a.get("scale_factors")
    if scale is None and a.get("scales_h") is not None:
        scale = (a["scales_h"], a["scales_w"])
    return Op("resize", name, _sized(a["input"], a.get("output_size"), scale, mode, a.get("align_corners")))


def _pad(node: fx.Node, name: str) -> Op:
    mode = _PADS[name]
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
    if isinstance(a.get("repeats"), int) and a.get("dim") in (2, 3, -1, -2):
        scale = (a["repeats"], 1) if a["dim"] in (2, -2) else (1, a["repeats"])
        return Op("resize", name, _sized(a["input"], None, scale, "nearest"))
    return Op("other", name)


def _convolution(node: fx.Node, name: str) -> Op:
    a = _bind(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
    transposed = name == "conv_transpose2d"
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
    if isinstance(module, nn.ConvTranspose2d):
        return Op("conv_transpose", name, {"input": input, "module": str(node.target)})
    if isinstance(module, nn.Conv2d):
        return Op("conv", name, {"input": input, "module": str(node.target)})
    if isinstance(module, nn.Upsample):
        return Op(
            "resize", name, _sized(input, module.size, module.scale_factor, module.mode, module.align_corners)
        )
    if type(module) in _PAD_MODULES:
        value = getattr(module, "value", 0)
        return Op(
            "pad",
            name,
            {"input": input, "pads": module.padding, "mode": _PAD_MODULES[type(module)], "value": value},
        )
    if isinstance(module, nn.PixelShuffle):
        return Op("shuffle", name, {"input": input, "factor": module.upscale_factor})
    if isinstance(module, _CHANNELWISE_MODULES):
        return Op("channelwise", name, {"input": input})
    if isinstance(module, _POINTWISE_MODULES):
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
