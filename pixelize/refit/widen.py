"""Putting another transposed convolution in the place of one of a model's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from pixelize.layers.pixel_dcl import PixelDCL, iPixelDCL
from pixelize.rewrites.site import CONV_TRANSPOSE


def refittable(layer: _ConvTransposeNd) -> str:
    """Why a module can neither be widened nor be helped without data, or an empty string."""
    if isinstance(layer, iPixelDCL | PixelDCL):
        return "its phases depend on each other: that needs data, and its own taps"
    if type(layer).forward is not CONV_TRANSPOSE[len(layer.kernel_size)].forward:
        return "its forward is its own"
    if not parametrize.is_parametrized(layer, "weight") and "weight" not in layer._parameters:
        return "its weight is computed by a hook"
    if layer.weight.is_complex() or not layer.weight.is_floating_point():
        return "its weight is not of floating-point numbers"
    return ""


def widened(layer: _ConvTransposeNd, window: int) -> _ConvTransposeNd:
    """The same layer with ``window`` taps along each axis for each phase, the new ones zero; as it is where
    it has wider ones already, dilation, or an output other than stride times its input.
    """
    stride, axes = layer.stride, range(len(layer.stride))
    padding = tuple(s * (window // 2) for s in stride)
    kernel = tuple(s * window for s in stride)
    before = [padding[n] - int(layer.padding[n]) for n in axes]
    after = [kernel[n] - layer.kernel_size[n] - before[n] for n in axes]
    whole = all(
        layer.kernel_size[n] + layer.output_padding[n] - 2 * int(layer.padding[n]) == stride[n] for n in axes
    )
    if not whole or min(*before, *after) < 0 or max(layer.dilation) > 1:
        return layer
    wide: _ConvTransposeNd = CONV_TRANSPOSE[len(axes)](
        layer.in_channels,
        layer.out_channels,
        kernel,
        stride,
        padding,
        groups=layer.groups,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    wide.train(layer.training)
    with torch.no_grad():
        pad = [n for axis in reversed(axes) for n in (before[axis], after[axis])]
        wide.weight.copy_(nn.functional.pad(layer.weight, pad))
        if layer.bias is not None and wide.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide


def with_weight(layer: _ConvTransposeNd, weight: Tensor) -> _ConvTransposeNd:
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
