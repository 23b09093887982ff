"""Recording what a model really runs: an fx graph of aten operators, for any model that runs at all.

Where ``torch.export`` gives up (data-dependent control flow, custom containers), the operators still pass
through the dispatcher one by one. They are written down as they come, each with the module that called it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sure: bool = False) -> fx.Graph:
    """Runs ``model`` once and returns the graph of the operators it ran.

    Nodes carry ``meta["owner"]`` (the innermost module's qualified name), ``meta["val"]`` (a meta tensor)
    and, where they are parameters or buffers, ``meta["state"]`` (their qualified name). Raises what the model
    raises; with ``sure`` ValueError where it writes into a part of a tensor, which the graph does not show.
    """
    recorder = _Recorder(model)
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(recorder.enter(name)))
        handles.append(module.register_forward_hook(recorder.leave(module), always_call=True))
    try:
        with recorder:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if sure and recorder.unseen is not None:
        raise ValueError(f"{recorder.unseen} writes into a tensor of which there are views")
    recorder.graph.output(None)
    return recorder.graph


def _opaque_dropout(x: Tensor) -> Tensor:
    raise NotImplementedError("a mark in a recorded graph, not to be run")


_opaque_dropout.__name__ = "dropout"


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.stack: list[str] = [""]
        self.state = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
        self.nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.shared: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensors that are views or have some
        self.unseen: str | None = None  # an operator that changes what other nodes stand for

    def enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self.stack.append(name)

        return hook

    def leave(self, module: nn.Module) -> Any:
        # In evaluation mode dropout leaves no trace, but in training its output is another thing than its
        # input.
        drops = isinstance(module, nn.Dropout | nn.AlphaDropout) and module.p > 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if drops and isinstance(output, Tensor):
                node = self.graph.call_function(_opaque_dropout, (self.node_of(output),))
                self.note(node, output)
            self.stack.pop()

        return hook

    def node_of(self, tensor: Tensor) -> fx.Node:
        node = self.nodes.get(tensor)
        if node is None:
            name = self.state.get(id(tensor))
            node = self.graph.create_node("placeholder", f"value_{len(self.graph.nodes)}")
            if name is not None:
                node.meta["state"] = name
            self.note(node, tensor)
        return node

    def note(self, node: fx.Node, tensor: Tensor) -> None:
        node.meta["owner"] = self.stack[-1]
        node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        self.nodes[tensor] = node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._watch(func, args, kwargs, result)
        inputs = torch.utils._pytree.tree_map(self._argument, (list(args), dict(kwargs)))
        node = self.graph.call_function(func, tuple(inputs[0]), inputs[1])
        node.meta["owner"] = self.stack[-1]
        if isinstance(result, Tensor):
            self.note(node, result)
        elif isinstance(result, tuple | list):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    picked = self.graph.call_function(_getitem, (node, i))
                    self.note(picked, item)
        return result

    def _watch(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        schema = func._schema
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        for argument in schema.arguments:
            value, alias = given.get(argument.name), argument.alias_info
            if not isinstance(value, Tensor) or alias is None:
                continue
            if not alias.is_write:  # a view
                for tensor in (value, *(result if isinstance(result, tuple | list) else (result,))):
                    self.shared[tensor] = True
            elif value in self.shared:
                self.unseen = schema.name

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node_of(value)
        return value if value is None or isinstance(value, int | float | bool | str) else str(value)


def _getitem(values: Any, index: int) -> Any:
    return values[index]


_getitem.__name__ = "getitem"
