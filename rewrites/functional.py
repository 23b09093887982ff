"""``F.conv_transpose2d``, or ``F.conv2d`` of a resized picture, with a parameter for its weight: made a
module of its own, which can then be swapped like any other.

    class Up(nn.Module):                                   class Up(nn.Module):
        def forward(self, x):                                  def forward(self, x):
            return F.conv_transpose2d(x, self.w, None, 2)          return self.w_conv_transpose(x)

The forward of the smallest enclosing module is rewritten by symbolic tracing (its submodules stay calls), so
the rewritten one is valid for every input; where it cannot be traced, or differs between training and
evaluation, the site is reported and left alone. A ``GraphModule`` has its own graph edited. The module's
class gets a subclass of the same name, with ``forward`` replaced and all else inherited.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites import resize_conv
from pixelize.rewrites.flow import Flow, read_by
from pixelize.rewrites.site import Site, Skipped, geometry_of
from pixelize.rewrites.vocabulary import Op, describe


def scan_functional(model: nn.Module, flow: Flow) -> tuple[list[Site], list[Skipped]]:
    """Every transposed convolution of a graph that no ``nn.ConvTranspose2d`` runs, and every convolution of a
    resized picture that no ``nn.Conv2d`` runs: those that :func:`outline` can make one, and the others."""
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
        found = _site(model, owner, module, op, flow)
        if isinstance(found, Site):
            sites[found.name] = found
        elif found:
            kind = "conv_transpose" if transposed else "resize_conv"
            skipped[owner, found] = Skipped(owner, kind, op.name, found)
    return list(sites.values()), list(skipped.values())


def _site(model: nn.Module, owner: str, module: nn.Module, op: Op, flow: Flow) -> Site | str:
    path = op.args["weight"].meta.get("state") if isinstance(op.args["weight"], fx.Node) else None
    if path is None:
        return (
            "its weight is computed at run time (modulated or demodulated for each sample): there is no one "
            "kernel to inherit"
        )
    if not isinstance(_attribute(model, path), nn.Parameter):
        return "its weight is a buffer, a fixed filter and nothing learned"
    prefix = f"{owner}." if owner else ""
    if not path.startswith(prefix):
        return f"its weight {path} belongs to another module"
    try:
        calls = _calls(module, _traced(module))
    except Exception as error:  # a stranger's forward may raise anything
        return (
            f"the forward of {type(module).__name__} cannot be traced symbolically ({type(error).__name__})"
        )
    weight = path.removeprefix(prefix)
    kind = nn.ConvTranspose2d if op.kind == "conv_transpose" else nn.Conv2d
    mine = [layer for name, layer in calls.values() if name == weight and isinstance(layer, kind)]
    if not mine:
        return f"the forward of {type(module).__name__} does not show the call to a symbolic trace"
    layer, name, where = mine[0], prefix + _module_name(weight, op), {"owner": owner, "weight": weight}
    if isinstance(layer, nn.ConvTranspose2d):
        if tuple(layer.stride) == (1, 1):
            return "stride 1 does not up-sample"
        return Site(name, (name,), "conv_transpose", "conv_transpose2d", geometry_of(layer), where)
    nodes = [n for n, o in flow.ops.items() if o.kind == "conv" and o.args.get("weight") is op.args["weight"]]
    sources = [s for n in nodes if (b := flow.blocks.get(read_by(flow, n))) is not None for s in b.sources]
    if any(flow.ops[s].args["scale"] is None for s in sources):
        return "resized to a given size: whether its factor is the same at another size cannot be seen"
    found = resize_conv.match(flow, name, (name,), layer, nodes)
    if not isinstance(found, Site):
        return found or "not always after a resize"
    return replace(found, type="conv2d", options={**found.options, **where})


def outline(model: nn.Module, sites: Iterable[Site]) -> Callable[[], None]:
    """Makes the functional ones among ``sites`` real modules (``nn.ConvTranspose2d``, ``nn.Conv2d``) at
    ``site.name``, in place; the rest need nothing.

    The parameters are moved, not copied: ``up.w`` becomes ``up.w_conv_transpose.weight``. Returns a function
    that undoes it all. Raises ValueError if ``model`` has no such call; the model is then as it was.
    """
    wanted: dict[str, list[str]] = {}
    for site in sites:
        if "owner" in site.options:
            wanted.setdefault(site.options["owner"], []).append(site.options["weight"])
    undo: list[Callable[[], None]] = []

    def undo_all() -> None:
        while undo:
            undo.pop()()

    try:
        for owner, weights in wanted.items():
            undo.append(_outline(model.get_submodule(owner), weights))
    except Exception as error:
        undo_all()
        raise ValueError(
            f"{owner or type(model).__name__}: no functional convolution there ({error})"
        ) from error
    return undo_all


def _outline(module: nn.Module, weights: list[str]) -> Callable[[], None]:
    """:func:`outline` for one module; ``weights`` are the names of the parameters, seen from it."""
    graph = _traced(module)
    calls = {n: (name, layer) for n, (name, layer) in _calls(module, graph).items() if name in weights}
    if {name for name, _ in calls.values()} != set(weights):
        raise ValueError(f"{type(module).__name__} calls no convolution with {', '.join(weights)}")
    former_names: dict[str, str] = {}
    names = {node: _module_name(name, describe(node, module)) for node, (name, _) in calls.items()}
    for node, (name, _) in calls.items():
        bias = describe(node, module).args.get("bias")
        former_names[name] = f"{names[node]}.weight"
        if isinstance(bias, fx.Node):
            former_names[str(bias.target)] = f"{names[node]}.bias"
        with graph.inserting_before(node):
            op = describe(node, module)
            call = graph.call_module(_module_name(name, op), (op.args["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    owners = {id(m): m for m in [module, *(_split(module, name)[0] for name in former_names)]}.values()
    held = [(m, dict(m._modules), dict(m._parameters), type(m)) for m in owners]
    former = module.graph if isinstance(module, fx.GraphModule) else None

    renaming = module.register_load_state_dict_pre_hook(_Renaming(former_names))

    def undo() -> None:
        renaming.remove()
        for owner, modules, own, cls in held:
            owner.__class__ = cls
            for registry, values in ((owner._modules, modules), (owner._parameters, own)):
                registry.clear()
                registry.update(values)  # type: ignore[arg-type]
        if former is not None:
            module.graph = former  # type: ignore[assignment]

    for node, (_, layer) in calls.items():
        module._modules[names[node]] = layer
    # a parameter that something else reads as well stays where it is, shared
    for name in former_names.keys() - read:
        owner, attribute = _split(module, name)
        owner._parameters.pop(attribute, None)
    if former is not None:
        module.graph = graph  # type: ignore[assignment]
    else:
        module.__class__ = _subclass(type(module), graph)
    return undo


@dataclass(frozen=True)
class _Renaming:
    """Lets a state dict of the original module be loaded: its parameters' names, and where they are now."""

    names: Mapping[str, str]

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for old, new in self.names.items():
            if prefix + old in state_dict:
                state_dict.setdefault(prefix + new, state_dict[prefix + old])
                owner, attribute = _split(module, old)
                if attribute not in owner._parameters:
                    del state_dict[prefix + old]


def _subclass(cls: type, graph: fx.Graph) -> type:
    """``cls`` with the forward that ``graph`` describes."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, f"<{cls.__name__}.forward, its functional calls outlined>", "exec"), scope)
    return type(
        cls.__name__,
        (cls,),
        {
            "forward": scope["forward"],
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
        },
    )


class _Shallow(fx.Tracer):
    """Every submodule is a leaf: only the module's own forward is seen."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(module: nn.Module) -> fx.Graph:
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


def _calls(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, tuple[str, nn.ConvTranspose2d | nn.Conv2d]]:
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
        _attribute(module, str(argument.target))
        if isinstance(argument, fx.Node) and argument.op == "get_attr"
        else None
    )


def _split(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, attribute = path.rpartition(".")
    return module.get_submodule(prefix), attribute


def _attribute(module: nn.Module, path: str) -> Any:
    owner, attribute = _split(module, path)
    return getattr(owner, attribute, None)


def _module_name(weight: str, op: Op) -> str:
    return weight.replace(".", "_") + ("_conv_transpose" if op.kind == "conv_transpose" else "_conv")
