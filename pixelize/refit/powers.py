"""The power of pictures at the artifact's frequencies, in windows of two kinds, with a gradient.

*Windowed* (eight periods of the frequency's own, half overlapping) sees a pattern whose sign or strength
changes over the picture, the *global* one, as large as the picture, what keeps its sign all over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from pixelize.measure.checkerboard import GLOBAL, Frequency, window_sizes
from pixelize.measure.natural import ArtifactLevels, artifact_levels

Constraint = tuple[str, Frequency]
"""Kind of window and frequency."""


@dataclass(frozen=True)
class Windows:
    """The windows for pictures of one size, and the longest period that they are for."""

    picture: tuple[int, int]
    period: int

    @property
    def whole(self) -> tuple[int, int]:
        """The global window."""
        return window_sizes(*self.picture, self.period)[GLOBAL]

    def size(self, constraint: Constraint) -> tuple[int, int]:
        """The window in which a constraint is measured."""
        kind, f = constraint
        return self.whole if kind == GLOBAL else window_sizes(*self.picture, self.own_period(f))[kind]

    def own_period(self, f: Frequency) -> int:
        """The shortest period that a pattern at a frequency has: 2 for (1/2,0)."""
        return next(p for p in self.periods() if all(abs(v * p - round(v * p)) < 1e-9 for v in f))

    def periods(self) -> list[int]:
        """All that patterns can have."""
        return [p for p in range(2, self.period + 1) if self.period % p == 0]

    def levels(self, pictures: list[Tensor]) -> ArtifactLevels:
        """Of pictures, each frequency in its own window."""
        tables = {p: artifact_levels(pictures, p) for p in self.periods()}
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


def coefficients(y: Tensor, window: tuple[int, int], period: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (N, C, windows down, period, windows across, period) of Hann-windowed Fourier
    coefficients at j/period, i/period; white noise of power 1 has mean square 1."""
    height, width = y.shape[-2:]
    down, across = _rows(height, window[0], period).to(y), _rows(width, window[1], period).to(y)
    both = down @ (y @ across.mT)
    (cc, cs), (sc, ss) = (half.chunk(2, -1) for half in both.chunk(2, -2))
    return tuple(part.unflatten(-1, (-1, period)).unflatten(-3, (-1, period)) for part in (cc - ss, cs + sc))  # type: ignore[return-value]


def powers(y: Tensor, windows: Windows, wanted: Iterable[Constraint]) -> dict[Constraint, Tensor]:
    """Mean power of pictures (N, C, H, W) at the constraints wanted."""
    found: dict[Constraint, Tensor] = {}
    tables: dict[tuple[tuple[int, int], int], Tensor] = {}
    for kind, f in wanted:
        window, period = windows.size((kind, f)), windows.own_period(f)
        if (window, period) not in tables:
            real, imaginary = coefficients(y, window, period)
            tables[window, period] = (real.square() + imaginary.square()).mean((0, 1, 2, 4))
        row, column = (round(v * period) for v in f)
        found[kind, f] = tables[window, period][row, column]
    return found


def prominence(y: Tensor) -> Tensor:
    """(N, 3): each picture's power at the multiples of 1/2 over its detail elsewhere.

    A generator now and then fails altogether: such a picture can have more of a pattern than all others
    together.
    """
    smooth = nn.functional.avg_pool2d(y.double(), 2, 1)
    detail = (smooth[..., 1:, 1:] - smooth[..., :-1, :-1]).square().mean((1, 2, 3))
    size = (y.shape[-2] // 2 * 2, y.shape[-1] // 2 * 2)
    real, imaginary = coefficients(y.double(), size, 2)
    power = (real.square() + imaginary.square()).mean((1, 2, 4)).flatten(1)[:, 1:]
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
