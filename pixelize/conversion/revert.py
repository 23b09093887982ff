"""`revert`: a conversion that has not been trained, undone."""

from __future__ import annotations

from torch import nn

from pixelize.errors import PixelizeError
from pixelize.inheritance.record import Record, converted_modules, forget, record_of, unchanged_since
from pixelize.rewrites import become
from pixelize.rewrites.state.change import change
from pixelize.rewrites.state.splice import State
from pixelize.running.models import check_model, uncompiled


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
    with change(inner):
        for name, module in converted.items():
            become(module, _moved(origins[name], record_of(module).inherited, module))  # type: ignore[union-attr]
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
    return record.origin


def _moved(origin: State, inherited: frozenset[str], module: nn.Module) -> State:
    """The state before the conversion, with the device, the type and the mode that the module has now."""
    kind, held = origin
    state = dict(held)
    like = next(module.parameters())
    for registry in ("_parameters", "_buffers"):
        state[registry] = dict(held[registry])
        for key, value in held[registry].items():
            if value is None:
                continue
            if key in inherited:  # the same tensor, wherever it was moved since
                state[registry][key] = module.__dict__[registry][key]
            elif value.device != like.device or value.dtype != like.dtype:
                value.data = value.data.to(like.device, like.dtype if value.is_floating_point() else None)
    for key, child in held["_modules"].items():
        if child is not None and module._modules.get(key) is not child:
            child.to(like.device, like.dtype)
    state["training"] = module.training
    return kind, state
