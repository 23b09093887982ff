"""`revert`: a conversion that has not been trained, undone."""

from __future__ import annotations

from torch import nn

from pixelize.errors import PixelizeError
from pixelize.inheritance.record import (
    Record,
    converted_modules,
    forget,
    origin_now,
    record_of,
    unchanged_since,
)
from pixelize.rewrites import become, inline
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.splice import State
from pixelize.running.models import check_model, uncompiled


@all_or_nothing
def revert(model: nn.Module) -> nn.Module:
    """Undoes a conversion that has not been trained, in place: every module is again what it was. Returns
    ``model``.

    Raises PixelizeError, leaving the model as it was, if it was never converted, was loaded from a folder
    without its original weights, or was trained since (``pixelize.fold`` gives a trained layer's one plain
    ``nn.ConvTranspose2d``).
    """
    check_model(model)
    inner = uncompiled(model)
    converted = converted_modules(inner)
    if not converted:
        raise PixelizeError(
            f"this {type(model).__name__} has nothing to revert: it was not converted by this package"
        )
    origins = {name: _origin(name, module) for name, module in converted.items()}
    with Change(inner):
        for name, module in converted.items():
            become(module, origins[name])  # type: ignore[union-attr]
        inline(inner)
        forget(inner)
        return model


def _origin(name: str, module: nn.Module) -> State:
    record: Record = record_of(module)  # type: ignore[assignment]
    if record.origin is None:
        raise PixelizeError(
            f"{name}: its original weights are not at hand (the model was loaded); use pixelize.fold(model)"
        )
    if not unchanged_since(record, module):
        raise PixelizeError(
            f"{name}: it was trained since its conversion, which cannot be undone; use pixelize.fold(model), "
            "or build the original model again"
        )
    return origin_now(record, module)
