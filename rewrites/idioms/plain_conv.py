"""Convolutions that do what their attributes tell, and no more: only those are rewritten."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
INSTANCE_FORWARD = (
    "its forward was set on the instance, as accelerate's hooks do: take them off "
    "(accelerate.hooks.remove_hook_from_module), convert, and put them on again"
)
PRUNED = "pruned: make that permanent first (torch.nn.utils.prune.remove), then convert"


def conv_refusal(module: _ConvNd) -> str | None:
    """Why a convolution that reads a resized image cannot become a transposed one, or None if it can."""
    reason = own_refusal(module)
    if reason:
        return reason
    if any(c != 1 for c in module.stride):
        return f"the convolution has stride {tuple(module.stride)}"
    taken = {"layer", "skip", "options", "factor", "rest", "inverse", "places", "phase_bias"}
    if clash := taken & {*module.__dict__, *module._modules, *module._parameters, *dir(type(module))}:
        return f"its attribute {min(clash)!r} has the name of one that its replacement needs"
    return None


def own_refusal(module: _ConvNd) -> str | None:
    """Why a convolution does something else than its attributes tell, or None if it does not."""
    kind = type(module)
    if "forward" in module.__dict__:
        return INSTANCE_FORWARD
    if "_conv_forward" in module.__dict__:
        return "its _conv_forward was set on the instance, and does something of its own"
    plain = plain_kind(module)
    if kind.forward is not plain.forward or kind._conv_forward is not plain._conv_forward:  # type: ignore[attr-defined]
        return f"{kind.__name__} has a forward of its own, not nn.{plain.__name__}'s"
    if prune.is_pruned(module):
        return PRUNED
    if not parametrize.is_parametrized(module) and "weight" not in module._parameters:
        norms = [h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm | SpectralNorm)]
        if not norms:
            return "its weight is no parameter, and what computes it is not known"
    c_in, c_out, groups = module.in_channels, module.out_channels, module.groups
    if tuple(module.weight.shape) != (c_out, c_in // groups, *module.kernel_size):
        return f"its weight has the shape {tuple(module.weight.shape)}, which its attributes do not tell"
    return None


def plain_kind(module: _ConvNd) -> type[nn.Module]:
    """Which of torch's convolutions a module is."""
    return next(kind for kind in CONVOLUTIONS if isinstance(module, kind))


def own_padding(module: _ConvNd) -> tuple[int, ...] | None:
    """The padding in numbers; None for ``padding="same"`` with an even kernel, which pads one side more."""
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple(t // 2 for t in total) if all(t % 2 == 0 for t in total) else None
    return tuple(map(int, module.padding))


def has_one_tap(module: nn.Module) -> bool:
    """Whether a module is a convolution that mixes no pixels."""
    return isinstance(module, CONVOLUTIONS) and all(k == 1 for k in module.kernel_size)
