"""A module's own forward as a graph, in which its submodules stay calls, and the convolutions it calls as
functions.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from pixelize.rewrites.graph.operators import Op, describe


class _Shallow(fx.Tracer):
    """Every submodule is a leaf: only the module's own forward is seen."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def traced(module: nn.Module) -> fx.Graph:
    """The module's own forward as a graph, the same in training and in evaluation. Raises what tracing
    raises, or ValueError."""
    if isinstance(module, fx.GraphModule):
        return copy.deepcopy(module.graph)
    mode = module.training
    codes = []
    try:
        for training in (True, False):
            module.training = training
            graph = _Shallow().trace(module)
            codes.append(graph.python_code("self").src)
    finally:
        module.training = mode
    if codes[0] != codes[1]:
        raise ValueError("its forward differs between training and evaluation")
    return graph


def functional_calls(
    module: nn.Module, graph: fx.Graph
) -> dict[fx.Node, tuple[str, nn.ConvTranspose2d | nn.Conv2d]]:
    """The (transposed) convolutions of a graph whose weight is a parameter: its name, and the module that
    does the same."""
    found = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        op = describe(node, module)
        weight = op.args.get("weight")
        if op.kind in ("conv", "conv_transpose") and isinstance(weight, fx.Node) and weight.op == "get_attr":
            layer = _layer(module, op)
            if layer is not None:
                found[node] = (str(weight.target), layer)
    return found


def _layer(module: nn.Module, op: Op) -> nn.ConvTranspose2d | nn.Conv2d | None:
    weight, bias = (_value(module, op.args.get(name)) for name in ("weight", "bias"))
    if not isinstance(weight, nn.Parameter) or (
        op.args.get("bias") is not None and not isinstance(bias, Tensor)
    ):
        return None
    transposed = op.kind == "conv_transpose"
    defaults = {"stride": 1, "padding": 0, "groups": 1, "dilation": 1}
    defaults |= {"output_padding": 0} if transposed else {}
    settings = {name: op.args.get(name, default) for name, default in defaults.items()}
    if any(
        isinstance(n, fx.Node) for v in settings.values() for n in (v if isinstance(v, list | tuple) else [v])
    ):
        return None
    pairs = {k: v if k == "groups" or isinstance(v, str) else _pair(v) for k, v in settings.items()}
    groups = int(pairs.pop("groups"))  # type: ignore[arg-type]
    c_out, c_in = weight.shape[:2]
    widths = (c_out, c_in * groups) if transposed else (c_in * groups, c_out)
    layer: nn.ConvTranspose2d | nn.Conv2d = (nn.ConvTranspose2d if transposed else nn.Conv2d)(
        *widths,
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        groups=groups,
        bias=bias is not None,
        device="meta",
        **pairs,  # type: ignore[arg-type]
    )
    layer.weight = weight
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
    return layer.train(module.training)


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) * (2 // len(value)) if isinstance(value, list | tuple) else (value, value)


def _value(module: nn.Module, argument: Any) -> Any:
    return (
        attribute_of(module, str(argument.target))
        if isinstance(argument, fx.Node) and argument.op == "get_attr"
        else None
    )


def owner_of(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, attribute = path.rpartition(".")
    return module.get_submodule(prefix), attribute


def attribute_of(module: nn.Module, path: str) -> Any:
    owner, attribute = owner_of(module, path)
    return getattr(owner, attribute, None)


def module_name(weight: str, op: Op) -> str:
    return weight.replace(".", "_") + ("_conv_transpose" if op.kind == "conv_transpose" else "_conv")
