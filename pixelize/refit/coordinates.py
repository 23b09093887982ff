"""The weights of an up-sampler in coordinates in which every direction costs about the same.

A change D of the taps of one phase changes what the layer makes there by D applied to the features f that the
phase reads (its taps' inputs, one after the other): on average by D^T E[f f^T] D. With the Cholesky factor
E[f f^T] = L L^T and D = L^-T U that is |U|^2. Output channels that matter less to the picture may change
more: column o of U is divided by the root mean square r_o of the picture's gradient to channel o.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.algebra.least_squares import inverse_root
from pixelize.layers.pixel_dcl import PixelDCL
from pixelize.rewrites.state.precision import float64

Offset = tuple[int, int]

LARGEST = 2048
"""Taps of one phase of one output channel, in and out of all input channels, that are factored at most."""


@dataclass(frozen=True)
class Tap:
    """One tap of a transposed convolution: output phase (a_y, a_x), and the input it reads, x[m - q]."""

    ky: int
    kx: int
    phase: Offset
    offset: Offset


def taps_of(layer: nn.ConvTranspose2d) -> list[Tap]:
    """The taps of ``layer`` by phase: output ``o = s*i - p + d*t`` is pixel ``m`` of phase ``a`` for ``o =
    s*m + a``."""
    found = []
    for ky in range(layer.kernel_size[0]):
        for kx in range(layer.kernel_size[1]):
            at = [layer.dilation[n] * t - int(layer.padding[n]) for n, t in enumerate((ky, kx))]
            phase = (at[0] % layer.stride[0], at[1] % layer.stride[1])
            offset = tuple((at[n] - phase[n]) // layer.stride[n] for n in (0, 1))
            found.append(Tap(ky, kx, phase, (offset[0], offset[1])))
    return sorted(found, key=lambda tap: (tap.phase, tap.offset))


def whitenable(layer: nn.Module) -> TypeGuard[nn.ConvTranspose2d]:
    """Whether the layer's ``weight`` holds all taps of a transposed convolution, few enough to factor."""
    if not isinstance(layer, nn.ConvTranspose2d) or isinstance(layer, PixelDCL):
        return False
    taps = [tap.phase for tap in taps_of(layer)]
    largest = max(taps.count(phase) for phase in taps)
    return largest * layer.in_channels // layer.groups <= LARGEST


class Coordinates(Protocol):
    """A parameter as a function of a leaf ``u``, which is zero after ``finish``: there the parameter is as it
    was.
    """

    u: Tensor

    def finish(self) -> None: ...

    def balance(self, gradient: Tensor) -> None:
        """Takes the root mean square gradient of the picture to ``u`` into the scale of ``u``."""

    def value(self) -> Tensor: ...


class ScaledParameter:
    """Any parameter, for what has no taps to whiten: one scale for all of it."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter.detach()

    def finish(self) -> None:
        self.scale = self.parameter.new_ones(())
        self.u = torch.zeros_like(self.parameter, requires_grad=True)

    def balance(self, gradient: Tensor) -> None:
        self.scale = 1 / gradient.square().mean().sqrt().clamp_min(1e-6)

    def value(self) -> Tensor:
        return self.parameter + self.scale * self.u


class WhitenedTaps:
    """The taps of one layer as a function of what is to be found, ``u``: a leaf of the layer's dtype.

    Args:
        layer: any ``nn.ConvTranspose2d``; it is not changed.
        ridge: added to the features' second moments, as a share of their mean diagonal.

    :meth:`look` takes in inputs of the layer, :meth:`finish` ends that and makes ``u`` (groups, taps of an
    output channel, C_out / groups); :meth:`value` gives the layer's weight.
    """

    def __init__(self, layer: nn.ConvTranspose2d, ridge: float = 1e-3) -> None:
        self.layer, self.ridge = layer, ridge
        self.taps = taps_of(layer)
        self.ins, self.outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        self.phases = sorted({tap.phase for tap in self.taps})
        self.moments: dict[Offset, Tensor] = {}
        self.rows = 0

    def look(self, x: Tensor) -> None:
        """Takes in a batch of the layer's inputs (N, C_in, h, w)."""
        x = x.detach().float()
        n, _, h, w = x.shape
        for phase in self.phases:
            taps = [tap for tap in self.taps if tap.phase == phase]
            features = torch.stack([_shifted(x, tap.offset) for tap in taps], 2)  # N, C_in, taps, h, w
            features = features.unflatten(1, (self.layer.groups, self.ins)).permute(1, 3, 2, 0, 4, 5)
            features = features.reshape(self.layer.groups, len(taps) * self.ins, n * h * w)
            moment = features @ features.transpose(1, 2)
            self.moments[phase] = self.moments[phase] + moment if phase in self.moments else moment
        self.rows += n * h * w

    def finish(self) -> None:
        """Factors the moments."""
        self.factors = []
        for phase in self.phases:
            moment = float64(self.moments[phase] / self.rows)
            self.factors.append(inverse_root(moment, self.ridge, 1e-12).to(self.layer.weight))
        self.moments = {}
        like = self.layer.weight
        self.scale = like.new_ones(self.layer.groups, 1, self.outs)
        self.u = like.new_zeros(self.layer.groups, len(self.taps) * self.ins, self.outs, requires_grad=True)

    def balance(self, gradient: Tensor) -> None:
        size = gradient.square().mean(1, keepdim=True).sqrt()
        self.scale = 1 / size.clamp_min(0.03 * size.max().item() + 1e-12)

    def value(self) -> Tensor:
        """(C_in, C_out / groups, k_h, k_w), with a gradient to ``u``."""
        sizes = [factor.shape[-1] for factor in self.factors]
        parts = [
            factor @ (u * self.scale) for factor, u in zip(self.factors, self.u.split(sizes, 1), strict=True)
        ]
        change = torch.cat(parts, 1).unflatten(1, (len(self.taps), self.ins))  # groups, taps, ins, outs
        kernel = self.layer.kernel_size
        places = {(tap.ky, tap.kx): n for n, tap in enumerate(self.taps)}
        order = [places[ky, kx] for ky in range(kernel[0]) for kx in range(kernel[1])]
        change = change[:, order].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, kernel)
        return self.layer.weight.detach() + change


def _shifted(x: Tensor, offset: Offset) -> Tensor:
    """``out[..., m, n] = x[..., m - q_y, n - q_x]``, zero outside."""
    qy, qx = offset
    h, w = x.shape[-2:]
    return F.pad(x, (qx, -qx, qy, -qy)) if abs(qx) < w and abs(qy) < h else torch.zeros_like(x)
