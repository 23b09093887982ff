"""The layers of Gao et al., *Pixel Deconvolutional Networks*: :class:`iPixelDCL2d` (eq. 2) and
:class:`PixelDCL2d` (eq. 3).

Both take the place of ``nn.ConvTranspose2d``: the same constructor arguments, shapes and ``forward(input,
output_size=None)``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pixelize.algebra.polyphase import Phase, anchor_phase, axis_phases
from pixelize.algebra.schedule import Schedule, make_schedule
from pixelize.errors import ArgumentError
from pixelize.layers.functional import ipixel_dcl2d, pixel_dcl2d

# symbolic tracing keeps each layer as one node: what is inside depends on sizes, which a trace would freeze
torch.fx.wrap("ipixel_dcl2d")
torch.fx.wrap("pixel_dcl2d")


class _PixelDeconvolution2d(nn.ConvTranspose2d):
    """What the two layers share: the constructor, the schedule and the dependency kernels."""

    dependency_kernel_size: tuple[int, int]
    dependency_groups: int
    schedule: str
    anchor: Phase  # the first phase
    plan: Schedule  # the stages in which the others are made
    dependency_kernels: nn.ParameterList
    # nn.Module's annotations are variadic tuples; these are pairs
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    output_padding: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        dependency_kernel_size: int | tuple[int, int] = 3,
        dependency_groups: int = 1,
        schedule: str = "paired",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.set_dependencies(dependency_kernel_size, dependency_groups, schedule)
        self.reset_dependencies()

    def set_dependencies(self, kernel_size: int | tuple[int, int], groups: int, schedule: str) -> None:
        """Gives the layer zero dependency kernels of that design, beside the weight it has.

        Raises ArgumentError for a design that the layer's channels or stride cannot have.
        """
        size = (
            (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])
        )
        if min(size) < 1:
            raise ArgumentError(f"dependency_kernel_size is {kernel_size}; it must be at least 1")
        if groups < 1 or self.out_channels % groups:
            raise ArgumentError(
                f"dependency_groups is {groups}, which does not divide the {self.out_channels} output "
                "channels; "
                "use a divisor of them"
            )
        anchor = anchor_phase(self.kernel_size, self.stride, self.padding, self.dilation)
        plan = make_schedule(schedule, self.stride, size, anchor)
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

    def _sized(self, input: Tensor, output_size: list[int] | None) -> tuple[int, int]:
        stride, padding, kernel, dilation = map(
            list, (self.stride, self.padding, self.kernel_size, self.dilation)
        )
        found = self._output_padding(input, output_size, stride, padding, kernel, 2, dilation)
        return found[0], found[1]

    def extra_repr(self) -> str:
        """``nn.ConvTranspose2d``'s line and the dependency design."""
        text = super().extra_repr()
        text += f", dependency_kernel_size={self.dependency_kernel_size}, schedule={self.schedule}"
        return text + (f", dependency_groups={self.dependency_groups}" if self.dependency_groups != 1 else "")


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of ``like``'s type, where it is. On a CPU the operating system supplies them as they are first
    used, which costs a twentieth of writing them, as ``torch.zeros`` does.
    """
    if like.device.type != "cpu" or type(like.detach()) is not Tensor:
        return torch.zeros(shape, device=like.device, dtype=like.dtype)
    untouched = torch.from_numpy(np.zeros(math.prod(shape) * like.itemsize, np.uint8))
    return untouched.view(like.dtype).view(shape)


def raw_weight(module: nn.ConvTranspose2d) -> Tensor:
    """The parameter behind ``module.weight``: itself, or what a parametrization or an old norm hook computes
    it from.

    Reading ``module.weight`` instead would run the parametrization, which for spectral norm in training mode
    changes its state.
    """
    weights = [p for name, p in module.named_parameters() if "weight" in name]
    return weights[0]


class iPixelDCL2d(_PixelDeconvolution2d):
    """Input pixel deconvolution (eq. 2): every phase sees the input and the phases made before it.

    ``F_i = conv([F_in, F_1 .. F_{i-1}], k_i)`` for each of the s_h * s_w phases, interleaved into the output;
    one bias per channel is added at the end. ``weight`` is the input's part in ``nn.ConvTranspose2d``'s own
    layout, ``dependency_kernels`` the rest: with those at zero the layer *is* ``nn.ConvTranspose2d``.

    Shapes: input (N, C_in, H, W) or (C_in, H, W), output (N, C_out, H_out, W_out) or (C_out, H_out, W_out),
    ``H_out = (H - 1) stride - 2 padding + dilation (kernel_size - 1) + output_padding + 1``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
        padding_mode,
        device, dtype: as for ``nn.ConvTranspose2d``.
        dependency_kernel_size: the low-resolution window through which one phase reads another.
        dependency_groups: groups of the dependency convolutions; ``out_channels`` makes them depthwise.
        schedule: ``"paired"``, ``"sequential"`` or ``"masked"``
        (:func:`pixelize.algebra.schedule.make_schedule`).

    Raises ArgumentError for dependency arguments that do not fit the channels or the stride.
    """

    input_gate: Tensor | None

    def set_dependencies(self, kernel_size: int | tuple[int, int], groups: int, schedule: str) -> None:
        """See the base class; the input gate starts open."""
        super().set_dependencies(kernel_size, groups, schedule)
        self.register_buffer("input_gate", None, persistent=False)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Up-samples ``input``; ``output_size`` settles the size where several are possible, as in torch."""
        return ipixel_dcl2d(
            input,
            self.weight,
            list(self.dependency_kernels),
            self.bias,
            self.stride,
            self.padding,
            self._sized(input, output_size),
            self.groups,
            self.dilation,
            dependency_groups=self.dependency_groups,
            dependency_kernel_size=self.dependency_kernel_size,
            schedule=self.schedule,
            input_gate=self.input_gate,
        )


class PixelDCL2d(_PixelDeconvolution2d):
    """Pixel deconvolution (eq. 3): only the first phase sees the input, the others are made from it.

    ``F_1 = conv(F_in, k_1)``, ``F_i = conv([F_1 .. F_{i-1}], k_i)``, interleaved; one bias per channel is
    added at the end. ``weight`` holds the taps of the first phase alone, (C_in, C_out/groups, h, w) with h
    and w about kernel_size / stride.

    Arguments, shapes and errors are those of :class:`iPixelDCL2d`.
    """

    def set_dependencies(self, kernel_size: int | tuple[int, int], groups: int, schedule: str) -> None:
        """See the base class; the weight is cut down to the taps of the first phase."""
        super().set_dependencies(kernel_size, groups, schedule)
        taps = self.first_taps()
        if self.weight.shape[2:] != (len(taps[0]), len(taps[1])):
            cut = self.weight.detach()[:, :, taps[0]][:, :, :, taps[1]].contiguous()
            self.weight = nn.Parameter(cut, requires_grad=self.weight.requires_grad)

    def first_taps(self) -> tuple[list[int], list[int]]:
        """The kernel's taps, down and across, that belong to the first phase, ascending."""
        axes = []
        for i in (0, 1):
            phases = axis_phases(self.kernel_size[i], self.stride[i], self.padding[i], self.dilation[i])
            axes.append(sorted(phases[self.anchor[i]].taps))
        return axes[0], axes[1]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Up-samples ``input``; ``output_size`` settles the size where several are possible, as in torch."""
        return pixel_dcl2d(
            input,
            self.weight,
            list(self.dependency_kernels),
            self.bias,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            output_padding=self._sized(input, output_size),
            groups=self.groups,
            dilation=self.dilation,
            dependency_groups=self.dependency_groups,
            dependency_kernel_size=self.dependency_kernel_size,
            schedule=self.schedule,
        )
