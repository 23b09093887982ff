"""Runs that nobody asked for, on inputs that are a guess: bounded in what they may cost."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LARGEST = 2**29
"""Bytes that one value of such a run may take."""
MULTIPLY_ADDS = 2 * 10**12
"""What such a run may compute: up to a minute of a processor core."""

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


class CostlyError(Exception):
    """A run would take more memory or time than a guess is worth."""


class Bounded(TorchDispatchMode):
    """Ends a run before a product, an attention, a broadcast, a resize or a new tensor that would be of more
    than ``LARGEST`` bytes or bring the multiply-adds above ``MULTIPLY_ADDS``, and after any other operator
    that gave so much: raises CostlyError. The shapes alone tell.

    On the meta device nothing costs anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        if "meta" in {str(kwargs.get("device")), *(t.device.type for t in tensors)}:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else ""
        width = max((t.element_size() for t in tensors), default=4)
        self._check(_elements(func, name, tensors, args, kwargs) * width, _products(name, tensors))
        result = func(*args, **kwargs)
        if not getattr(func, "is_view", False):
            made = [v for v in tree_leaves(result) if isinstance(v, Tensor) and v.layout is torch.strided]
            taps = tensors[1][0].numel() if name == "convolution" else 0
            self._check(max((v.nbytes for v in made), default=0), taps * sum(v.numel() for v in made))
        return result

    def _check(self, size: int, multiply_adds: int) -> None:
        self.multiply_adds += multiply_adds
        if size > LARGEST:
            raise CostlyError(f"one value of it would take {size / 2**30:.1f} GiB")
        if self.multiply_adds > MULTIPLY_ADDS:
            raise CostlyError(f"it would take more than {MULTIPLY_ADDS:.0e} multiply-adds")


def _elements(func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> int:
    """Elements of an operator's result, as far as its arguments tell."""
    if name in _PRODUCTS:
        a, b = tensors[-2:]
        return a.numel() // max(a.shape[-1], 1) * b.shape[-1]
    if torch.Tag.pointwise in getattr(func, "tags", ()) and len(tensors) > 1:
        rank = max(t.dim() for t in tensors)
        shapes = [(1,) * (rank - t.dim()) + tuple(t.shape) for t in tensors]
        return prod(max(lengths) if min(lengths) else 0 for lengths in zip(*shapes, strict=True))
    schema = getattr(func, "_schema", None)
    if schema is None or getattr(func, "is_view", False):
        return 0
    given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
    if size := given.get("output_size"):
        return prod(tensors[0].shape[:2]) * prod(size) if tensors else 0
    if more := given.get("scale_factors") or given.get("repeats"):
        return int(tensors[0].numel() * prod(more)) if isinstance(more, list | tuple) and tensors else 0
    size = given.get("size")
    return prod(size) if isinstance(size, list | tuple) else 0


def _products(name: str, tensors: list[Tensor]) -> int:
    """Multiply-adds of a product of matrices or an attention."""
    if name in _PRODUCTS:
        a, b = tensors[-2:]
        return a.numel() * b.shape[-1]
    if name.startswith("_scaled_dot_product"):
        query, key, value = tensors[:3]
        return query.numel() // max(query.shape[-1], 1) * key.shape[-2] * (key.shape[-1] + value.shape[-1])
    return 0
