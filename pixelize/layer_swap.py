"""Putting another transposed convolution in the place of one of a model's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def refittable(layer: nn.ConvTranspose2d) -> str:
    """Why a module cannot be refitted, or an empty string."""
    if type(layer).forward is not nn.ConvTranspose2d.forward:
        return "its forward is its own"
    if layer.stride[0] != layer.stride[1]:
        return "its strides differ"
    if any(k < s for k, s in zip(layer.kernel_size, layer.stride, strict=True)):
        return "its kernel is smaller than its stride"
    if not parametrize.is_parametrized(layer, "weight") and "weight" not in layer._parameters:
        return "its weight is computed by a hook"
    if layer.weight.is_complex() or not layer.weight.is_floating_point():
        return "its weight is not of floating-point numbers"
    return ""


def unknowns(layer: nn.ConvTranspose2d) -> int:
    """Taps that one output channel has."""
    return layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups


def widened(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """The same layer with one more tap for each phase on every side, all zero: padding grows with the
    kernel."""
    (s, d) = layer.stride[0], layer.dilation
    if d != (1, 1):
        return copy.deepcopy(layer)
    wide = nn.ConvTranspose2d(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0] + 2 * s, layer.kernel_size[1] + 2 * s),
        (layer.stride[0], layer.stride[1]),
        (int(layer.padding[0]) + s, int(layer.padding[1]) + s),
        (layer.output_padding[0], layer.output_padding[1]),
        layer.groups,
        layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    wide.train(layer.training)
    with torch.no_grad():
        wide.weight.copy_(nn.functional.pad(layer.weight, (s, s, s, s)))
        if layer.bias is not None and wide.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide


def with_weight(layer: nn.ConvTranspose2d, weight: Tensor) -> nn.ConvTranspose2d:
    """A copy of the layer with this weight; a parametrization (spectral norm and the like) gives way to
    it."""
    new = copy.deepcopy(layer)
    if parametrize.is_parametrized(new, "weight"):
        parametrize.remove_parametrizations(new, "weight")
    with torch.no_grad():
        new.weight.copy_(weight)
    return new


class swapped:
    def __init__(self, model: nn.Module, name: str, layer: nn.Module) -> None:
        self.model, self.name, self.layer = model, name, layer

    def __enter__(self) -> None:
        self.kept = self.model.get_submodule(self.name)
        replace_module(self.model, self.name, self.layer)

    def __exit__(self, *_: object) -> None:
        replace_module(self.model, self.name, self.kept)


def replace_module(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the module called ``name``, wherever the model holds it."""
    kept = model.get_submodule(name)
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is kept:
                parent._modules[key] = layer
