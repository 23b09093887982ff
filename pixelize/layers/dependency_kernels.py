"""What the layers are beside their base: the dependency kernels, their design, and the input gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.algebra.polyphase import Phase, Size
from pixelize.algebra.schedule import Schedule, make_schedule
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.layers.dependencies import sizes
from pixelize.rewrites.state.capturing import capturing


class PixelDependencies(_ConvNd):
    """The dependency part of a layer whose base is one of torch's convolutions, transposed or not."""

    dependency_kernel_size: Size
    dependency_groups: int
    schedule: str
    anchor: Phase  # the first phase
    plan: Schedule  # the stages in which the others are made
    dependency_kernels: nn.ParameterList
    kernel_size: Size
    stride: Size
    padding: Size  # type: ignore[assignment]  # "same" and "valid" are PixelConv's
    dilation: Size
    output_padding: Size

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises PixelizeError for a weight into which a norm was folded, as ``torch.nn.utils.fusion`` does:
        what the dependency kernels add would keep the norm's scales to itself."""
        if name == "weight" and isinstance(value, nn.Parameter) and self._is_rescaled(value):
            raise PixelizeError(
                f"a norm cannot be folded into the weight of a {type(self).__name__} whose dependency "
                "kernels are not zero: pixelize.fold(model) makes plain layers, which can then be fused"
            )
        super().__setattr__(name, value)

    def _is_rescaled(self, value: Tensor) -> bool:
        """Whether ``value`` is the present weight with its output channels scaled, each by another number,
        and there are dependency kernels that would have to be scaled too."""
        old, kernels = self._parameters.get("weight"), self._modules.get("dependency_kernels")
        if old is None or kernels is None or old.shape != value.shape or old.is_meta or value.is_meta:
            return False
        if capturing() or value is old or not any(bool(k.detach().any()) for k in kernels.parameters()):
            return False
        a, b = (self._by_output_channel(t.detach().to("cpu", torch.float32)) for t in (old, value))
        scale = (a * b).sum(1) / a.square().sum(1).clamp_min(torch.finfo(a.dtype).tiny)
        near = 16 * max(torch.finfo(old.dtype).eps, torch.finfo(value.dtype).eps)
        if bool((b - scale[:, None] * a).abs().max() > near * b.abs().max()):
            return False
        return bool(scale.max() - scale.min() > near * scale.abs().max())

    def _by_output_channel(self, weight: Tensor) -> Tensor:
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight.flatten(1)

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by ``torch.jit.script``, which has no such layers: raises PixelizeError."""
        raise PixelizeError(
            f"torch.jit.script cannot take a {type(self).__name__}: script pixelize.fold(model), or use "
            "torch.export or torch.jit.trace"
        )

    def period(self) -> Size:
        """How many phases the output has along each axis."""
        raise NotImplementedError

    def first(self) -> Phase:
        """The phase that is made first."""
        raise NotImplementedError

    def set_dependencies(self, kernel_size: int | Sequence[int], groups: int, schedule: str) -> None:
        """Gives the layer zero dependency kernels of that design, beside the weight it has.

        Raises ArgumentError for a design that the layer's channels or stride cannot have.
        """
        size = sizes(kernel_size, len(self.kernel_size), "dependency_kernel_size")
        if min(size) < 1:
            raise ArgumentError(f"dependency_kernel_size is {kernel_size}; it must be at least 1")
        if groups < 1 or self.out_channels % groups:
            raise ArgumentError(
                f"dependency_groups is {groups}, which does not divide the {self.out_channels} output "
                "channels; use a divisor of them"
            )
        anchor = self.first()
        plan = make_schedule(schedule, self.period(), size, anchor)
        self.dependency_kernel_size, self.dependency_groups, self.schedule = size, groups, schedule
        self.anchor, self.plan = anchor, plan
        like = raw_weight(self)
        self.dependency_kernels = nn.ParameterList(
            nn.Parameter(
                _zeros(stage.kernel_shape(self.out_channels, groups, size), like),
                requires_grad=like.requires_grad,
            )
            for stage in plan.stages
        )

    def reset_dependencies(self) -> None:
        """Draws the dependency kernels as ``nn.Conv2d`` draws its weights (for training from scratch)."""
        for kernel in self.dependency_kernels:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))

    def _design(self) -> dict[str, Any]:
        return {
            "dependency_groups": self.dependency_groups,
            "dependency_kernel_size": self.dependency_kernel_size,
            "schedule": self.schedule,
        }

    def extra_repr(self) -> str:
        """torch's line and the dependency design."""
        text = super().extra_repr() + f", dependency_kernel_size={self.dependency_kernel_size}"
        text += f", schedule={self.schedule}"
        return text + (f", dependency_groups={self.dependency_groups}" if self.dependency_groups != 1 else "")


class InputGated(PixelDependencies):
    """A layer all of whose phases see the input, those after the first through a gate: 1 (or None) is eq. 2,
    0 eq. 3.
    """

    input_gate: Tensor | None

    def set_dependencies(self, kernel_size: int | Sequence[int], groups: int, schedule: str) -> None:
        """See the base class; the input gate starts open."""
        super().set_dependencies(kernel_size, groups, schedule)
        self.register_buffer("input_gate", None, persistent=False)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of ``like``'s type, where it is. On a CPU the operating system supplies them as they are first
    used, which costs a twentieth of writing them, as ``torch.zeros`` does.
    """
    if like.device.type != "cpu" or type(like.detach()) is not Tensor:
        return torch.zeros(shape, device=like.device, dtype=like.dtype)
    untouched = torch.from_numpy(np.zeros(math.prod(shape) * like.itemsize, np.uint8))
    return untouched.view(like.dtype).view(shape)


def raw_weight(module: nn.Module) -> Tensor:
    """The parameter behind ``module.weight``: itself, or what a parametrization or an old norm hook computes
    it from.

    Reading ``module.weight`` instead would run the parametrization, which for spectral norm in training mode
    changes its state.
    """
    weights = [p for name, p in module.named_parameters() if "weight" in name]
    return weights[0]
