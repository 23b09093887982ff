"""What somebody hands over as a model: checked, unwrapped, copied."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from pixelize.errors import ArgumentError, ConversionError
from pixelize.rewrites.state.modules import is_compiled, modules_of


def copy_model(model: nn.Module) -> nn.Module:
    """``copy.deepcopy``, also for models that hold tensors with a gradient history (old weight_norm after a
    forward does).
    """
    memo: dict[int, Any] = {}
    for module in modules_of(model):
        for value in module.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ConversionError(
            f"this {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); pass "
            "inplace=True"
        ) from error


def uncompiled(model: nn.Module) -> nn.Module:
    """What ``torch.compile`` was given, for what it returned; any other model itself."""
    return model._orig_mod if is_compiled(model) else model  # type: ignore[return-value]


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}, not a torch.nn.Module")
