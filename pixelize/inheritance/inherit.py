"""Making a pixel deconvolution from a trained transposed convolution: which of its state the new layer takes
over.

An iPixelDCL takes all of it: the same Parameter objects, parametrizations, norm hooks and hooks, with zero
dependency kernels beside them, so that it computes the same function. A PixelDCL takes the taps of the
first phase, and its dependency kernels are fitted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from pixelize.inheritance.prior_fit import InputPrior, fit_from_prior
from pixelize.layers.pixel_conv import (
    PixelConv1d,
    PixelConv2d,
    PixelConv3d,
    PixelConvolution,
    iPixelConv1d,
    iPixelConv2d,
    iPixelConv3d,
)
from pixelize.layers.pixel_dcl import (
    PixelDCL1d,
    PixelDCL2d,
    PixelDCL3d,
    PixelDeconvolution,
    iPixelDCL1d,
    iPixelDCL2d,
    iPixelDCL3d,
)
from pixelize.rewrites import TransposedConv, geometry_of
from pixelize.rewrites.site import CONV_TRANSPOSE, Size
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.subclass import combined

LAYERS: dict[str, dict[int, type[PixelDeconvolution]]] = {
    "ipixeldcl": {1: iPixelDCL1d, 2: iPixelDCL2d, 3: iPixelDCL3d},
    "pixeldcl": {1: PixelDCL1d, 2: PixelDCL2d, 3: PixelDCL3d},
}
"""The classes that a ``layer`` argument stands for, by the number of axes."""
CONV_LAYERS: dict[str, dict[int, type[PixelConvolution]]] = {
    "ipixeldcl": {1: iPixelConv1d, 2: iPixelConv2d, 3: iPixelConv3d},
    "pixeldcl": {1: PixelConv1d, 2: PixelConv2d, 3: PixelConv3d},
}
"""Those that it stands for where it takes the place of a convolution."""
_PLAIN = (*CONV_TRANSPOSE.values(), nn.Conv1d, nn.Conv2d, nn.Conv3d)

_NORM_HOOKS = (WeightNorm, SpectralNorm, SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)


Convolution = TypeVar("Convolution", bound=_ConvNd)


@dataclass(frozen=True)
class Design:
    """The dependency part of a layer: window, groups and schedule, and after how many stages a PixelDCL stops
    seeing the input.

    ``input_stages``: 0 for PixelDCL itself; see :class:`pixelize.layers.pixel_dcl.PixelDCL`.
    """

    kernel_size: Size = (3, 3)
    groups: int = 1
    schedule: str = "paired"
    input_stages: int = 0


def inherit(
    module: _ConvTransposeNd, layer: str, design: Design, init: str, prior: InputPrior | None = None
) -> tuple[PixelDeconvolution, float | None, str | None]:
    """A new layer of the kind ``layer`` that computes what ``module`` does, or comes as close as it can;
    ``module`` is not changed.

    ``init``: ``"inherit"``, ``"random"``, or ``"zero"`` for the layer's structure alone, with zero dependency
    kernels, to be filled.
    ``prior``: what is known of the input, for the fit of a PixelDCL.

    Returns the layer, the expected relative error of the fit (0 where inheritance is exact, None where
    nothing is inherited) and a note on what could not be taken over.
    """
    note = None
    if layer == "ipixeldcl" and init != "random":
        new = _shell(module, LAYERS[layer][len(module.stride)])
        new.set_dependencies(design.kernel_size, design.groups, design.schedule)
        return new, 0.0, None
    plain = baked(module)
    if plain is not module:
        note = "its norm or parametrization was worked into the weight"
    new = _shell(plain, LAYERS[layer][len(plain.stride)])
    full = plain.weight
    frozen = not new.weight.requires_grad
    new.weight = nn.Parameter(
        new.weight.detach(), requires_grad=not frozen
    )  # nobody else's parameter is touched
    if new.bias is not None and init == "random":
        new.bias = nn.Parameter(new.bias.detach().clone(), requires_grad=new.bias.requires_grad)
    if init == "random":
        new.weight = nn.Parameter(new.weight.detach().clone(), requires_grad=not frozen)
        new.reset_parameters()
        full = new.weight
    new.set_dependencies(design.kernel_size, design.groups, design.schedule)
    if design.input_stages:
        new.set_input_stages(design.input_stages, full)
    if init == "random":
        new.reset_dependencies()
        return new, None, note
    if init == "zero":
        return new, None, note
    if plain.weight.device.type == "meta":
        return new, None, "on the meta device: no weights to fit the dependency kernels to"
    bias = None if plain.bias is None else plain.bias.detach()
    teacher = TransposedConv(geometry_of(plain), plain.weight.detach(), bias)
    kernels, error = fit_from_prior(
        teacher, new.plan, new.dependency_kernel_size, design.groups, design.input_stages, prior
    )
    with torch.no_grad():
        for parameter, kernel in zip(new.dependency_kernels, kernels, strict=True):
            parameter.copy_(kernel)
    return new, error, note


def inherit_convolution(
    module: _ConvNd, layer: str, design: Design, period: Sequence[int]
) -> PixelConvolution:
    """A new pixel convolution with the parameters of ``module``, a convolution, and zero dependency kernels:
    as an iPixelConv it computes the same. ``module`` is not changed.
    """
    new = _shell(module, CONV_LAYERS[layer][len(module.kernel_size)])
    new.set_period(tuple(period))
    new.set_dependencies(design.kernel_size, design.groups, design.schedule)
    return new


def baked(module: Convolution) -> Convolution:
    """``module`` with its weight as a plain parameter: without parametrizations and old norm hooks.
    ``module`` is not changed.
    """
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm | SpectralNorm)]
    if not hooks and not parametrize.is_parametrized(module):
        return module
    kind = type(module)
    new = _shell(module, kind)
    if parametrize.is_parametrized(module):
        new.__class__ = kind = kind.__mro__[1]
        # spectral norm takes a step of power iteration when its weight is read in training mode
        with evaluation(module):
            values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
        del new._modules["parametrizations"]
    else:
        values = {}
    for hook in hooks:
        name = hook.name
        if isinstance(hook, SpectralNorm):
            values[name] = hook.compute_weight(module, do_power_iteration=False).detach()
        else:
            values[name] = hook.compute_weight(module).detach()
        for suffix in ("_g", "_v", "_u", "_orig"):
            new._parameters.pop(name + suffix, None)
            new._buffers.pop(name + suffix, None)
        new.__dict__.pop(name, None)
    if hooks:
        for registry in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
            registered = module.__dict__[registry]
            kept = (
                (key, h)
                for key, h in registered.items()
                if not isinstance(getattr(h, "hook", h), _NORM_HOOKS)
            )
            new.__dict__[registry] = type(registered)(kept)
    trainable = any(p.requires_grad for n, p in module.named_parameters() if "weight" in n)
    for name, value in values.items():
        new._parameters[name] = nn.Parameter(value.clone(), requires_grad=trainable)
    return new


def _shell(module: nn.Module, layer: type, exactly: bool = False) -> Any:
    """A module of class ``layer`` with ``module``'s state: the same tensors, hooks and attributes, its own
    registries.
    """
    state = dict(module.__dict__)
    for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        state[registry] = copy.copy(state[registry])
    kind = layer if exactly or layer is type(module) else _class_for(type(module), layer)
    new: Any = object.__new__(kind)
    new.__dict__.update(state)
    return new


def _class_for(origin: type, layer: type) -> type:
    """``layer`` itself for torch's own class; for a subclass, a class that is both, so that its methods
    stay.

    A subclass with a ``forward`` of its own comes first (it calls ``super().forward``, which is then the
    layer's).
    """
    if origin in _PLAIN or issubclass(origin, LazyModuleMixin):
        return layer
    if "parametrizations" in vars(origin) or origin.__name__.startswith("Parametrized"):
        base = _class_for(origin.__mro__[1], layer)
        body = {
            k: v
            for k, v in vars(origin).items()
            if k not in ("__dict__", "__weakref__", "__doc__", "__module__")
        }
        return type(f"Parametrized{base.__name__}", (base,), body)
    own = takewhile(lambda cls: cls not in _PLAIN, origin.__mro__)
    own_forward = any("forward" in vars(cls) for cls in own)
    first, second = (origin, layer) if own_forward else (layer, origin)
    return combined(first, second, origin)


def reclass(module: nn.Module, old: type, new: type) -> Any:
    """``module``'s state in a class that is ``new`` where its own is ``old``; a user's subclass in between
    stays.
    """
    kind = type(module)
    if kind is not old and "_combined" in vars(kind):
        first, second, like = vars(kind)["_combined"]
        kind = combined(new if first is old else first, new if second is old else second, like)
    elif kind is not old:
        kind = type(
            kind.__name__, tuple(new if base is old else base for base in kind.__bases__), dict(vars(kind))
        )
    else:
        kind = new
    return _shell(module, kind, exactly=True)


def effective_weight(module: _ConvNd) -> Tensor:
    """The weight that ``module`` computes with, parametrizations and norm hooks included, without side
    effects.
    """
    return baked(module).weight.detach()
