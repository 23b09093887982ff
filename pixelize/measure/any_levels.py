"""Waveforms and volumes of which nothing is known but themselves: which pattern do they show, and how strong.
What :mod:`pixelize.measure.pictures` is for pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.any_axes import Form, Frequency, artifact_levels_nd, forms_for, frequencies_nd
from pixelize.measure.checkerboard import GLOBAL, RING, WINDOWED
from pixelize.measure.decibels import decibels
from pixelize.measure.natural import NOTICEABLE, ArtifactLevels
from pixelize.measure.pictures import MADE, PatternLevel, PictureLevels, by_chance, measure_pictures
from pixelize.rewrites.state.precision import float64
from pixelize.running.batches import rereadable

PERIODS_ALONG = {1: (64, 48, 40), 3: (2, 3, 4, 8)}
"""Patterns that are looked for, by the number of axes. Of waveforms the divisors of these are looked for too,
in the same windows: long ones, which tell a tone from speech."""
WIDE = Form((64,), RING[WINDOWED])
"""The wider neighbourhood of a tone, 1/32 to 3/64 cycles per sample on either side: of speech about a kHz.
What lies far below it (interpolation leaves gaps around the multiples of 1/stride) is not heard."""
_LEAST = {"256 periods": 256, "32 periods": 32}
_ERRORS = 4.0
"""Standard errors of the median around a frequency, of n draws of each of b bins about 5.4 / sqrt(n b) dB."""


def measure_any(data: Iterable[Tensor] | Tensor, periods: Sequence[int] | None = None) -> PictureLevels:
    """Measures waveforms (N, C, L), pictures (N, C, H, W) or volumes (N, C, D, H, W) at each period that they
    are long enough for.

    Pictures as :func:`~pixelize.measure.pictures.measure_pictures` does. Levels of the others are over what
    lies around a frequency, by the forms of :func:`pixelize.checkerboard_nd`.

    Args:
        data: a batch, or batches of one number of axes, of any sizes; read several times if it can be.
        periods: to look for; by default :data:`PERIODS_ALONG`, of short waveforms halved until they fit. A
            period needs 8 periods along each axis, of waveforms 32.

    Raises:
        ArgumentError: no data, NaN or inf, batches of several numbers of axes, or all of it too small.
    """
    batches = rereadable(data)
    sizes: list[tuple[tuple[int, ...], int]] = []
    square = 0.0
    for batch in batches:
        if batch.numel():
            sizes.append((tuple(batch.shape[2:]), len(batch)))
            square += float(batch.detach().float().square().mean()) * len(batch)
    if not sizes:
        raise ArgumentError("There is nothing to measure: data is empty.")
    axes, pieces = len(sizes[0][0]), sum(n for _, n in sizes)
    if axes not in MADE or any(len(size) != axes for size, _ in sizes):
        told = " and ".join(sorted({str(len(size)) for size, _ in sizes}))
        raise ArgumentError(f"data has {told} axes beside samples and channels: one, two or three, all alike")
    if axes == 2:
        return measure_pictures(batches) if periods is None else measure_pictures(batches, periods)
    shortest = 32 if axes == 1 else 8
    if periods is None:
        wanted = _halved(PERIODS_ALONG[axes], max(min(size) for size, _ in sizes) // shortest)
    else:
        wanted = sorted(set(periods))
    measured = {p: found for p in wanted if (found := _at_period(batches, sizes, p))}
    if not measured:
        raise ArgumentError(
            f"all {MADE[axes][0]} are too small: {shortest * max(2, min(wanted))} {MADE[axes][1]} along each "
            "axis are needed at least"
        )
    tests = 2 * sum(len(frequencies_nd((p,) * axes)) for p in measured)
    patterns: dict[Frequency, PatternLevel] = {}
    for period in sorted(measured, reverse=axes == 1):  # tones are told best by long windows
        for f in frequencies_nd((period,) * axes):
            own = math.lcm(*(Fraction(v).limit_denominator(period).denominator for v in f))
            at = measured[period]
            pattern = PatternLevel(
                f, own, {form: seen.levels.excess[form, f] for form, seen in at.items()},
                {form: _threshold(seen.windows, tests, f, form) for form, seen in at.items()},
                tone=_tone(at, f, period, square / pieces) if axes == 1 else None,
            )  # fmt: skip
            patterns.setdefault(tuple(round(v, 9) for v in f), pattern)
    if axes == 1:
        _look_around(patterns, batches)
    left_out = tuple(p for p in wanted if p not in measured)
    return PictureLevels(pieces, tuple(patterns.values()), left_out, axes)


class _Seen(NamedTuple):
    """The levels by one form, and how many independent windows they are the mean of."""

    levels: ArtifactLevels
    windows: float


def _at_period(
    batches: Iterable[Tensor], sizes: list[tuple[tuple[int, ...], int]], period: int
) -> dict[str, _Seen]:
    """By form, of all that is long enough for it; of one, each for itself."""
    found = {}
    axes = len(sizes[0][0])
    for form in forms_for((10**9,) * axes, (period,) * axes):
        least = _LEAST.get(form, 8) * max(2, period)
        fits = [(size, n) for size, n in sizes if min(size) >= least]
        if fits:
            levels = artifact_levels_nd(
                _long_enough(batches, least), period, partial(_one_form, form=form, period=period)
            )
            if axes == 1:
                windows = _alike(_long_enough(batches, least), least)
            elif form == GLOBAL:
                windows = sum(n for _, n in fits)
            else:
                windows = sum(n * math.prod(side / least for side in size) for size, n in fits)
            found[form] = _Seen(levels, windows)
    return found


def _alike(waves: Iterable[Tensor], size: int) -> float:
    """How many windows of one loudness would tell as much as those of so many samples in these waves do: of
    their powers p, of steps from sample to sample, (sum p)^2 / sum p^2. Speech is silent half of the time.
    """
    total = squares = count = 0.0
    for batch in waves:
        power = float64(batch.detach()).diff().square().unfold(-1, size - 1, size).mean((1, 3))
        total, squares = total + float(power.sum()), squares + float(power.square().sum())
        count += power.numel()
    return max(1.0, total**2 / squares) if squares else max(1.0, count)


def _tone(at: dict[str, _Seen], f: Frequency, period: int, square: float) -> float:
    """Decibels of a tone's power, less what lies around it, over that of all. Under a Hann window of n
    samples a tone of power a adds n a / 3 (n a * 2 / 3 at 1/2, its own mirror image) to S.
    """
    form, seen = list(at.items())[-1]
    over = seen.levels.power[form, f] - seen.levels.natural[form, f]
    gain = _LEAST[form] * period * (2 if f[0] == 0.5 else 1) / 3
    return decibels(max(over / gain, 1e-12 * square) / square) if square else 0.0


def _look_around(patterns: dict[Frequency, PatternLevel], batches: Iterable[Tensor]) -> None:
    """Sets ``wide`` of waveforms' patterns that exceed their threshold."""
    for period in sorted({p.period for p in patterns.values() if p.over > 0}):
        seen = artifact_levels_nd(_long_enough(batches, WIDE.window[0]), period, lambda _: {"wide": WIDE})
        for key, p in patterns.items():
            if p.period == period and p.over > 0:
                f = next(f for f in frequencies_nd((period,)) if abs(f[0] - key[0]) < 1e-6)
                patterns[key] = replace(p, wide=seen.excess["wide", f])


def _halved(periods: tuple[int, ...], longest: int) -> list[int]:
    """Each divided by two until it is at most ``longest``; 2 at least."""
    found = []
    for period in periods:
        while period > max(longest, 2) and period % 2 == 0 and period > 2:
            period //= 2
        found.append(period)
    return sorted({p for p in found if p <= max(longest, 2)})


def _long_enough(batches: Iterable[Tensor], least: int) -> Iterator[Tensor]:
    return (b for b in batches if b.numel() and min(b.shape[2:]) >= least)


def _one_form(size: tuple[int, ...], form: str, period: int) -> dict[str, Form]:
    return {form: forms_for(size, (period,) * len(size))[form]}


def _threshold(count: float, tests: int, f: Frequency, form: str) -> float:
    """What a level of so many independent windows must exceed; of the neighbourhood's bins those along a
    frequency's own axes are seen windowed, and of each pair of opposite ones one."""
    along = sum(v != 0 for v in f) if form == WINDOWED else len(f)
    bins = 10 if len(f) == 1 else {1: 2, 2: 12, 3: 62}[along]
    return NOTICEABLE + by_chance(count, tests) + _ERRORS * 5.4 / (count * bins) ** 0.5
