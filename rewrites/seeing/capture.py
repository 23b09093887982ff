"""Seeing what a model computes: a ladder of captures, best first, each giving one kind of graph.

Every rung returns a :class:`Capture`: an fx graph in whose nodes ``meta["owner"]`` is the qualified name of
the module that ran the operator and ``meta["val"]`` a tensor of the value's shape (a meta or fake tensor),
where known.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from pixelize.rewrites.seeing.on_meta import shapes_of, weightless
from pixelize.rewrites.seeing.record import record
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.modules import modules_of


@dataclass(frozen=True, eq=False)
class Capture:
    """One rung's view of a model.

    ``name``: ``"graph"``, ``"export"``, ``"record"``, ``"symbolic"`` or ``"modules"``. ``graph`` is None for
    the last, which sees no computation. ``notes`` says why each better rung failed.
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
    if any(is_lazy(p) for p in model.parameters()):
        return Capture(
            "modules", None, ("not captured: it has lazy modules; run it once to initialise them",)
        )
    rungs: list[tuple[str, Callable[[], fx.Graph]]] = []
    if example_inputs is not None and not isinstance(model, fx.GraphModule):
        try:  # a quarter of an export's time; where it cannot be done, the other rungs' notes tell why
            with undisturbed(model):
                return Capture("record", _recorded_shapes(model, example_inputs))
        except Exception:  # a stranger's forward may raise anything
            pass
    own = isinstance(model, fx.GraphModule)
    if isinstance(model, fx.GraphModule) and (example_inputs is None or not _has_opaque_modules(model)):
        rungs.append(("graph", lambda: _own_graph(model, example_inputs)))
    elif example_inputs is not None:
        rungs.append(("export", lambda: _export(model, example_inputs)))
        rungs.append(("record", lambda: record(model, *arguments(example_inputs))))
    else:
        notes.append("no example inputs: only what symbolic tracing shows can be seen")
    if not own:
        rungs.append(("symbolic", lambda: _symbolic(model)))
    for name, rung in rungs:
        try:
            with undisturbed(model):
                return Capture(name, rung(), tuple(notes))
        except Exception as error:  # a stranger's forward may raise anything
            notes.append(f"{name} failed: {_first_line(error)}")
    notes.append(
        "no computation could be captured: up-samplers that are not ConvTranspose2d modules are not seen"
    )
    return Capture("modules", None, tuple(notes))


def _has_opaque_modules(model: fx.GraphModule) -> bool:
    """Whether a graph calls modules of somebody's own, whose forward it does not show."""
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    return any(not type(model.get_submodule(name)).__module__.startswith("torch.nn.") for name in called)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """:func:`~pixelize.rewrites.state.evaluation.evaluation`, quiet, and buffers are put back too."""
    buffers = [(module, dict(module._buffers)) for module in modules_of(model) if module._buffers]
    values = [(b, b.detach().clone()) for _, held in buffers for b in held.values() if b is not None]
    level = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        with ExitStack() as stack:
            silence = stack.enter_context(open(os.devnull, "w"))
            # torch.export prints the graph at which it gave up
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
            stack.enter_context(evaluation(model, seed=None))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, held in buffers:
            module._buffers.update(held)
        for buffer, value in values:
            buffer.data.copy_(value)
        logging.disable(level)


def recorded(model: nn.Module, example_inputs: Any) -> fx.Graph:
    """What ``model`` runs on ``example_inputs``: for shapes alone where that can be done, else on the
    numbers. Raises what the model raises, and leaves it as it was."""
    with undisturbed(model):
        try:
            return _recorded_shapes(model, example_inputs)
        except Exception:  # a forward that looks at values
            return record(model, *arguments(example_inputs))


def _recorded_shapes(model: nn.Module, example_inputs: Any) -> fx.Graph:
    # thousands of small objects in a row would have the garbage collector look through all there is, twice
    enabled = gc.isenabled()
    gc.disable()
    try:
        with weightless(model):
            return record(model, *arguments(shapes_of(example_inputs)))
    finally:
        if enabled:
            gc.enable()


def _export(model: nn.Module, example_inputs: Any) -> fx.Graph:
    args, kwargs = arguments(example_inputs)
    with _no_new_hooks():
        program = torch.export.export(model, args, kwargs, strict=False)
    signature = program.graph_signature
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            # a module's second call is named module@1
            node.meta["owner"] = ".".join(
                part.split("@")[0] for part in list(stack.values())[-1][0].split(".")
            )
        if node.op == "placeholder" and node.name in state:
            node.meta["state"] = state[node.name]
    return program.graph


@contextmanager
def _no_new_hooks() -> Iterator[None]:
    """Takes off what a failed export of torch 2.6 leaves in the process: a hook on assigned buffers, with
    which the model could not assign its own any more."""
    hooks = nn.modules.module._global_buffer_registration_hooks
    before = dict(hooks)
    try:
        yield
    finally:
        for key in [key for key in hooks if key not in before]:
            del hooks[key]


def _own_graph(model: fx.GraphModule, example_inputs: Any) -> fx.Graph:
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(model.graph, mapping)
    shapes: dict[fx.Node, Any] = {}
    if example_inputs is not None:
        args, kwargs = arguments(example_inputs)
        interpreter = _Shapes(model)
        interpreter.run(*_in_order(model, args, kwargs))
        shapes = interpreter.shapes
    for old, new in mapping.items():
        new.meta["origin"] = old
        if old in shapes:
            new.meta["val"] = shapes[old]
        _own(new)
    return graph


def _symbolic(model: nn.Module) -> fx.Graph:
    """The symbolic trace of the whole model, or else one graph of all its parts that can be traced."""
    graph = fx.Graph()
    _add_trace(graph, model, "")
    if not any(node.op.startswith("call") for node in graph.nodes):
        raise ValueError("neither the model nor any part of it can be traced")
    graph.output(None)
    return graph


def _add_trace(graph: fx.Graph, module: nn.Module, prefix: str) -> None:
    tracer = fx.Tracer()
    try:
        traced = tracer.trace(module)
    except Exception:  # a stranger's forward may do anything
        for name, child in module.named_children():
            if not tracer.is_leaf_module(child, name):
                _add_trace(graph, child, f"{prefix}{name}.")
        return
    mapping: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(traced, mapping)
    for node in mapping.values():
        if node.op in ("call_module", "get_attr"):
            node.target = prefix + str(node.target)
        _own(node)


def _own(node: fx.Node) -> None:
    if node.op == "call_module":
        node.meta["owner"] = str(node.target)
    elif node.op == "get_attr":
        node.meta["state"] = str(node.target)


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
