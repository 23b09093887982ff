"""A converted model's dependency kernels by themselves: kilobytes that turn the model it was converted from
into the trained one, as long as nothing else was trained.

    model = pixelize.convert(original, dependency_groups=-1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("dependency_kernels" in name)
    ...  # training, batch norm in evaluation mode
    safetensors.torch.save_file(pixelize.adapter_state_dict(model), "adapter.safetensors")

    model = pixelize.convert(original, dependency_groups=-1)
    pixelize.load_adapter(model, "adapter.safetensors")

(Not to be confused with :mod:`pixelize.adapters`, which knows third-party libraries.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pixelize.errors import LoadError, PixelizeError
from pixelize.layers.dependency_kernels import PixelDependencies
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change


@all_or_nothing
def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The dependency kernels of all pixel deconvolutions and convolutions in ``model`` by qualified name,
    those of shared layers once: detached and contiguous, otherwise as ``state_dict`` gives them. A compiled
    model's names are those of the model itself.

    Raises PixelizeError if there is none.
    """
    return {name: p.detach().contiguous() for name, p in _kernels(model).items()}


@all_or_nothing
def load_adapter(model: nn.Module, adapter: Mapping[str, Tensor] | str | os.PathLike[str]) -> nn.Module:
    """Gives ``model`` the dependency kernels that :func:`adapter_state_dict` took from one converted alike,
    or those in a safetensors file of them. Everything else in ``model`` stays; nothing can check that it is
    what it was where the kernels were trained.

    Returns ``model``.

    Raises:
        LoadError: the file cannot be read, or names or shapes differ from this model's. The model is then as
            it was.
        PixelizeError: the model has no such layer.
    """
    kernels = _kernels(model)
    if isinstance(adapter, Mapping):
        where, given = "the adapter", adapter
    else:
        where = os.fspath(adapter)
        try:
            given = load_file(where)
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{where}: not a readable safetensors file ({error})") from error
    for name in sorted(kernels.keys() | given.keys()):
        has, told = kernels.get(name), given.get(name)
        if not (isinstance(has, Tensor) and isinstance(told, Tensor)) or has.shape != told.shape:
            there, here = (
                str(tuple(t.shape)) if isinstance(t, Tensor) else "no such kernel" for t in (told, has)
            )
            raise LoadError(
                f"{name}: {there} in {where}, {here} in this {type(model).__name__}; convert it as the model "
                "was from which the adapter comes (the same layer, sites and dependency arguments)"
            )
        if has.is_meta or told.is_meta:
            raise LoadError(f"{name}: on the meta device there are no values; give both their weights first")
    with Change(model, kernels.values()), torch.no_grad():
        for name, parameter in kernels.items():
            parameter.copy_(given[name])
    return model


def _kernels(model: nn.Module) -> dict[str, nn.Parameter]:
    model = getattr(model, "_orig_mod", model)
    kernels = {
        f"{name}.{own}" if name else own: parameter
        for name, module in model.named_modules()
        if isinstance(module, PixelDependencies)
        for own, parameter in module.named_parameters()
        if own.startswith("dependency_kernels.")
    }
    if not kernels:
        raise PixelizeError(f"this {type(model).__name__} has no pixel deconvolution; convert it first")
    return kernels
