"""Running a model for its shapes alone: every tensor that it holds on the meta device, so that no arithmetic
is done and no weight is copied."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


@contextmanager
def weightless(model: nn.Module) -> Iterator[None]:
    """Within it the parameters, buffers and other tensors of ``model`` are on the meta device; afterwards
    each module is what it was, whatever its forward kept.

    A forward that looks at values, or mixes in tensors made elsewhere, raises within. Raises TypeError,
    changing nothing, for a model with scripted parts.
    """
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise TypeError("a scripted module's tensors live elsewhere: they could not be put back")
    former = [(module.__dict__, dict(module.__dict__), _containers(module.__dict__)) for module in modules]
    stand_ins: dict[int, Tensor] = {}  # shared tensors stay shared
    try:
        for module in modules:
            for registry in (module._parameters, module._buffers, module.__dict__):
                for name, value in registry.items():
                    if isinstance(value, Tensor):
                        registry[name] = stand_ins.setdefault(id(value), _on_meta(value))
        yield
    finally:
        for attributes, values, containers in former:
            _restore(attributes, values)
            for container, held in containers:
                _restore(container, held)


def shapes_of(inputs: Any) -> Any:
    """``inputs`` with every tensor, however deep, on the meta device."""
    return tree_map(lambda v: _on_meta(v) if isinstance(v, Tensor) else v, inputs)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _containers(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    # each container with what it holds: a forward may keep what it computed in a list or a dictionary. Those
    # of a kind of their own (diffusers' configuration) may refuse to be changed.
    held = [v for v in attributes.values() if type(v) in (dict, OrderedDict, list, set)]
    return [(value, value.copy() if value else None) for value in held]


def _restore(container: Any, held: Any) -> None:
    if container or held:
        container.clear()
    if held:
        (container.extend if isinstance(container, list) else container.update)(held)
