"""What is natural at the frequencies of a checkerboard: constants by what they mean, and levels over them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from pixelize.measure.checkerboard import (
    GLOBAL,
    WINDOWED,
    Frequency,
    as_periods,
    frequencies,
    peak_and_around,
    total_power,
)
from pixelize.measure.decibels import decibels

Level = tuple[str, tuple[float, ...]]
"""Form of the measure and frequency."""

NOTICEABLE = 3.0
"""Decibels (global form): sets of natural pictures measure less, more is called a checkerboard."""
PHOTOGRAPHS = {GLOBAL: 0.0, WINDOWED: -4.0}
"""Decibels that photographs measure with period 2, about, by form, where there are none to measure."""
ON_AXIS, DIAGONAL = -4.5, -3.2
"""Decibels (windowed form, period 2) of natural pictures at (0,1/2) and (1/2,0), and at (1/2,1/2): of real
faces."""
NOTCHED = -4.5
"""Decibels (windowed form) that a notched target is brought down to at the multiples of 1/2: real faces
measure between -3.2 and -5.0. At other frequencies natural is about 0."""


@dataclass(frozen=True)
class ArtifactLevels:
    """Of a set of pictures, by form and frequency: the power there, the power that would be natural there,
    and the ratio of the two in decibels.

    ``expected``: the natural power, but on the axes, for periods longer than 4, what the spectrum along
    the axis leads to, if that is more. Edges that lie along the axes make ridges there: crops of photographs
    measure up to 8 dB over what is around (0,1/8), and not 4 dB over what is expected.
    """

    excess: dict[Level, float]
    power: dict[Level, float]
    natural: dict[Level, float]
    expected: dict[Level, float]


def artifact_levels(pictures: Iterable[Tensor], period: int) -> ArtifactLevels:
    """The levels of batches of pictures ``(N, C, H, W)``, and what their own surroundings lead one to expect.

    Raises ArgumentError as :func:`pixelize.checkerboard`.
    """
    periods = (period, period)
    total = total_power(pictures, periods)
    planes = float(total.planes)
    least = 1e-12 * float(total.mean_square) / planes or 1.0  # all-zero pictures: level everywhere
    power: dict[Level, float] = {}
    natural: dict[Level, float] = {}
    expected: dict[Level, float] = {}
    for form, table in total.by_form.items():
        table = table.cpu() / planes + least
        for f in frequencies(period):
            peak, around = peak_and_around(table, f, periods, form)
            power[form, f] = float(peak)
            if form == GLOBAL:
                natural[form, f] = float(around)
                ridge = 0 in f and any(4 * v % 1 for v in f)
                expected[form, f] = max(float(around), _continued(table, f, period, 3) if ridge else 0.0)
            else:
                natural[form, f] = expected[form, f] = _expected(table, f, period, float(around))
    return ArtifactLevels({c: decibels(power[c] / natural[c]) for c in power}, power, natural, expected)


def _expected(table: Tensor, f: Frequency, period: int, around: float) -> float:
    """The power that the neighbourhood leads one to expect at ``f`` itself, in the windowed form.

    The spectrum is continued to f. At (0,1/2) and (1/2,0) natural pictures lie at least
    :func:`natural_excess` under what is around, and so does this; at (1/2,1/2), where the continuation is
    1.5 dB too low, just that.
    """
    half = all(2 * v % 1 == 0 for v in f)
    known = around * 10 ** (natural_excess(WINDOWED, f, period) / 10)
    if half and all(f):
        return known
    level = _continued(table, f, period, 2)
    return min(level, known) if half else level


def _continued(table: Tensor, f: Frequency, period: int, near: int) -> float:
    """Log-power continued to f along the axes, as an even function of the distance d in bins: a + b d^2
    through d = ``near`` and the next."""
    log = table[round(f[0] * period), :, round(f[1] * period), :].log()
    reach = log.shape[-1] // 2
    levels = []
    for axis in (0, 1):
        if f[axis]:
            line = log[:, reach] if axis == 0 else log[reach]
            one, next_ = ((line[reach - d] + line[reach + d]).item() / 2 for d in (near, near + 1))
            levels.append(one - near**2 * (next_ - one) / (2 * near + 1))
    return math.exp(sum(levels) / len(levels))


def natural_excess(form: str, f: Frequency, period: int | tuple[int, int]) -> float:
    """Decibels that :func:`pixelize.checkerboard` measures on natural pictures at a frequency.

    At the multiples of 1/2 log-power is even in the distance to f. The windows of a longer period are
    larger and their bins nearer to f: what they measure falls as the square of their distance.
    """
    if form == GLOBAL or any(2 * v % 1 for v in f):
        return 0.0
    longest = max(p for p, v in zip(as_periods(period), f, strict=True) if v)
    return (DIAGONAL if all(f) else ON_AXIS) * (2 / longest) ** 2
