"""What sites need of the modules around them: that their forwards are watched, and that a convolution called
as a function is done by a module of its own, which can then be swapped like any other.

Before::

    class Up(nn.Module):
        def forward(self, x):
            return F.conv_transpose2d(x, self.w, None, 2)

After, where ``self.w_conv_transpose`` is an ``nn.ConvTranspose2d`` that has the parameter ``w`` too::

    class Up(Watched, Up):
        def forward(self, x):
            return self.w_conv_transpose(x)  # in effect: the forward is as it was, the call goes there

The parameter stays where it was, under its name. A ``GraphModule`` has its own graph edited.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from torch import fx, nn

from pixelize.rewrites.finding.functional import from_options, layer_of
from pixelize.rewrites.graph.operators import describe
from pixelize.rewrites.site import Site
from pixelize.rewrites.state.modules import modules_of
from pixelize.rewrites.watching.watched import redirect, unwatch, watch

_GRAPH = "_graph_before_conversion"


def outline(model: nn.Module, sites: Iterable[Site]) -> Callable[[], None]:
    """Prepares ``model`` for the swap of ``sites``, in place: has watched what needs to be, and makes real
    modules (such as ``nn.ConvTranspose2d``, ``nn.Conv2d``) at ``site.name`` of the functional ones.

    Returns a function that undoes it all. Raises ValueError if ``model`` has no such module or parameter; the
    model is then as it was.
    """
    undo: list[Callable[[], None]] = []

    def undo_all() -> None:
        while undo:
            undo.pop()()

    for site in sites:
        try:
            if "owner" in site.options:
                undo.append(_made_module(model.get_submodule(site.options["owner"]), site))
            if site.kind == "resize_conv" or (site.kind == "resize" and "ranges" in site.options):
                if "graph" in site.options:
                    undo.append(_proved(model.get_submodule(site.options["graph"]), site))
                for name in site.options.get("watch", [] if "graph" in site.options else [""]):
                    undo.append(_kept(model.get_submodule(name)))
                    watch(model.get_submodule(name))
        except Exception as error:
            undo_all()
            raise ValueError(f"{site.name}: it cannot be prepared for its conversion ({error})") from error
    return undo_all


def inline(model: nn.Module) -> None:
    """Undoes every :func:`outline` of ``model``, in place: classes, keys and graphs are what they were."""
    for module in list(modules_of(model)):
        unwatch(module)
        if (graph := module.__dict__.pop(_GRAPH, None)) is not None:
            module.graph = graph
            for node in [n for n in list(module._modules) if n not in _called(graph)]:
                if node.endswith(("_conv", "_conv_transpose")):
                    del module._modules[node]


def _called(graph: fx.Graph) -> set[str]:
    return {str(n.target).split(".")[0] for n in graph.nodes if n.op in ("call_module", "get_attr")}


def _kept(module: nn.Module) -> Callable[[], None]:
    kind, attributes, modules = type(module), dict(module.__dict__), dict(module._modules)
    graph = module.graph if isinstance(module, fx.GraphModule) else None

    def undo() -> None:
        module.__class__ = kind
        module.__dict__.clear()
        module.__dict__.update(attributes)
        module._modules.clear()
        module._modules.update(modules)
        if graph is not None:
            module.graph = graph  # type: ignore[assignment]

    return undo


def _made_module(owner: nn.Module, site: Site) -> Callable[[], None]:
    undo = _kept(owner)
    settings = from_options(site.options)
    weight, transposed = site.options["weight"], site.kind == "conv_transpose"
    layer = layer_of(owner, weight, settings, transposed)
    child = site.name.rpartition(".")[2]
    if not isinstance(owner, fx.GraphModule):
        redirect(owner, weight, settings, child, layer)
        return undo
    graph = _edited(owner)
    calls = []
    for node in graph.nodes:
        op = describe(node, owner) if node.op == "call_function" else None
        if op is not None and op.kind in ("conv", "conv_transpose") and "weight" in op.args:
            held = op.args["weight"]
            if isinstance(held, fx.Node) and held.op == "get_attr" and held.target == weight:
                calls.append((node, op))
    if not calls:
        raise ValueError(f"its graph calls no convolution with {weight}")
    for node, op in calls:
        with graph.inserting_before(node):
            call = graph.call_module(child, (op.args["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)
    owner._modules[child] = layer
    owner.graph = graph  # type: ignore[assignment]
    return undo


def _proved(module: nn.Module, site: Site) -> Callable[[], None]:
    """Has a graph say, in its call of the site's convolution, that what it gives is a resized picture."""
    undo = _kept(module)
    assert isinstance(module, fx.GraphModule)
    graph = _edited(module)
    prefix = f"{site.options['graph']}." if site.options["graph"] else ""
    for node in graph.nodes:
        if node.op == "call_module" and prefix + str(node.target) in site.names:
            node.kwargs = {**node.kwargs, "claim": True}
    module.graph = graph  # type: ignore[assignment]
    return undo


def _edited(module: fx.GraphModule) -> fx.Graph:
    """A copy of a module's graph to be edited; the first one is kept for :func:`inline`."""
    module.__dict__.setdefault(_GRAPH, module.graph)
    return copy.deepcopy(module.graph)
