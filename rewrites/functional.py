"""``F.conv_transpose2d`` with a parameter for its weight: made a module of its own, which can then be swapped
like any other.

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
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn

from pixelize.rewrites.flow import Flow
from pixelize.rewrites.site import Site, Skipped, geometry_of
from pixelize.rewrites.vocabulary import Op, describe


def scan_functional(model: nn.Module, flow: Flow) -> tuple[list[Site], list[Skipped]]:
    """Every transposed convolution of a graph that no ``nn.ConvTranspose2d`` runs: those that :func:`outline`
    can make one, and the others."""
    sites: dict[str, Site] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    for node, op in flow.ops.items():
        if op.kind != "conv_transpose" or "module" in op.args:
            continue
        owner = str(node.meta.get("owner", ""))
        module = model.get_submodule(owner)
        if isinstance(module, nn.ConvTranspose2d):
            continue
        found = _site(model, owner, module, op)
        if isinstance(found, Site):
            sites[found.name] = found
        elif found:
            skipped[owner, found] = Skipped(owner, "conv_transpose", op.name, found)
    return list(sites.values()), list(skipped.values())


def _site(model: nn.Module, owner: str, module: nn.Module, op: Op) -> Site | str:
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
    mine = [layer for name, layer in calls.values() if name == weight]
    if not mine:
        return f"the forward of {type(module).__name__} does not show the call to a symbolic trace"
    if tuple(mine[0].stride) == (1, 1):
        return "stride 1 does not up-sample"
    name = prefix + _module_name(weight)
    return Site(
        name,
        (name,),
        "conv_transpose",
        "conv_transpose2d",
        geometry_of(mine[0]),
        {"owner": owner, "weight": weight},
    )


def outline(model: nn.Module, sites: Iterable[Site]) -> Callable[[], None]:
    """Makes the functional ones among ``sites`` real ``nn.ConvTranspose2d`` modules at ``site.name``, in
    place; the rest need nothing.

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
            f"{owner or type(model).__name__}: no functional transposed convolution there ({error})"
        ) from error
    return undo_all


def _outline(module: nn.Module, weights: list[str]) -> Callable[[], None]:
    """:func:`outline` for one module; ``weights`` are the names of the parameters, seen from it."""
    graph = _traced(module)
    calls = {n: (name, layer) for n, (name, layer) in _calls(module, graph).items() if name in weights}
    if {name for name, _ in calls.values()} != set(weights):
        raise ValueError(f"{type(module).__name__} does not call conv_transpose2d with {', '.join(weights)}")
    parameters = set(weights)
    for node, (name, _) in calls.items():
        bias = describe(node, module).args.get("bias")
        parameters |= {str(bias.target)} if isinstance(bias, fx.Node) else set()
        with graph.inserting_before(node):
            call = graph.call_module(_module_name(name), (describe(node, module).args["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    owners = {id(m): m for m in [module, *(_split(module, name)[0] for name in parameters)]}.values()
    held = [(m, dict(m._modules), dict(m._parameters), type(m)) for m in owners]
    former = module.graph if isinstance(module, fx.GraphModule) else None

    def undo() -> None:
        for owner, modules, own, cls in held:
            owner.__class__ = cls
            for registry, values in ((owner._modules, modules), (owner._parameters, own)):
                registry.clear()
                registry.update(values)  # type: ignore[arg-type]
        if former is not None:
            module.graph = former  # type: ignore[assignment]

    for name, layer in calls.values():
        module._modules[_module_name(name)] = layer
    for name in parameters - read:  # a parameter that something else reads as well stays where it is, shared
        owner, attribute = _split(module, name)
        owner._parameters.pop(attribute, None)
    if former is not None:
        module.graph = graph  # type: ignore[assignment]
    else:
        module.__class__ = _subclass(type(module), graph)
    return undo


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


def _calls(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, tuple[str, nn.ConvTranspose2d]]:
    """The transposed convolutions of a graph whose weight is a parameter: its name, and the module that does
    the same."""
    found = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        op = describe(node, module)
        weight = op.args.get("weight")
        if op.kind == "conv_transpose" and isinstance(weight, fx.Node) and weight.op == "get_attr":
            layer = _layer(module, op)
            if layer is not None:
                found[node] = (str(weight.target), layer)
    return found


def _layer(module: nn.Module, op: Op) -> nn.ConvTranspose2d | None:
    weight, bias = (_value(module, op.args.get(name)) for name in ("weight", "bias"))
    if not isinstance(weight, nn.Parameter) or (
        op.args.get("bias") is not None and not isinstance(bias, Tensor)
    ):
        return None
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    settings = {name: op.args.get(name, default) for name, default in defaults.items()}
    if any(
        isinstance(n, fx.Node) for v in settings.values() for n in (v if isinstance(v, list | tuple) else [v])
    ):
        return None
    pairs = {
        k: v if k == "groups" else (tuple(v) * (2 // len(v)) if isinstance(v, list | tuple) else (v, v))
        for k, v in settings.items()
    }
    groups = int(pairs.pop("groups"))  # type: ignore[arg-type]
    layer = nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * groups,
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


def _module_name(weight: str) -> str:
    return weight.replace(".", "_") + "_conv_transpose"
