"""Between PixelDCL and iPixelDCL: :class:`PartialPixelDCL2d`, in which only the phases of the first few
stages see the input.

Gao et al. remove "such dependencies for some intermediate feature maps"; PixelDCL removes the input from
all but the first. How many phases can do without it is a question for each layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.algebra.polyphase import Phase, axis_phases, phase_weight
from pixelize.algebra.schedule import Schedule
from pixelize.errors import ArgumentError
from pixelize.layers.functional import dependency, first_phase
from pixelize.layers.interleave import interleave
from pixelize.layers.pixel_dcl import PixelDCL2d

Pair = tuple[int, int]

# symbolic tracing keeps the layer as one node, as it does the other two
torch.fx.wrap("partial_pixel_dcl2d")


class PartialPixelDCL2d(PixelDCL2d):
    """PixelDCL whose first phase and the phases of the first ``input_stages`` stages see the input; all see
    the phases before them.

    With ``input_stages=0`` it is PixelDCL (eq. 3), with as many as the schedule has stages iPixelDCL (eq.
    2). ``weight`` holds the first phase's taps, ``input_kernels`` those of the other phases that see the
    input, each (C_in, C_out/groups, h, w).

    Arguments, shapes and errors are otherwise those of :class:`pixelize.PixelDCL2d`; ArgumentError for
    ``input_stages`` that the schedule does not have.
    """

    input_stages: int = 0
    input_kernels: nn.ParameterList

    def __init__(self, *args: Any, input_stages: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        full = torch.empty(
            self.in_channels, self.out_channels // self.groups, *self.kernel_size,
            device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        nn.init.kaiming_uniform_(full, a=math.sqrt(5))
        self.set_input_stages(input_stages, full)

    def set_input_stages(self, stages: int, weight: Tensor) -> None:
        """Lets the phases of the first ``stages`` stages see the input with their taps of ``weight`` (C_in,
        C_out/groups, k_h, k_w).
        """
        if not 0 <= stages <= len(self.plan.stages):
            raise ArgumentError(
                f"input_stages is {stages}; schedule {self.schedule!r} with stride {self.stride} has "
                f"{len(self.plan.stages)} stages after the first phase"
            )
        self.input_stages = stages
        self.input_kernels = nn.ParameterList(
            nn.Parameter(
                phase_weight(weight.detach(), *self._axes(phase)).contiguous(),
                requires_grad=self.weight.requires_grad,
            )
            for phase in self.further_phases()
        )

    def further_phases(self) -> list[Phase]:
        """The phases beyond the first that see the input: those with taps among the targets of the first
        ``input_stages`` stages.
        """
        targets = [t for stage in self.plan.stages[: self.input_stages] for t in stage.targets]
        return [t for t in targets if all(axis.taps for axis in self._axes(t))]

    def _axes(self, phase: Phase) -> Any:
        geometry = zip(self.kernel_size, self.stride, self.padding, self.dilation, phase, strict=True)
        return [axis_phases(k, s, p, d)[a] for k, s, p, d, a in geometry]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Up-samples ``input``; ``output_size`` settles the size where several are possible, as in torch."""
        op = self._sized(input, output_size)
        size = tuple(
            (input.shape[i - 2] - 1) * self.stride[i]
            - 2 * self.padding[i]
            + self.dilation[i] * (self.kernel_size[i] - 1)
            + op[i]
            + 1
            for i in (0, 1)
        )
        return partial_pixel_dcl2d(
            input,
            input_kernels_of(self),
            list(self.dependency_kernels),
            self.bias,
            (self.kernel_size, self.stride, self.padding, self.dilation, self.groups),
            (size[0], size[1]),
            self.plan,
            self.out_channels,
            self.dependency_groups,
        )

    def extra_repr(self) -> str:
        """PixelDCL2d's line and how many stages see the input."""
        return super().extra_repr() + f", input_stages={self.input_stages}"


def input_kernels_of(layer: PixelDCL2d) -> dict[Phase, Tensor]:
    """The phases of a layer that see the input, the first one first, each with its taps (C_in,
    C_out/groups, h, w).
    """
    kernels = {layer.anchor: layer.weight}
    if isinstance(layer, PartialPixelDCL2d):
        kernels.update(zip(layer.further_phases(), layer.input_kernels, strict=True))
    return kernels


def partial_pixel_dcl2d(
    input: Tensor,
    input_kernels: dict[Phase, Tensor],
    dependency_kernels: list[Tensor],
    bias: Tensor | None,
    geometry: tuple[Pair, Pair, Pair, Pair, int],
    size: Pair,
    plan: Schedule,
    channels: int,
    dependency_groups: int,
) -> Tensor:
    """The functional form: ``geometry`` is (kernel_size, stride, padding, dilation, groups), ``size`` that
    of the output.
    """
    kernel_size, stride, padding, dilation, groups = geometry
    growth = (-(-size[0] // stride[0]) - input.shape[-2], -(-size[1] // stride[1]) - input.shape[-1])
    phases = {
        a: first_phase(input, w, kernel_size, stride, padding, dilation, groups, growth, a)
        for a, w in input_kernels.items()
    }
    for stage, kernel in zip(plan.stages, dependency_kernels, strict=True):
        for target, part in dependency(stage, kernel, phases, channels, dependency_groups).items():
            phases[target] = phases[target] + part if target in phases else part
    return interleave(phases, stride, size=size, bias=bias)
