"""The layers of Gao et al., *Pixel Deconvolutional Networks*, on transposed convolutions: :class:`iPixelDCL`
(eq. 2) and :class:`PixelDCL` (eq. 3), for waveforms (1d), pictures (2d) and volumes or films (3d).

They take the place of ``nn.ConvTranspose1d``, ``2d`` and ``3d``: the same constructor arguments, shapes and
``forward(input, output_size=None)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from pixelize.algebra.polyphase import AxisPhase, Phase, Size, anchor_phase, axis_phases, phase_weight
from pixelize.errors import ArgumentError
from pixelize.layers.dependency_kernels import InputGated, PixelDependencies
from pixelize.layers.functional import ipixel_dcl, pixel_dcl

# symbolic tracing keeps each layer as one node: what is inside depends on sizes, which a trace would freeze
torch.fx.wrap("ipixel_dcl")
torch.fx.wrap("pixel_dcl")


class PixelDeconvolution(PixelDependencies, _ConvTransposeNd):
    """What the layers on transposed convolutions share: the constructor and the size of the output."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        dependency_kernel_size: int | Sequence[int] = 3,
        dependency_groups: int = 1,
        schedule: str = "paired",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device=device, dtype=dtype,
        )  # type: ignore[misc, call-arg]  # fmt: skip
        self.set_dependencies(dependency_kernel_size, dependency_groups, schedule)
        self.reset_dependencies()

    def period(self) -> Size:
        """The stride."""
        return self.stride

    def first(self) -> Phase:
        """The first phase that has taps."""
        return anchor_phase(self.kernel_size, self.stride, self.padding, self.dilation)

    def _sized(self, input: Tensor, output_size: list[int] | None) -> Size:
        geometry = (self.stride, self.padding, self.kernel_size)
        n, dilation = len(self.stride), list(self.dilation)
        return tuple(self._output_padding(input, output_size, *map(list, geometry), n, dilation))  # type: ignore


class iPixelDCL(InputGated, PixelDeconvolution):
    """Input pixel deconvolution (eq. 2): every phase sees the input and the phases made before it.

    ``F_i = conv([F_in, F_1 .. F_{i-1}], k_i)`` for each phase (s_h * s_w of them in two dimensions),
    interleaved into the output; one bias per channel is added at the end. ``weight`` is the input's part in
    ``nn.ConvTransposeNd``'s own layout, ``dependency_kernels`` the rest: with those at zero the layer *is*
    ``nn.ConvTransposeNd``, except that a NaN or an infinity in the input spreads through them as well (0
    times infinity is NaN).

    Shapes: input (N, C_in, *size) or (C_in, *size), output (N, C_out, *size) or (C_out, *size),
    ``H_out = (H - 1) stride - 2 padding + dilation (kernel_size - 1) + output_padding + 1``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
        padding_mode, device, dtype: as for ``nn.ConvTransposeNd``.
        dependency_kernel_size: the low-resolution window through which one phase reads another.
        dependency_groups: groups of the dependency convolutions; ``out_channels`` makes them depthwise.
        schedule: ``"paired"``, ``"sequential"``, ``"masked"`` or ``"near"``
            (:func:`pixelize.algebra.schedule.build_schedule`).

    Raises ArgumentError for dependency arguments that do not fit the channels or the stride, and in a call
    what ``nn.ConvTransposeNd`` raises.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Up-samples ``input``; ``output_size`` settles the size where several are possible, as in torch."""
        return ipixel_dcl(
            input, self.weight, list(self.dependency_kernels), self.bias, self.stride, self.padding,
            self._sized(input, output_size), self.groups, self.dilation, input_gate=self.input_gate,
            **self._design(),
        )  # fmt: skip


class PixelDCL(PixelDeconvolution):
    """Pixel deconvolution (eq. 3): only the first phase sees the input, the others are made from it.

    ``F_1 = conv(F_in, k_1)``, ``F_i = conv([F_1 .. F_{i-1}], k_i)``, interleaved; one bias per channel is
    added at the end. ``weight`` holds the taps of the first phase alone, (C_in, C_out/groups, *taps), about
    kernel_size / stride along each axis.

    Gao et al. remove the input "for some intermediate feature maps"; how many phases can do without it is a
    question for each layer. With ``input_stages`` the phases of so many stages of the schedule see it too,
    and ``input_kernels`` holds their taps: with 0 it is PixelDCL (eq. 3), with as many as the schedule has
    stages iPixelDCL (eq. 2).

    The other arguments, shapes and errors are those of :class:`iPixelDCL`; ArgumentError for
    ``input_stages`` that the schedule does not have.
    """

    input_stages: int
    input_kernels: nn.ParameterList

    def __init__(self, *args: Any, input_stages: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if input_stages:
            shape = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
            full = self.weight.new_empty(shape, requires_grad=False)
            nn.init.kaiming_uniform_(full, a=math.sqrt(5))
            self.set_input_stages(input_stages, full)

    def set_dependencies(self, kernel_size: int | Sequence[int], groups: int, schedule: str) -> None:
        """See the base class; the weight is cut down to the taps of the first phase, and no other sees the
        input.
        """
        super().set_dependencies(kernel_size, groups, schedule)
        self.input_stages, self.input_kernels = 0, nn.ParameterList()
        if self.weight.shape[2:] != tuple(map(len, self.first_taps())):
            cut = phase_weight(self.weight.detach(), *self._axes(self.anchor)).contiguous()
            self.weight = nn.Parameter(cut, requires_grad=self.weight.requires_grad)

    def set_input_stages(self, stages: int, weight: Tensor) -> None:
        """Lets the phases of the first ``stages`` stages see the input with their taps of ``weight`` (C_in,
        C_out/groups, *kernel_size).
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

    def first_taps(self) -> tuple[list[int], ...]:
        """The kernel's taps, along each axis, that belong to the first phase, ascending."""
        return tuple(sorted(axis.taps) for axis in self._axes(self.anchor))

    def _axes(self, phase: Phase) -> list[AxisPhase]:
        geometry = zip(self.kernel_size, self.stride, self.padding, self.dilation, phase, strict=True)
        return [axis_phases(k, s, p, d)[a] for k, s, p, d, a in geometry]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Up-samples ``input``; ``output_size`` settles the size where several are possible, as in torch."""
        return pixel_dcl(
            input, self.weight, list(self.dependency_kernels), self.bias, kernel_size=self.kernel_size,
            stride=self.stride, padding=self.padding, output_padding=self._sized(input, output_size),
            groups=self.groups, dilation=self.dilation, input_kernels=further_kernels(self), **self._design(),
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The line of the other layers, and how many stages see the input if any do."""
        return super().extra_repr() + (f", input_stages={self.input_stages}" if self.input_stages else "")


def further_kernels(layer: PixelDCL) -> dict[Phase, Tensor]:
    """The phases beyond the first that see the input, each with its taps (C_in, C_out/groups, *taps)."""
    return dict(zip(layer.further_phases(), layer.input_kernels, strict=True)) if layer.input_stages else {}


def input_kernels_of(layer: PixelDCL) -> dict[Phase, Tensor]:
    """The phases of a layer that see the input, the first one first, each with its taps."""
    return {layer.anchor: layer.weight, **further_kernels(layer)}


class iPixelDCL1d(iPixelDCL, nn.ConvTranspose1d):
    __doc__ = iPixelDCL.__doc__  # type: ignore[assignment]


class iPixelDCL2d(iPixelDCL, nn.ConvTranspose2d):
    __doc__ = iPixelDCL.__doc__  # type: ignore[assignment]


class iPixelDCL3d(iPixelDCL, nn.ConvTranspose3d):
    __doc__ = iPixelDCL.__doc__  # type: ignore[assignment]


class PixelDCL1d(PixelDCL, nn.ConvTranspose1d):
    __doc__ = PixelDCL.__doc__  # type: ignore[assignment]


class PixelDCL2d(PixelDCL, nn.ConvTranspose2d):
    __doc__ = PixelDCL.__doc__  # type: ignore[assignment]


class PixelDCL3d(PixelDCL, nn.ConvTranspose3d):
    __doc__ = PixelDCL.__doc__  # type: ignore[assignment]


# its name while phases in between had a class of their own
PartialPixelDCL2d = PixelDCL2d
