"""`harden`: an iPixelDCL whose gate is closed becomes the PixelDCL that it then is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from pixelize.errors import PixelizeError
from pixelize.inheritance.inherit import CONV_LAYERS, LAYERS, baked, reclass
from pixelize.inheritance.record import record_of, remember
from pixelize.layers.dependency_kernels import InputGated
from pixelize.layers.gate import gate_of
from pixelize.rewrites import become, state_of
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change

HARDENED: dict[type[nn.Module], type[nn.Module]] = {
    gated: layers["pixeldcl"][n]
    for layers in (LAYERS, CONV_LAYERS)
    for n, gated in layers["ipixeldcl"].items()
}


@all_or_nothing
def harden(model: nn.Module) -> nn.Module:
    """Makes every iPixelDCL whose gate is 0 the PixelDCL that it then is, in place: its input kernels are
    dropped. Likewise every iPixelConv a PixelConv, with all its taps.

    Returns ``model``. Raises PixelizeError, leaving the model as it was, if a gate is not 0 or there is no
    iPixelDCL.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, InputGated)}
    if not layers:
        raise PixelizeError(f"this {type(model).__name__} has no iPixelDCL to harden")
    for name, layer in layers.items():
        if gate_of(layer) != 0.0:
            raise PixelizeError(
                f"{name}: its input gate is {gate_of(layer):g}; anneal it to 0 first "
                "(pixelize.set_input_gate(model, 0))"
            )
    with Change(model):
        hardened = [(layer, _hardened(layer)) for layer in layers.values()]
        for layer, new in hardened:
            become(layer, state_of(new))
        return model


def _hardened(layer: Any) -> nn.Module:
    plain = baked(layer)
    kernels = plain.dependency_kernels
    old = next(kind for kind in HARDENED if isinstance(plain, kind))
    new = reclass(plain, old, HARDENED[old])
    new.weight = nn.Parameter(plain.weight.detach(), requires_grad=plain.weight.requires_grad)
    new.set_dependencies(layer.dependency_kernel_size, layer.dependency_groups, layer.schedule)
    new.dependency_kernels = kernels
    del new._buffers["input_gate"]
    record = record_of(new)
    if record is not None:
        remember(new, replace(record, layer="pixeldcl", origin=None))
    return new
