"""Putting another transposed convolution in the place of one of a model's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pixelize.layers.pixel_dcl import PixelDCL, iPixelDCL


def refittable(layer: nn.ConvTranspose2d) -> str:
    """Why a module can neither be widened nor be helped without data, or an empty string."""
    if isinstance(layer, iPixelDCL | PixelDCL):
        return "its phases depend on each other: that needs data, and its own taps"
    if type(layer).forward is not nn.ConvTranspose2d.forward:
        return "its forward is its own"
    if not parametrize.is_parametrized(layer, "weight") and "weight" not in layer._parameters:
        return "its weight is computed by a hook"
    if layer.weight.is_complex() or not layer.weight.is_floating_point():
        return "its weight is not of floating-point numbers"
    return ""


def widened(layer: nn.ConvTranspose2d, window: int) -> nn.ConvTranspose2d:
    """The same layer with ``window`` x ``window`` taps for each phase, the new ones zero; as it is where it
    has wider ones already, dilation, or an output other than stride times its input.
    """
    stride, radius = layer.stride, window // 2
    padding = tuple(s * radius for s in stride)
    kernel = tuple(s * window for s in stride)
    before = [padding[n] - int(layer.padding[n]) for n in (0, 1)]
    after = [kernel[n] - layer.kernel_size[n] - before[n] for n in (0, 1)]
    whole = all(
        layer.kernel_size[n] + layer.output_padding[n] - 2 * int(layer.padding[n]) == stride[n]
        for n in (0, 1)
    )
    if not whole or min(*before, *after) < 0 or layer.dilation != (1, 1):
        return layer
    wide = nn.ConvTranspose2d(
        layer.in_channels,
        layer.out_channels,
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        groups=layer.groups,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    wide.train(layer.training)
    with torch.no_grad():
        wide.weight.copy_(nn.functional.pad(layer.weight, (before[1], after[1], before[0], after[0])))
        if layer.bias is not None and wide.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide


def with_weight(layer: nn.ConvTranspose2d, weight: Tensor) -> nn.ConvTranspose2d:
    """A copy of the layer with this weight; a parametrization (spectral norm and the like) gives way to
    it."""
    new = copy.deepcopy(layer)
    if parametrize.is_parametrized(new, "weight"):
        # removing takes the weight out of the class, which a copy shares with its original
        own = {k: v for k, v in vars(type(new)).items() if k not in ("__dict__", "__weakref__")}
        new.__class__ = type(type(new).__name__, type(new).__bases__, own)
        trained = any(p.requires_grad for p in new.get_submodule("parametrizations.weight").parameters())
        parametrize.remove_parametrizations(new, "weight")
        # of one computed from several that are frozen, torch leaves a plain tensor
        new.weight = nn.Parameter(new.weight.detach(), trained)
    with torch.no_grad():
        new.weight.copy_(weight)
    return new


def replace_module(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the module called ``name``, wherever the model holds it."""
    kept = model.get_submodule(name)
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is kept:
                parent._modules[key] = layer
