"""Seeing what a model's forwards do whatever the input is: an fx graph made by running them on symbols.

``torch.fx.Tracer`` patches ``nn.Module.__call__`` for every thread while it traces. Here a copy of the model
is prepared instead: its parameters are symbols, and its leaves, the modules of ``torch.nn``, write themselves
down when they are called.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from pixelize.rewrites.seeing.calls import Calls
from pixelize.rewrites.state.modules import modules_of
from pixelize.rewrites.state.subclass import combined

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def symbolic(model: nn.Module) -> fx.Graph:
    """The graph of the whole model, or else one graph of all its parts that can be traced; ``model`` is used
    up.

    Raises ValueError if no part can be traced.
    """
    graph = fx.Graph()
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    _Tracer.prepare(model, names)
    _add_trace(graph, model, names)
    if not any(node.op.startswith("call") for node in graph.nodes):
        raise ValueError("neither the model nor any part of it can be traced")
    graph.output(None)
    return graph


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, with no forward of somebody's in it."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS)


def _add_trace(graph: fx.Graph, module: nn.Module, names: dict[int, str]) -> None:
    tracer = _Tracer(fx.Graph(), module, names)
    try:
        tracer.run()
    except Exception:  # a stranger's forward may do anything
        for child in module.children():
            if not isinstance(child, _Leaf):
                _add_trace(graph, child, names)
        return
    mapping: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(tracer.graph, mapping)


class _Leaf(nn.Module):
    """Put before the class of a module of torch's own: a call of it is written down, not done."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracer = self.__dict__["_tracer"][0]
        return tracer.create_proxy("call_module", self.__dict__["_traced_as"], args, kwargs)


class _Tracer(GraphAppendingTracer):
    def __init__(self, graph: fx.Graph, root: nn.Module, names: dict[int, str]) -> None:
        super().__init__(graph)
        self.root = root
        self.calls = Calls()
        self.held: dict[int, str] = {}
        for module in modules_of(root):
            name = names[id(module)]
            if isinstance(module, _Leaf):
                module.__dict__["_tracer"][0] = self
                self.held |= {id(p): f"{name}.{key}" for key, p in module.named_parameters(recurse=False)}
                continue
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
            module._forward_hooks_always_called.clear()
            self.calls.follow(module, name)
            prefix = f"{name}." if name else ""
            for registry in (module._parameters, module._buffers):
                for key, value in registry.items():
                    if value is not None:
                        registry[key] = self.create_proxy("get_attr", prefix + key, (), {})  # type: ignore[assignment]

    @staticmethod
    def prepare(model: nn.Module, names: dict[int, str]) -> None:
        for module in list(modules_of(model)):
            if is_leaf(module):
                module.__dict__["_tracer"], module.__dict__["_traced_as"] = [None], names[id(module)]
                module.__class__ = combined(_Leaf, type(module))

    def run(self) -> None:
        given = []
        for name, parameter in inspect.signature(self.root.forward).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is not parameter.empty:
                break  # takes its default, as in most calls
            given.append(self.create_proxy("placeholder", name, (), {}))
        self.graph.output(self.create_arg(self.root(*given)))

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node that knows the calls of modules that it is part of."""
        node = super().create_node(*args, **kwargs)
        node.meta["calls"] = self.calls.now
        node.meta["owner"] = node.target if node.op == "call_module" else self.calls.innermost
        if node.op == "get_attr":
            node.meta["state"] = str(node.target)
        return node

    def create_arg(self, a: Any) -> Any:
        """A tensor of the model as the attribute that it is."""
        name = self.held.get(id(a)) if isinstance(a, Tensor) else None
        return super().create_arg(a) if name is None else self.create_node("get_attr", name, (), {})
