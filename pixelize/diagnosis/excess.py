"""How far a pattern stands out over what is natural, and how much of that has gone."""

from __future__ import annotations

from fractions import Fraction

from pixelize.diagnosis.upsampling import UpSampler
from pixelize.measure.any_axes import Frequency, frequencies_nd
from pixelize.measure.checkerboard import GLOBAL
from pixelize.measure.natural import NOTICEABLE
from pixelize.measure.pictures import PatternLevel


def strongest_form(p: PatternLevel) -> str:
    """The form of the measure in which a pattern stands out most."""
    return max(p.levels, key=lambda form: p.levels[form] - p.threshold[form])


def worst_level(p: PatternLevel, form: str | None = None) -> float:
    """In dB, by that form of the measure: the strongest by default."""
    return p.levels[form or strongest_form(p)]


def far_out(p: PatternLevel) -> bool:
    """Whether a pattern stands out by twice what is noticeable: over the whole of pictures and volumes."""
    form = GLOBAL if GLOBAL in p.levels else strongest_form(p)
    return p.levels[form] > p.threshold[form] + NOTICEABLE


def power_ratio(p: PatternLevel, form: str | None = None) -> float:
    """Over the natural level, as a ratio."""
    return 10 ** (worst_level(p, form) / 10)


def share_gone(before: PatternLevel, after: PatternLevel) -> float:
    """The part of what is over the natural level that has gone."""
    form = strongest_form(before)
    return min(1.0, (power_ratio(before, form) - power_ratio(after, form)) / (power_ratio(before, form) - 1))


def can_make(place: UpSampler, scale: int, p: PatternLevel) -> bool:
    """Whether an up-sampler makes a pattern at this frequency out of a constant: a multiple of 1 / (its
    stride times the scale of what follows) that is none of 1 / scale."""
    turns = [Fraction(v).limit_denominator(p.period) * scale for v in p.frequency]
    whole = all((v * s).denominator == 1 for v, s in zip(turns, place.stride, strict=True))
    return whole and any(v.denominator != 1 for v in turns)


def listed_frequency(p: PatternLevel, period: int) -> Frequency:
    """The pattern's frequency as :func:`~pixelize.measure.any_axes.frequencies_nd` of ``period`` has it."""
    wanted = tuple(Fraction(v).limit_denominator(period) for v in p.frequency)
    for f in frequencies_nd((period,) * len(wanted)):
        here = tuple(Fraction(v).limit_denominator(period) for v in f)
        if here in (wanted, tuple(-v % 1 for v in wanted)):
            return f
    raise AssertionError(p)
