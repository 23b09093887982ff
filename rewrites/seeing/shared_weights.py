"""A copy of a model that shares the model's weights for as long as nobody writes to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixelize.rewrites.state.modes import SafeFunctionMode
from pixelize.rewrites.state.modules import tensors_of

Result = TypeVar("Result")
_POINTERS = frozenset(
    getattr(Tensor, name)
    for name in ("numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__")
)
"""What gives memory through which torch sees no write."""


class Written(BaseException):
    """Weights that a copy shares were about to be written to; no stranger's ``except Exception`` ends it."""


def copied_model(model: nn.Module, shared: bool = False) -> nn.Module:
    """``copy.deepcopy``, also of a model that holds values with a gradient history (what a forward kept).

    ``shared``: with parameters of its own that have the memory of the model's. Raises what copying raises.
    """
    memo: dict[int, Any] = {}
    if shared:
        memo = {id(p): nn.Parameter(p.data, p.requires_grad) for p in tensors_of(model) if _is_plain(p)}
    with _Copying():
        return copy.deepcopy(model, memo)


def unwritten(model: nn.Module, work: Callable[[], Result]) -> Result:
    """What ``work()`` returns, if it writes to no parameter of ``model``.

    Raises Written before the first write, and whatever ``work`` raises.
    """
    guard = _Guard(model)
    try:
        with _Pointers(guard), guard:
            result = work()
    except Exception:  # torch makes errors of its own of what is raised inside of it
        guard.check()
        raise
    finally:
        guard.memory = set()  # an interrupt may leave the modes on
    guard.check()
    return result


def _is_plain(value: Tensor) -> bool:
    return type(value) is nn.Parameter


class _Guard(TorchDispatchMode):
    """Lets no operator write to the memory of a model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tripped = False
        self.memory = {p.untyped_storage()._cdata for p in tensors_of(model) if _is_plain(p)}

    def check(self) -> None:
        if self.tripped:
            raise Written

    def holds(self, value: Any) -> bool:
        """Whether a value is in the memory of a parameter."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return False
        return value.untyped_storage()._cdata in self.memory

    def refuse(self, values: Any) -> None:
        if any(self.holds(value) for value in tree_leaves(values)):
            self.tripped = True
            raise Written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # operators of higher order have none
        if schema is not None and schema.is_mutable:
            named = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
            written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
            self.refuse([named.get(name) for name in written])
        return func(*args, **kwargs)


class _Pointers(SafeFunctionMode):
    """Gives nobody a pointer to the memory that a guard keeps."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard = guard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _POINTERS:
            self.guard.refuse(args[:1])
        return func(*args, **(kwargs or {}))


class _Copying(SafeFunctionMode):
    # torch copies leaves only
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            value, memo = args
            memo[id(value)] = made = value.detach().clone()
            return made
        return func(*args, **(kwargs or {}))
