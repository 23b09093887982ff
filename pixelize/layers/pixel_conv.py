"""The layers of section 2.4 of Gao et al., *Pixel Deconvolutional Networks*, on convolutions:
:class:`iPixelConv` and :class:`PixelConv`, for waveforms (1d), pictures (2d) and volumes or films (3d).

They take the place of ``nn.Conv1d``, ``2d`` and ``3d``: the same constructor arguments, shapes and
``forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.algebra.polyphase import Phase, Size
from pixelize.errors import ArgumentError
from pixelize.layers.dependencies import sizes
from pixelize.layers.dependency_kernels import InputGated, PixelDependencies
from pixelize.layers.functional_conv import ipixel_conv, pixel_conv

# symbolic tracing keeps each layer as one node: what is inside depends on sizes, which a trace would freeze
torch.fx.wrap("ipixel_conv")
torch.fx.wrap("pixel_conv")


class PixelConvolution(PixelDependencies):
    """What the layers on convolutions share: the constructor and the period."""

    output_period: Size

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        period: int | Sequence[int] = 2,
        dependency_kernel_size: int | Sequence[int] = 3,
        dependency_groups: int = 1,
        schedule: str = "paired",
    ) -> None:
        plain: Any = super().__init__
        plain(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.set_period(period)
        self.set_dependencies(dependency_kernel_size, dependency_groups, schedule)
        self.reset_dependencies()

    def set_period(self, period: int | Sequence[int]) -> None:
        """Into how many phases the output is split along each axis. Raises ArgumentError if not 1 or more."""
        self.output_period = sizes(period, len(self.kernel_size), "period")
        if min(self.output_period) < 1:
            raise ArgumentError(f"period is {period}; it must be at least 1")

    def period(self) -> Size:
        """The period that was asked for."""
        return self.output_period

    def first(self) -> Phase:
        """The origin: every phase of a convolution has all its taps."""
        return (0,) * len(self.kernel_size)

    def _design(self) -> dict[str, Any]:
        return {**super()._design(), "padding_mode": self.padding_mode, "period": self.output_period}

    def extra_repr(self) -> str:
        """torch's line, the dependency design and the period."""
        return super().extra_repr() + f", period={self.output_period}"


class iPixelConv(InputGated, PixelConvolution):
    """Input pixel convolution: every phase of the output sees the input and the phases made before it.

    The output of a convolution is split into the phases of a period, ``F_a = B_a + sum of D_ab * F_b`` over
    the phases b before a, B_a being the convolution's own, and interleaved again
    (:mod:`pixelize.layers.functional_conv`). ``weight`` is the convolution's, in ``nn.ConvNd``'s layout,
    ``dependency_kernels`` the rest: with those at zero the layer *is* ``nn.ConvNd``, except that a NaN or an
    infinity in the input spreads through them as well (0 times infinity is NaN).

    Where the output is no whole number of periods, zeros follow the (padded) input, and what they give beyond
    the output is dropped at the end.

    Shapes: those of ``nn.ConvNd``, batched or not.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
        dtype: as for ``nn.ConvNd``.
        period: into how many phases the output is split along each axis.
        dependency_kernel_size: the window, in periods, through which one phase reads another.
        dependency_groups: groups of the dependency convolutions; ``out_channels`` makes them depthwise.
        schedule: ``"paired"``, ``"sequential"``, ``"masked"`` or ``"near"``
            (:func:`pixelize.algebra.schedule.build_schedule`).

    Raises ArgumentError for dependency arguments that do not fit the channels or the period, and what
    ``nn.ConvNd`` raises.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolves ``input``."""
        return ipixel_conv(
            input, self.weight, list(self.dependency_kernels), self.bias, self.stride, self.padding,
            self.dilation, self.groups, input_gate=self.input_gate, **self._design(),
        )  # fmt: skip


class PixelConv(PixelConvolution):
    """Pixel convolution: only the first phase sees the input, the others are made from it.

    One convolution of stride ``stride * period`` makes the first phase, ``F_a = sum of D_ab * F_b`` over the
    phases b before a the others. ``weight`` is the whole kernel, as in ``nn.ConvNd``. It is no convolution
    for any dependency kernels but some: they are to be fitted or trained.

    Arguments, shapes and errors are those of :class:`iPixelConv`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolves ``input``."""
        return pixel_conv(
            input, self.weight, list(self.dependency_kernels), self.bias, self.stride, self.padding,
            self.dilation, self.groups, **self._design(),
        )  # fmt: skip


class iPixelConv1d(iPixelConv, nn.Conv1d):
    __doc__ = iPixelConv.__doc__  # type: ignore[assignment]


class iPixelConv2d(iPixelConv, nn.Conv2d):
    __doc__ = iPixelConv.__doc__  # type: ignore[assignment]


class iPixelConv3d(iPixelConv, nn.Conv3d):
    __doc__ = iPixelConv.__doc__  # type: ignore[assignment]


class PixelConv1d(PixelConv, nn.Conv1d):
    __doc__ = PixelConv.__doc__  # type: ignore[assignment]


class PixelConv2d(PixelConv, nn.Conv2d):
    __doc__ = PixelConv.__doc__  # type: ignore[assignment]


class PixelConv3d(PixelConv, nn.Conv3d):
    __doc__ = PixelConv.__doc__  # type: ignore[assignment]
