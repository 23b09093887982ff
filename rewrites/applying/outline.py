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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from pixelize.rewrites.graph.operators import describe
from pixelize.rewrites.graph.own_forward import functional_calls, module_name, owner_of, traced
from pixelize.rewrites.site import Site


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
    graph = traced(module)
    calls = {
        n: (name, layer) for n, (name, layer) in functional_calls(module, graph).items() if name in weights
    }
    if {name for name, _ in calls.values()} != set(weights):
        raise ValueError(f"{type(module).__name__} calls no convolution with {', '.join(weights)}")
    former_names: dict[str, str] = {}
    names = {node: module_name(name, describe(node, module)) for node, (name, _) in calls.items()}
    for node, (name, _) in calls.items():
        bias = describe(node, module).args.get("bias")
        former_names[name] = f"{names[node]}.weight"
        if isinstance(bias, fx.Node):
            former_names[str(bias.target)] = f"{names[node]}.bias"
        with graph.inserting_before(node):
            op = describe(node, module)
            call = graph.call_module(module_name(name, op), (op.args["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    owners = {id(m): m for m in [module, *(owner_of(module, name)[0] for name in former_names)]}.values()
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
        owner, attribute = owner_of(module, name)
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
                owner, attribute = owner_of(module, old)
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
