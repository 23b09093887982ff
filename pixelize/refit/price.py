"""What changes of the pictures cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelize.measure.checkerboard import GLOBAL, WINDOWED
from pixelize.refit.powers import Constraint, Windows

_SHARE = {GLOBAL: 1.0, WINDOWED: 4.0}
"""How much more the multipliers of a kind of window count: a local one sees a part, not the picture."""


@dataclass(frozen=True)
class Price:
    """What changes of the pictures cost: ``value`` v(f) and ``far`` (bins away from the artifact's) by bin of
    the global window, in its shape."""

    value: Tensor
    far: Tensor
    windows: Windows

    def of_change(self, difference: Tensor) -> Tensor:
        """Of a difference of pictures (N, C, H, W): 1 for white noise of power 1."""
        value = self.value.to(difference)
        if value.shape != difference.shape[-2:]:
            value = nn.functional.interpolate(value[None, None], difference.shape[-2:], mode="nearest")[0, 0]
        return (torch.fft.fft2(difference, norm="ortho").abs().square() * value).mean()

    def of_spectrum(self, new: Tensor, old: Tensor) -> Tensor:
        """Of another power spectrum away from the artifact's frequencies: v(f) P(f) (P'(f) / P(f) - 1)^2 on
        average."""
        ratio = new / (old + 1e-12 * old.sum())
        return (self.far.to(new) * self.value.to(new) * old * (ratio - 1).square()).mean()

    def spectrum(self, y: Tensor) -> Tensor:
        """P(f): the mean power of Hann-windowed pictures (N, C, H, W)."""
        height, width = self.windows.whole
        hann = torch.hann_window(height)[:, None] * torch.hann_window(width)
        hann = (hann / hann.square().mean().sqrt()).to(y)
        cut = (y - y.mean((-2, -1), keepdim=True))[..., :height, :width]
        return torch.fft.fft2(cut * hann, norm="ortho").abs().square().mean((0, 1))

    def of_power(self, constraint: Constraint) -> float:
        """v(f), for the share that one frequency has of a window's."""
        kind, f = constraint
        height, width = self.windows.whole
        h, w = self.windows.size(constraint)
        value = self.value[round(f[0] * height), round(f[1] * width)].item()
        return value / (h * w) * _SHARE[kind]
