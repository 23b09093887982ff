"""Convolutions that a forward calls as functions, with a parameter for their weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pixelize.rewrites.finding.enclosing import enclosing
from pixelize.rewrites.graph.flow import Flow, read_by
from pixelize.rewrites.graph.operators import Op
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS
from pixelize.rewrites.idioms.registry import matched
from pixelize.rewrites.site import CONV_TRANSPOSE, Site, Skipped, geometry_of
from pixelize.rewrites.watching.watched import Settings, has_one_graph, refusal, settings_of

_FIXED = "its weight is a buffer, a fixed filter and nothing learned"


def scan_functional(model: nn.Module, flow: Flow) -> tuple[list[Site], list[Skipped]]:
    """Every transposed convolution of a graph that no module runs, and every convolution of a resized
    picture that no module runs: those that
    :func:`pixelize.rewrites.applying.outline.outline` can make one, and the others."""
    sites: dict[str, Site] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    for node, op in flow.ops.items():
        transposed = op.kind == "conv_transpose"
        if "module" in op.args or not (
            transposed or (op.kind == "conv" and read_by(flow, node) in flow.blocks)
        ):
            continue
        owner = str(node.meta.get("owner", ""))
        module = model.get_submodule(owner)
        if isinstance(module, _ConvNd):  # a module's own call
            continue
        answer = _site(model, owner, module, node, op, flow)
        if isinstance(answer, Site):
            sites[answer.name] = answer
        elif answer:
            kind = "conv_transpose" if transposed else "resize_conv"
            skipped[owner, answer] = Skipped(owner, kind, op.name, answer)
    return list(sites.values()), list(skipped.values())


def _site(model: nn.Module, owner: str, module: nn.Module, node: fx.Node, op: Op, flow: Flow) -> Site | str:
    path = _state(op.args["weight"])
    if path is None:
        return _computed(model, op.args["weight"])
    if not isinstance(attribute_of(model, path), nn.Parameter):
        return _FIXED
    prefix = f"{owner}." if owner else ""
    bias = op.args.get("bias")
    bias_path = _state(bias)
    for what in (path, bias_path):
        if what is not None and not what.startswith(prefix):
            return f"its weight {what} belongs to another module"
    if isinstance(module, fx.GraphModule):
        if not has_one_graph(module):
            return f"{type(module).__name__} has more than one graph"
    elif (reason := refusal(module)) is not None:
        return f"the forward of {owner or type(model).__name__} cannot be watched: {reason}"
    if bias is not None and not isinstance(attribute_of(model, bias_path or ""), nn.Parameter):
        return "its bias is no parameter"
    settings = settings_of(
        attribute_of(model, path), bias_path and bias_path.removeprefix(prefix), op.args.get("stride", 1),
        op.args.get("padding", 0), op.args.get("dilation", 1), op.args.get("groups", 1),
        op.args.get("output_padding", 0),
    )  # fmt: skip
    if settings is None:
        return "called with numbers that are known only at run time"
    weight = path.removeprefix(prefix)
    layer = layer_of(module, weight, settings, op.kind == "conv_transpose")
    name = prefix + module_name(weight, op)
    where: dict[str, Any] = {"owner": owner, "weight": weight, **as_options(settings)}
    n = len(settings.stride)
    if isinstance(layer, _ConvTransposeNd):
        if all(s == 1 for s in settings.stride):
            return "stride 1 does not up-sample"
        return Site(name, (name,), "conv_transpose", f"conv_transpose{n}d", geometry_of(layer), where)
    others = [user for user in op.args["weight"].users if flow.ops[user].kind != "conv"]
    if others or _read_by_methods(module, weight):
        return f"its weight {weight} is read elsewhere too"
    nodes = [n for n, o in flow.ops.items() if o.kind == "conv" and o.args.get("weight") is op.args["weight"]]
    site = matched(flow, name, (name,), layer, nodes)
    if not isinstance(site, Site):
        return site or "not always after a resize"
    watched = enclosing(flow, model, (name,), nodes)
    if isinstance(watched, str):
        return watched
    return replace(site, type=f"conv{n}d", options={**site.options, **where, **watched})


def _computed(model: nn.Module, weight: Any) -> str:
    """Why a weight that is no attribute of the model's is none to inherit: what it is computed from."""
    states, waiting, seen = [], [weight], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        if (path := _state(node)) is not None:
            states.append(path)
        elif node.op == "placeholder":
            break
        waiting += node.all_input_nodes
    else:
        if states and not any(isinstance(attribute_of(model, path), nn.Parameter) for path in states):
            return _FIXED
    return (
        "its weight is computed at run time (modulated or demodulated for each sample): there is no one "
        "kernel to inherit"
    )


def as_options(settings: Settings) -> dict[str, Any]:
    """Settings as a site's options: words and numbers."""
    pairs = (settings.stride, settings.padding, settings.dilation, settings.output_padding)
    return {"bias": settings.bias, "settings": [*map(list, pairs), settings.groups]}


def from_options(options: Mapping[str, Any]) -> Settings:
    """What :func:`as_options` made them of. Raises ValueError for what it cannot have made."""
    *pairs, groups = options["settings"]
    if len(pairs) != 4 or len({len(p) for p in pairs}) != 1:
        raise ValueError(f"no settings of a convolution: {options['settings']}")
    stride, padding, dilation, output_padding = map(tuple, pairs)
    return Settings(options["bias"], stride, padding, dilation, groups, output_padding)


def layer_of(module: nn.Module, weight: str, settings: Settings, transposed: bool) -> _ConvNd:
    """The module that does what ``module``'s forward does as a function, with the same parameters."""
    parameter = module.get_parameter(weight)
    bias = None if settings.bias is None else module.get_parameter(settings.bias)
    first, second = parameter.shape[0], parameter.shape[1] * settings.groups
    common: dict[str, Any] = {"groups": settings.groups, "bias": bias is not None, "device": "meta"}
    kernel = tuple(parameter.shape[2:])
    layer: _ConvNd
    if transposed:
        layer = CONV_TRANSPOSE[len(kernel)](
            first, second, kernel, settings.stride, settings.padding, settings.output_padding,
            dilation=settings.dilation, **common,
        )  # fmt: skip
    else:
        layer = CONVOLUTIONS[len(kernel) - 1](
            second, first, kernel, settings.stride, settings.padding, settings.dilation, **common
        )
    layer.weight = parameter
    if bias is not None:
        layer.bias = bias
    layer.training = module.training
    return layer


def attribute_of(module: nn.Module, path: str) -> Any:
    """The attribute of a dotted path, None if there is none."""
    prefix, _, attribute = path.rpartition(".")
    return getattr(module.get_submodule(prefix), attribute, None)


def module_name(weight: str, op: Op) -> str:
    """What the module is called that takes over the calls with a parameter."""
    return weight.replace(".", "_") + ("_conv_transpose" if op.kind == "conv_transpose" else "_conv")


def _state(node: Any) -> str | None:
    return node.meta.get("state") if isinstance(node, fx.Node) else None


def _read_by_methods(module: nn.Module, weight: str) -> bool:
    """Whether another method than the forward names the parameter."""
    name = weight.rpartition(".")[2]
    for cls in type(module).__mro__:
        if cls in (nn.Module, object):
            continue
        for key, method in vars(cls).items():
            code = getattr(getattr(method, "__func__", method), "__code__", None)
            if key not in ("forward", "__init__") and code is not None and name in code.co_names:
                return True
    return False
