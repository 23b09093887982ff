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

from pixelize.rewrites.seeing.calls import Calls
from pixelize.rewrites.seeing.given import read
from pixelize.rewrites.state.modes import SafeFunctionMode

_PLAIN = (int, float, bool, str, torch.memory_format, torch.dtype, torch.device, torch.layout)
# what the dispatcher shows in parts, or in evaluation mode not at all
_WHOLE = {
    "batch_norm",
    "layer_norm",
    "instance_norm",
    "repeat_interleave",
    "linear",
    "dropout",
    "dropout2d",
    "alpha_dropout",
    "feature_alpha_dropout",
}


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
    """Runs ``model`` once and returns the graph of the operators it ran.

    Nodes carry ``meta["owner"]`` (the innermost module's qualified name), ``meta["calls"]`` (the calls of
    modules that were going on, the outermost first: name and number of each), ``meta["val"]`` (a meta tensor)
    and, where they are parameters or buffers, ``meta["state"]`` (their qualified name). Raises what the model
    raises.
    """
    recorder = _Recorder(model)
    handles = []
    for name, module in model.named_modules():
        handles += recorder.calls.follow(module, name)
    try:
        with _Functions(recorder), recorder:
            read(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    recorder.graph.output(None)
    return recorder.graph


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.calls = Calls()
        self.state = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
        self.nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.shapes: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def whole(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        self.note(self._call(func, args, kwargs), result)

    def _call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        named = {key: self._argument(value) for key, value in kwargs.items()}
        return self.graph.call_function(func, tuple(map(self._argument, args)), named)

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
        self._place(node)
        kind = (tensor.shape, tensor.dtype)
        if kind not in self.shapes:
            self.shapes[kind] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        node.meta["val"] = self.shapes[kind]
        self.nodes[tensor] = node

    def _place(self, node: fx.Node) -> None:
        node.meta["owner"], node.meta["calls"] = self.calls.innermost, self.calls.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        node = self._call(func, args, kwargs)
        self._place(node)
        if isinstance(result, Tensor):
            self.note(node, result)
        elif isinstance(result, tuple | list):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    picked = self.graph.call_function(_getitem, (node, i))
                    self.note(picked, item)
        return result

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node_of(value)
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self._argument, value))
        return value if value is None or isinstance(value, _PLAIN) else str(value)


class _Functions(SafeFunctionMode):
    # In evaluation mode dropout leaves no trace, but in training its output is another thing than its input.

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _WHOLE and args and isinstance(result, Tensor):
            self.recorder.whole(func, args, kwargs or {}, result)
        return result


def _getitem(values: Any, index: int) -> Any:
    return values[index]


_getitem.__name__ = "getitem"
