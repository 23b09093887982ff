"""What somebody hands over as a model: checked, unwrapped, copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

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


_TOLD = (
    "{}, whose layers cannot be changed: take the Python model that was {}, fill it with the state dict of "
    "this one, and {} it afterwards"
)


def programs_in(model: nn.Module) -> dict[str, str]:
    """The outermost modules whose layers are compiled into a program, by name, each with what to do instead
    of changing it.
    """
    programs: dict[str, str] = {}
    for name, module in model.named_modules():
        if any(not above or name.startswith(f"{above}.") for above in programs):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            programs[name] = _TOLD.format("a TorchScript program", "scripted", "script")
        elif isinstance(module, fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            programs[name] = _TOLD.format("a program of torch.export", "exported", "export")
    return programs


def check_changeable(model: nn.Module) -> None:
    """Raises ArgumentError for what is a program as a whole."""
    if told := programs_in(model).get(""):
        raise ArgumentError(f"this {type(model).__name__} is {told}")
