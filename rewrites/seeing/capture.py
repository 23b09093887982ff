"""Seeing what a model computes: a ladder of captures, best first, each giving one kind of graph.

Every rung returns a :class:`Capture`: an fx graph in whose nodes ``meta["owner"]`` is the qualified name of
the module that ran the operator, ``meta["calls"]`` the calls of modules that it was part of, and
``meta["val"]`` a tensor of the value's shape (on the meta device), where known.

All of them look at a copy of the model. None patches a class of torch, so that another thread's models run
on undisturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from pixelize.rewrites.seeing.apart import apart, copied_inputs
from pixelize.rewrites.seeing.record import record
from pixelize.rewrites.seeing.symbolic import symbolic
from pixelize.rewrites.state.modules import tensors_of


@dataclass(frozen=True, eq=False)
class Capture:
    """One rung's view of a model.

    ``name``: ``"graph"`` (a GraphModule's own), ``"record"`` (what a run on example inputs did),
    ``"symbolic"`` (what the forwards do whatever the input) or ``"modules"``. ``graph`` is None for the last,
    which sees no computation. ``notes`` says why each better rung failed.
    """

    name: str
    graph: fx.Graph | None
    notes: tuple[str, ...] = ()


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from a tensor, a tuple or list of arguments, or a dict of
    keywords."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def capture(model: nn.Module, example_inputs: Any = None) -> Capture:
    """The best view of ``model`` that can be had; never raises for a model that cannot be seen, never changes
    it."""
    notes: list[str] = []
    if any(is_lazy(p) for p in tensors_of(model)):
        return Capture(
            "modules", None, ("not captured: it has lazy modules; run it once to initialise them",)
        )
    rungs: list[tuple[str, Callable[[nn.Module], fx.Graph]]] = []
    if isinstance(model, fx.GraphModule) and (example_inputs is None or not _has_opaque_modules(model)):
        rungs.append(("graph", lambda copy: _own_graph(copy, example_inputs)))
    elif example_inputs is not None:
        rungs.append(("record", lambda copy: recorded(copy, example_inputs)))
    else:
        notes.append("no example inputs: only what symbolic tracing shows can be seen")
    if not isinstance(model, fx.GraphModule):
        rungs.append(("symbolic", symbolic))
    for name, rung in rungs:
        try:
            return Capture(name, apart(model, rung), tuple(notes))
        except Exception as error:  # a stranger's forward may raise anything
            notes.append(f"{name} failed: {_first_line(error)}")
    notes.append(
        "no computation could be captured: up-samplers that are no ConvTranspose modules are not seen"
    )
    return Capture("modules", None, tuple(notes))


def recorded(model: nn.Module, example_inputs: Any) -> fx.Graph:
    """What ``model`` runs on ``example_inputs``, on the meta device if it is there. Raises what the model
    raises."""
    inputs = copied_inputs(example_inputs)
    if any(t.is_meta for t in tensors_of(model)):
        inputs = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, inputs)
    return record(model, *arguments(inputs))


def _has_opaque_modules(model: fx.GraphModule) -> bool:
    """Whether a graph calls modules of somebody's own, whose forward it does not show."""
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    return any(not type(model.get_submodule(name)).__module__.startswith("torch.nn.") for name in called)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _own_graph(model: nn.Module, example_inputs: Any) -> fx.Graph:
    assert isinstance(model, fx.GraphModule)
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(model.graph, mapping)
    shapes: dict[fx.Node, Any] = {}
    if example_inputs is not None:
        args, kwargs = arguments(copied_inputs(example_inputs))
        interpreter = _Shapes(model)
        interpreter.run(*_in_order(model, args, kwargs))
        shapes = interpreter.shapes
    for old, new in mapping.items():
        new.meta["calls"] = (("", 0),)
        if old in shapes:
            new.meta["val"] = shapes[old]
        if new.op == "call_module":
            new.meta["owner"] = str(new.target)
        elif new.op == "get_attr":
            new.meta["state"] = str(new.target)
    return graph


def _in_order(model: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    names = [node.target for node in model.graph.nodes if node.op == "placeholder"]
    return [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shapes alone."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, its shape noted."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = torch.empty(value.shape, dtype=value.dtype, device="meta")
        return value
