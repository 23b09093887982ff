"""What somebody hands over as a model: checked, unwrapped, copied."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixelize.errors import ArgumentError, ConversionError
from pixelize.rewrites.seeing.shared_weights import copied_model
from pixelize.rewrites.state.modules import is_compiled


def copy_model(model: nn.Module) -> nn.Module:
    """``copy.deepcopy``, also for models that hold tensors with a gradient history (old weight_norm after a
    forward does).

    Raises ConversionError for a model that cannot be copied.
    """
    try:
        return copied_model(model)
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
