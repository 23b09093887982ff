"""What changes of the pictures cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelize.measure.checkerboard import GLOBAL, WINDOWED
from pixelize.measure.spectrum import windows_of
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
        """Of a difference of pictures (N, C, *size): 1 for white noise of power 1."""
        axes = tuple(range(2, difference.dim()))
        return (
            torch.fft.fftn(difference, dim=axes, norm="ortho").abs().square() * self._for(difference)
        ).mean()

    def weighed(self, x: Tensor) -> Tensor:
        """Features (N, C, *size) filtered so that the mean square of a convolution's answer to them is what
        its answer to the features themselves costs."""
        axes = tuple(range(2, x.dim()))
        return torch.fft.ifftn(
            torch.fft.fftn(x.float(), dim=axes) * self._for(x.float()).sqrt(), dim=axes
        ).real

    def _for(self, like: Tensor) -> Tensor:
        """v(f) for the bins of pictures of another size."""
        value, size = self.value.to(like), like.shape[2:]
        if value.shape != size:
            value = nn.functional.interpolate(value[None, None], size, mode="nearest")[0, 0]
        return value

    def of_spectrum(self, new: Tensor, old: Tensor) -> Tensor:
        """Of another power spectrum away from the artifact's frequencies: v(f) P(f) (P'(f) / P(f) - 1)^2 on
        average."""
        ratio = new / (old + 1e-12 * old.sum())
        return (self.far.to(new) * self.value.to(new) * old * (ratio - 1).square()).mean()

    def spectrum(self, y: Tensor) -> Tensor:
        """P(f): the mean power of Hann-windowed pictures (N, C, *size)."""
        window, axes = self.windows.whole, tuple(range(2, y.dim()))
        hann = torch.ones(())
        for size in window:
            hann = hann[..., None] * torch.hann_window(size)
        hann = (hann / hann.square().mean().sqrt()).to(y)
        cut = windows_of(y - y.mean(axes, keepdim=True), window)
        return torch.fft.fftn(cut * hann, dim=[n - 1 for n in axes], norm="ortho").abs().square().mean(0)

    def of_power(self, constraint: Constraint) -> float:
        """v(f), for the share that one frequency has of a window's."""
        kind, f = constraint
        at = tuple(round(v * n) for v, n in zip(f, self.windows.whole, strict=True))
        return self.value[at].item() / math.prod(self.windows.size(constraint)) * _SHARE[kind]
