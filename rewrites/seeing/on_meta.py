"""Running a model for its shapes alone: every tensor that it holds on the meta device, so that no arithmetic
is done and no weight is copied."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# what holds nothing that a forward would change
_PLAIN = (
    Tensor,
    str,
    bytes,
    int,
    float,
    complex,
    NoneType,
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    Logger,
)


@contextmanager
def weightless(model: nn.Module) -> Iterator[None]:
    """Within it the parameters, buffers and other tensors of ``model`` are on the meta device; afterwards
    each module is what it was, whatever its forward kept.

    A forward that looks at values, or mixes in tensors made elsewhere, raises within. Raises TypeError,
    changing nothing, for a model with scripted parts or with more objects than can be looked through.
    """
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise TypeError("a scripted module's tensors live elsewhere: they could not be put back")
    former = _held(model)
    stand_ins: dict[int, Tensor] = {}  # shared tensors stay shared
    try:
        for module in modules:
            registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
            for registry in registries:
                for name, value in registry.items():
                    if isinstance(value, Tensor):
                        registry[name] = stand_ins.setdefault(id(value), _on_meta(value))
        with _Norms():
            yield
    finally:
        for container, held in former:
            _restore(container, held)


def shapes_of(inputs: Any) -> Any:
    """``inputs`` with every tensor, however deep, on the meta device."""
    return tree_map(lambda v: _on_meta(v) if isinstance(v, Tensor) else v, inputs)


class _Norms(TorchFunctionMode):
    """A norm's result has its input's shape. On the meta device torch finds that out by a dozen functions in
    Python, which for a ResNet takes twice as long as all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.batch_norm, F.layer_norm) and not kwargs.get("training"):
            x: Tensor = args[0]
            given = [v.shape if isinstance(v, Tensor) else v for v in (*args[1:], *kwargs.values())]
            sizes = [tuple(v) for v in given if isinstance(v, tuple | list)]
            axes = x.shape[1:2] if func is F.batch_norm else x.shape[x.dim() - len(sizes[0]) :]
            if x.is_meta and all(size == axes for size in sizes):
                return torch.empty_like(x)
        return func(*args, **kwargs)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _held(model: nn.Module) -> list[tuple[Any, Any]]:
    """Every dictionary, list and set that can be reached from ``model``, each with a copy of what it holds.

    A forward may keep what it computed anywhere: in an attribute, in a cache, in a scheduler's attribute.
    Raises TypeError where there is too much to look through.
    """
    found: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if len(seen) > 500_000:
            raise TypeError("the model holds too many objects")
        if isinstance(value, dict | OrderedDict | list | set):
            # those of a kind of their own (diffusers' configuration) may refuse to be changed
            if type(value) in (dict, OrderedDict, list, set):
                found.append((value, value.copy() if value else None))
            stack += value.values() if isinstance(value, dict) else value
        elif isinstance(value, tuple):
            stack += value
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            stack.append(attributes)
    return found


def _restore(container: Any, held: Any) -> None:
    if container or held:
        container.clear()
    if held:
        (container.extend if isinstance(container, list) else container.update)(held)
