"""A model to look at: a copy of the caller's, so that whatever its forward keeps is kept by the copy."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pixelize.rewrites.seeing.shared_weights import Result, Written, copied_model, unwritten
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.modules import devices_of, is_compiled, modules_of, tensors_of
from pixelize.rewrites.state.random_state import random_state_kept

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def apart(model: nn.Module, look: Callable[[nn.Module], Result]) -> Result:
    """What ``look`` returns of a copy of ``model`` in evaluation mode, without gradients, whose hooks are
    off, but for those by which torch computes weights and those that belong to the model; random numbers go
    on afterwards as they would have.

    The copy has the model's own weights, until something is about to write to them: then it is begun again
    with a copy of everything; and again with gradients where a forward asks for some. Where a model cannot be
    copied it is the model itself, put back afterwards. Raises what ``look`` raises.
    """
    try:
        return _unshared_if_need_be(model, look, gradients=False)
    except RuntimeError as error:
        if "grad" not in str(error):
            raise
    return _unshared_if_need_be(model, look, gradients=True)


def _unshared_if_need_be(model: nn.Module, look: Callable[[nn.Module], Result], gradients: bool) -> Result:
    try:
        return _looked_at(model, look, gradients, shared=True)
    except Written:
        pass
    return _looked_at(model, look, gradients, shared=False)


def _looked_at(
    model: nn.Module, look: Callable[[nn.Module], Result], gradients: bool, shared: bool
) -> Result:
    with random_state_kept(devices_of(model)), torch.set_grad_enabled(gradients):
        try:
            copied = copied_model(model, shared)
        except Exception:  # a stranger's attributes may not be such as can be copied
            with Change(model, tensors_of(model)) as kept:
                try:
                    _quieten(model)
                    return look(model)
                finally:
                    kept.undo()
                    kept.forget()
        _quieten(copied)
        return unwritten(copied, partial(look, copied)) if shared else look(copied)


def copied_inputs(inputs: Any) -> Any:
    """``inputs`` with every tensor copied: a forward may write to what it is given."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, inputs)


def _quieten(model: nn.Module) -> None:
    off = _callers_hooks(model)
    for module in modules_of(model):
        module.training = False
        if is_compiled(module):  # what torch.compile returned
            module.__dict__["forward"] = module.get_submodule("_orig_mod").__call__
        for registry in _HOOKS:
            if hooks := module.__dict__.get(registry):
                kept = ((key, hook) for key, hook in hooks.items() if id(hook) not in off)
                module.__dict__[registry] = OrderedDict(kept)


def has_hooks_off(model: nn.Module) -> bool:
    """Whether there are hooks on ``model`` that are off while it is looked at."""
    return bool(_callers_hooks(model))


def _callers_hooks(model: nn.Module) -> set[int]:
    """The ids of the hooks that are no part of how ``model`` computes."""
    modules = list(modules_of(model))
    ids = {id(module) for module in modules}
    libraries = {type(module).__module__.partition(".")[0] for module in modules} - {"torch"}
    return {
        id(hook)
        for module in modules
        for registry in _HOOKS
        if not (registry == "_forward_pre_hooks" and _lacks_weight(module))
        for hook in module.__dict__.get(registry, {}).values()
        if not (_computes(hook) or _belongs(hook, ids, libraries))
    }


def _lacks_weight(module: nn.Module) -> bool:
    """Whether a layer's weight is no parameter: then what is called before its forward computes it."""
    kind = type(module)  # a class whose weight is a property (a converted convolution) has one
    return hasattr(kind, "reset_parameters") and not (
        hasattr(kind, "weight") or "weight" in module._parameters
    )


def _computes(hook: Any) -> bool:
    """Whether a hook is torch's own: those of weight_norm, spectral_norm and pruning compute weights."""
    made_by = getattr(hook, "__module__", None) or type(hook).__module__
    return made_by.startswith("torch.nn.")


def _belongs(hook: Any, modules: Collection[int], libraries: Collection[str]) -> bool:
    """Whether a hook is part of how a model computes, and not the caller's: a method of one of its modules,
    or made by an installed library that its modules come from (transformers collects hidden states so).
    """
    while isinstance(hook, partial):
        hook = hook.func
    if id(getattr(hook, "__self__", None)) in modules:
        return True
    made_by = getattr(hook, "__module__", None) or type(hook).__module__
    package = made_by.partition(".")[0]
    return package in libraries and _is_installed(package)


def _is_installed(package: str) -> bool:
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
