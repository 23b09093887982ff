"""The tensors in what a model returns, and how far two outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.rewrites.state.precision import float64


def tensors(value: Any) -> list[Tensor]:
    """All floating-point tensors in a model's output, in order: through lists, mappings, dataclasses and
    plain objects.
    """
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors(v)]
    if is_dataclass(value) and not isinstance(value, type):
        return [t for f in fields(value) for t in tensors(getattr(value, f.name))]
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return [t for v in vars(value).values() for t in tensors(v)]
    return []


def share_not_finite(value: Any) -> float:
    """Of the values in a model's output the share that is NaN or infinite; 0 where there are none."""
    values = tensors(value)
    bad = sum(int((~float64(t.detach()).isfinite()).sum()) for t in values)
    return bad / max(1, sum(t.numel() for t in values))


def parameter_not_finite(model: nn.Module) -> str | None:
    """The name of a parameter that holds NaN or infinity, if there is one."""
    return next((n for n, p in model.named_parameters() if not p.is_meta and share_not_finite(p)), None)


def relative_error(before: Any, after: Any) -> float:
    """max |after - before| / max |before| over all floating-point tensors of two outputs; inf where shapes
    differ.
    """
    a, b = tensors(before), tensors(after)
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    largest = max(
        (float(float64(x.detach()).abs().nan_to_num(0, 0, 0).max()) for x in a if x.numel()), default=0.0
    )
    difference = 0.0
    for x, y in zip(a, b, strict=True):
        if x.numel():
            x, y = float64(x.detach()), float64(y.detach())
            gap = (x - y).abs()
            same = (x == y) | (x.isnan() & y.isnan())
            difference = max(
                difference,
                float(torch.where(same, torch.zeros_like(gap), gap).nan_to_num(float("inf")).max()),
            )
    return difference / largest if largest > 0 else difference
