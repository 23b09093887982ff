"""Repairs that put other layers in a model: transposed convolutions with wider windows, or iPixelDCL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from pixelize.conversion.convert import convert
from pixelize.refit.calls import named_parameters
from pixelize.refit.widen import refittable, replace_module, widened, with_weight
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.modules import modules_of
from pixelize.running.models import copy_model

LAYERS = ("dcl", "3x3", "5x5", "ipixeldcl")


def with_other_layers(model: nn.Module, layer: str, inputs: Any) -> tuple[nn.Module, list[str]]:
    """A copy of the model with its strided transposed convolutions replaced, and their names."""
    work = copy_model(model)
    names = [name for name, found in up_samplers(work).items() if not refittable(found)]
    for name in names:
        plain = with_weight(found := work.get_submodule(name), found.weight)  # type: ignore[arg-type]
        replace_module(work, name, widened(plain, int(layer[0])) if layer in ("3x3", "5x5") else plain)
    if layer == "ipixeldcl" and names:
        convert(work, include=names, example_inputs=inputs, inplace=True)
    return work, names


def up_samplers(model: nn.Module) -> dict[str, _ConvTransposeNd]:
    """The strided transposed convolutions of a model by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _ConvTransposeNd) and max(module.stride) > 1
    }


def put_in(
    work: nn.Module, result: nn.Module, names: list[str], values: Mapping[str, Tensor], transaction: Change
) -> None:
    """In ``result``, the layers of ``work`` of these names that have new values: as a whole, unless they are
    as they were but for the values."""
    named = named_parameters(work)
    for name in names:
        own = {key: v for key, v in values.items() if key.startswith(f"{name}." if name else "")}
        layer, fitted = result.get_submodule(name), work.get_submodule(name)
        same = type(layer) is type(fitted) and not is_parametrized(layer)
        same = same and all(
            a.shape == b.shape for a, b in zip(layer.parameters(), fitted.parameters(), strict=True)
        )
        if not own or same:
            continue
        with torch.no_grad():
            for key, value in own.items():
                named[key].copy_(value)
        kept = next(layer.parameters())
        fitted.requires_grad_(kept.requires_grad)
        fitted = fitted.to(kept.device, kept.dtype)
        for module in modules_of(fitted):
            module.training = layer.training
        replace_module(result, name, fitted)
