"""Power spectra of pictures around the frequencies of a checkerboard, and the level that is natural there.

Two windows see two things. The *global* one is as large as the picture: it resolves a pattern that keeps
its sign all over it, as a sharp peak. The *local* one (16 pixels, half overlapping) sees a pattern whose
sign or strength changes over the picture: such a pattern spreads around its frequency and leaves the peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Frequency = tuple[int, int]
"""A frequency (j, i) of a period: j/period cycles per pixel down, i/period across."""

NATURAL = {False: -4.5, True: -3.2}
"""Decibels of natural pictures at (0, 1/2) and (1/2, 0), and at (1/2, 1/2), in local windows: measured on
faces."""

LOCAL = "local"
GLOBAL = "global"


def frequencies(period: int) -> list[Frequency]:
    """The multiples of 1/period apart from zero, one of each pair (f, -f): a real picture has the same
    power at both."""
    pairs = [(j, i) for j in range(period) for i in range(period) if (j, i) != (0, 0)]
    return [(j, i) for j, i in pairs if (j, i) <= ((-j) % period, (-i) % period)]


def window_sizes(height: int, width: int, period: int, local: int = 16) -> dict[str, tuple[int, int]]:
    """The windows for pictures of this size: multiples of the period, the local one at least four periods
    wide."""
    small = max(local, 4 * period) // period * period
    whole = (height // period * period, width // period * period)
    return {LOCAL: (min(small, whole[0]), min(small, whole[1])), GLOBAL: whole}


def away(window: tuple[int, int], period: int) -> Tensor:
    """Which bins (h, w) of a window are further than 1/16 cycle per pixel from every multiple of 1/period,
    zero not counted."""
    down, across = (torch.fft.fftfreq(size, dtype=torch.float64) for size in window)
    off_y, off_x = ((v - (v * period).round() / period).abs() for v in (down, across))
    near = torch.maximum(off_y[:, None], off_x) <= 1 / 16
    return ~near | (torch.hypot(down[:, None], across) < 1 / (2 * period))


def _starts(length: int, size: int) -> range:
    return range(0, length - size + 1, max(size // 2, 1))


@dataclass
class Spectrum:
    """Mean power spectrum of Hann windows, half overlapping, streamed: white noise of power 1 has power 1
    everywhere."""

    window: tuple[int, int]
    kind: str
    total: Tensor | float = 0.0
    count: int = 0

    def add(self, y: Tensor) -> None:
        """Take in pictures (N, C, H, W)."""
        h, w = self.window
        hann = torch.hann_window(h, dtype=torch.float64)[:, None] * torch.hann_window(w, dtype=torch.float64)
        for top in _starts(y.shape[-2], h):
            for left in _starts(y.shape[-1], w):
                cut = y[..., top : top + h, left : left + w].double()
                cut = (cut - cut.mean((-2, -1), keepdim=True)) * hann
                self.total = self.total + torch.fft.fft2(cut).abs().square().mean((0, 1)) * (
                    len(y) / hann.square().sum()
                )
                self.count += len(y)

    @property
    def power(self) -> Tensor:
        """(h, w): mean power by frequency."""
        return torch.as_tensor(self.total) / self.count

    def at(self, f: Frequency, period: int) -> float:
        """Power at ``f``."""
        return self.power[self._bin(f, period)].item()

    def _bin(self, f: Frequency, period: int) -> tuple[int, int]:
        return f[0] * self.window[0] // period, f[1] * self.window[1] // period

    def around(self, f: Frequency, period: int) -> float:
        """The power to compare with: the median of the geometric mean of opposite bins, which cancels the
        spectrum's slope; in global windows over the ring three and four bins away, in local ones over that
        two and three bins away (along row or column for a frequency on an axis)."""
        return around(self.power, self._bin(f, period), f, self.kind).item()

    def excess(self, f: Frequency, period: int) -> float:
        """Decibels of the power at ``f`` over the power around it."""
        tiny = 1e-30
        return 10 * math.log10((self.at(f, period) + tiny) / (self.around(f, period) + tiny))

    def natural(self, f: Frequency, period: int) -> float:
        """The power that the neighbourhood leads one to expect at ``f`` itself.

        In global windows that is the power around it. In local ones the spectrum curves within the
        neighbourhood, and log-power is continued to f as an even function of the distance d: a + b d^2
        through d = 2 and d = 3; at (0, 1/2) and (1/2, 0) natural pictures lie at least ``NATURAL`` below what
        is around, and so does this; at (1/2, 1/2), where the continuation is 1.5 dB too low, just so far.
        """
        if self.kind == GLOBAL:
            return self.around(f, period)
        half = all(2 * v % period == 0 for v in f)
        known = self.around(f, period) * 10 ** (NATURAL[all(f)] / 10)
        if half and all(f):
            return known
        (y, x), (h, w), power = self._bin(f, period), self.window, self.power.log()
        levels = []
        for axis in (0, 1):
            if f[axis]:
                two, three = (
                    sum(
                        power[(y + s * d * (axis == 0)) % h, (x + s * d * (axis == 1)) % w].item()
                        for s in (1, -1)
                    )
                    / 2
                    for d in (2, 3)
                )
                levels.append(two - 4 * (three - two) / 5)
        level = math.exp(sum(levels) / len(levels))
        return min(level, known) if half else level


def around(power: Tensor, bin: tuple[int, int], f: Frequency, kind: str) -> Tensor:
    """:meth:`Spectrum.around` of power spectra (..., h, w), for each of them."""
    (y, x), (h, w) = bin, power.shape[-2:]
    if kind == GLOBAL:
        ring = [(a, b) for a in range(-4, 5) for b in range(-4, 5) if max(abs(a), abs(b)) > 2]
    elif all(f):
        ring = [(a, b) for a in range(-3, 4) for b in range(-3, 4) if max(abs(a), abs(b)) > 1]
    else:
        ring = [(a, 0) for a in (-3, -2, 2, 3) if f[0]] + [(0, b) for b in (-3, -2, 2, 3) if f[1]]
    down, across = torch.tensor(ring).T
    opposite = (
        power[..., (y + down) % h, (x + across) % w] * power[..., (y - down) % h, (x - across) % w]
    ).sqrt()
    return opposite.median(-1).values
