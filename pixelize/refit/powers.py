"""The power of pictures at the artifact's frequencies, in windows of two kinds, with a gradient.

*Windowed* (eight periods of the frequency's own, half overlapping) sees a pattern whose sign or strength
changes over the picture, the *global* one, as large as the picture, what keeps its sign all over it. Of
waveforms the two have 32 and 256 periods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.measure.any_axes import (
    LINE_RING,
    Form,
    Frequency,
    artifact_levels_nd,
    frequencies_nd,
)
from pixelize.measure.checkerboard import GLOBAL, RING, WINDOWED
from pixelize.measure.natural import ArtifactLevels, artifact_levels

LINE_PERIODS = (32, 256)
"""Periods in the windows of waveforms."""
Constraint = tuple[str, Frequency]
"""Kind of window and frequency."""


@dataclass(frozen=True)
class Windows:
    """The windows for pictures of one size, and the longest period that they are for."""

    picture: tuple[int, ...]
    period: int

    @property
    def axes(self) -> int:
        return len(self.picture)

    @property
    def frequencies(self) -> list[Frequency]:
        """All at which there may be a pattern, one of each pair f, -f."""
        return frequencies_nd((self.period,) * self.axes)

    @property
    def whole(self) -> tuple[int, ...]:
        """The global window."""
        if self.axes == 1:
            counts = [n for n in LINE_PERIODS if n * self.period <= self.picture[0]]
            return (counts[-1] * self.period,)
        return tuple(n // self.period * self.period for n in self.picture)

    def size(self, constraint: Constraint) -> tuple[int, ...]:
        """The window in which a constraint is measured."""
        kind, f = constraint
        return self.whole if kind == GLOBAL else self._local(self.own_period(f))

    def _local(self, period: int) -> tuple[int, ...]:
        return (LINE_PERIODS[0] * period,) if self.axes == 1 else (8 * period,) * self.axes

    def name(self, kind: str) -> str:
        """What a report calls a kind of window."""
        if self.axes > 1:
            return kind
        return f"{LINE_PERIODS[0] if kind == WINDOWED else self.whole[0] // self.period} periods"

    def own_period(self, f: Frequency) -> int:
        """The shortest period that a pattern at a frequency has: 2 for (1/2,0)."""
        return next(p for p in self.periods() if all(abs(v * p - round(v * p)) < 1e-9 for v in f))

    def periods(self) -> list[int]:
        """All that patterns can have."""
        return [p for p in range(2, self.period + 1) if self.period % p == 0]

    def levels(self, pictures: list[Tensor]) -> ArtifactLevels:
        """Of pictures, each frequency in its own window."""
        tables = {p: self._table(pictures, p) for p in self.periods()}
        of = {
            c: tables[self.period if c[0] == GLOBAL else self.own_period(c[1])]
            for c in tables[self.period].power
        }
        return ArtifactLevels(
            {c: t.excess[c] for c, t in of.items()},
            {c: t.power[c] for c, t in of.items()},
            {c: t.natural[c] for c, t in of.items()},
            {c: t.expected[c] for c, t in of.items()},
        )

    def _table(self, pictures: list[Tensor], period: int) -> ArtifactLevels:
        if self.axes == 2:
            return artifact_levels(pictures, period)
        rings = (LINE_RING, LINE_RING) if self.axes == 1 else (RING[GLOBAL], RING[WINDOWED])
        forms = {GLOBAL: Form(self.whole, rings[0]), WINDOWED: Form(self._local(period), rings[1])}
        return artifact_levels_nd(pictures, period, lambda size: forms)


def coefficients(y: Tensor, window: tuple[int, ...], period: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (N, C, then windows, period for each axis) of Hann-windowed coefficients at
    multiples of 1/period; white noise of power 1 has mean square 1."""
    if len(window) == 1:  # a few long windows: one product for all is less than a row for each
        waves = _rows(window[0], window[0], period).to(y)
        cosine, sine = (y.unfold(-1, window[0], max(window[0] // 2, 1)) @ waves.mT).chunk(2, -1)
        return cosine, sine
    both = y
    for axis in range(-1, -len(window) - 1, -1):
        rows = _rows(y.shape[axis], window[axis], period).to(y)
        both = both @ rows.mT if axis == -1 else (rows @ both.movedim(axis, -2)).movedim(-2, axis)
    real, imaginary = both.chunk(2, -len(window))  # of the first axis: cosine, sine
    for axis in range(1 - len(window), 0):
        (rc, rs), (ic, is_) = real.chunk(2, axis), imaginary.chunk(2, axis)
        real, imaginary = rc - is_, rs + ic
    for axis in range(-1, -2 * len(window), -2):
        real, imaginary = (part.unflatten(axis, (-1, period)) for part in (real, imaginary))
    return real, imaginary


def powers(y: Tensor, windows: Windows, wanted: Iterable[Constraint]) -> dict[Constraint, Tensor]:
    """Mean power of pictures (N, C, H, W), waveforms or volumes at the constraints wanted."""
    found: dict[Constraint, Tensor] = {}
    tables: dict[tuple[tuple[int, ...], int], Tensor] = {}
    over = (0, 1, *range(2, 2 * windows.axes + 1, 2))
    for kind, f in wanted:
        window, period = windows.size((kind, f)), windows.own_period(f)
        if (window, period) not in tables:
            real, imaginary = coefficients(y, window, period)
            tables[window, period] = (real.square() + imaginary.square()).mean(over)
        found[kind, f] = tables[window, period][tuple(round(v * period) for v in f)]
    return found


def prominence(y: Tensor) -> Tensor:
    """(N, frequencies): each picture's power at the multiples of 1/2 over its detail elsewhere.

    A generator now and then fails altogether: such a picture can have more of a pattern than all others
    together.
    """
    n = y.dim() - 2
    smooth = getattr(nn.functional, f"avg_pool{n}d")(y.double(), 2, 1)
    cuts: list[Any] = [(..., *[cut] * n) for cut in (slice(1, None), slice(-1))]
    after, before = (smooth[cut] for cut in cuts)
    detail = (after - before).square().mean(tuple(range(1, n + 2)))
    size = tuple(length // 2 * 2 for length in y.shape[2:])
    real, imaginary = coefficients(y.double(), size, 2)
    power = (real.square() + imaginary.square()).mean((1, *range(2, 2 * n + 1, 2))).flatten(1)[:, 1:]
    return power / (detail[:, None] + 1e-30)


@cache
def _rows(length: int, size: int, period: int) -> Tensor:
    """(2 * windows * period, length): Hann windows, half overlapping, times cosine, then times sine, at all
    multiples of 1/period."""
    hann = torch.hann_window(size, dtype=torch.float64)
    starts = range(0, length - size + 1, max(size // 2, 1))
    rows = torch.zeros(len(starts), length, dtype=torch.float64)
    for row, start in zip(rows, starts, strict=True):
        row[start : start + size] = hann / hann.square().sum().sqrt()
    j = torch.arange(period)[:, None]
    turn = 2 * math.pi * (torch.arange(length) * j % period).double() / period
    return torch.cat([(rows[:, None] * part).flatten(0, 1) for part in (turn.cos(), turn.sin())])
