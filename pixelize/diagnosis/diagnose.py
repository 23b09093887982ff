"""``pixelize.diagnose(model, data)``: which part of a model makes the pattern in its pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from pixelize.diagnosis.excess import (
    can_make,
    far_out,
    listed_frequency,
    power_ratio,
    share_gone,
    strongest_form,
    worst_level,
)
from pixelize.diagnosis.phases import PhaseAnswers, right_order
from pixelize.diagnosis.report import Diagnosis, PatternSource, UpSamplerRow
from pixelize.diagnosis.reruns import (
    Change,
    cleaned,
    first_samples,
    picture_in,
    pictures_of_model,
    without_pattern_of,
)
from pixelize.diagnosis.seams import tile_size
from pixelize.diagnosis.upsampling import Call, UpSampler
from pixelize.measure.any_levels import PERIODS_ALONG, measure_any
from pixelize.measure.notch import notch
from pixelize.measure.pictures import MADE, PERIODS, PatternLevel, PictureLevels
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.models import check_model, uncompiled

MOST = 0.5
"""Share of the excess that must go with a source for it to be the source; several may have it together."""
SOME = 0.15
"""Share from which one of several is named."""


@all_or_nothing
def diagnose(model: nn.Module, data: Iterable[Any] | Tensor) -> Diagnosis:
    """Says where the pattern in a model's pictures, waveforms or volumes comes from: an up-sampler, and
    which; phases in the wrong order; the inputs; tiles that pictures are put together from; or something
    else.

    They are measured at each plausible period (:func:`~pixelize.measure.any_levels.measure_any`).
    For each frequency that stands out the model is run again, on the same inputs, without the pattern of one
    up-sampler at a time (a notch in its output, at the multiples of 1/stride), then without that of any, then
    with inputs from which the pattern is taken out: what falls tells the source. Of each up-sampler the other
    orders of its sub-kernels are tried: where one makes its output far smoother, the order is what is wrong
    with it.

    Changes nothing. Up-samplers are seen as they run, whoever calls them: transposed convolutions, pixel
    shuffles, resizes by a whole number, and axes merged by a reshape.

    Args:
        model: any model whose output holds a picture, a waveform or a volume, as for
            :func:`pixelize.repair`.
        data: inputs, real ones if there are any: an iterable of batches (a tensor, tuple or dict each), or
            one tensor. The first 48 samples are run; a few tell less.

    Raises:
        ArgumentError: no data, no picture in the output, ones smaller than 16 pixels (waveforms shorter than
            64 samples), NaN or inf in them.
    """
    check_model(model)
    inner = uncompiled(model)
    inputs = first_samples(data)
    answers: dict[UpSampler, PhaseAnswers] = {}
    calls: Counter[UpSampler] = Counter()
    heights: dict[UpSampler, int] = {}
    better: dict[UpSampler, str] = {}

    def look(call: Call) -> None:
        calls[call.place] += 1
        if call.place not in heights and (order := right_order(call)) is not None:
            better[call.place] = order
        heights[call.place] = call.output.shape[2]
        answers.setdefault(call.place, PhaseAnswers(call.place.stride)).add(call.output)

    with evaluation(inner):
        pictures = pictures_of_model(inner, inputs, look)
    axes = pictures[0].dim() - 2
    for place in [p for p in heights if len(p.stride) != axes]:  # inside, of something else
        del answers[place], calls[place], heights[place]
        better.pop(place, None)
    # up-samplers that all run several times in one run of the model are given pieces of the picture
    pieces = all(n >= 2 * len(inputs) for n in calls.values())
    whole = max(heights.values(), default=1) if pieces else pictures[-1].shape[2]
    scales = {place: max(1, round(whole / height)) for place, height in heights.items()}
    periods = _periods(scales, axes, max(p.shape[2] for p in pictures))
    levels = measure_any(pictures, periods)
    view = _View(inner, inputs, pictures, levels, periods, scales, better)
    rows = [
        UpSamplerRow(
            place.name, place.kind, place.stride, round(calls[place] / len(inputs)) or 1,
            answers[place].constant, answers[place].roughness, view.falls(place),
        )
        for place in answers
    ]  # fmt: skip
    notes = [] if answers else ["The model runs no up-sampler that could be seen."]
    return Diagnosis(levels, tuple(view.sources()), tuple(rows), tuple(notes))


class _View:
    """One model, its pictures, and what becomes of them without this or that."""

    def __init__(
        self,
        model: nn.Module,
        inputs: list[Any],
        pictures: list[Tensor],
        levels: PictureLevels,
        periods: list[int] | None,
        places: dict[UpSampler, int],
        orders: dict[UpSampler, str],
    ) -> None:
        self.model, self.inputs, self.pictures, self.levels = model, inputs, pictures, levels
        self.places, self.orders = places, orders
        self.scale = max((scale * math.lcm(*u.stride) for u, scale in places.items()), default=1)
        # images of what a model up-samples lie beside its own frequencies: of others more is asked
        self.patterns = [
            p
            for p in levels.noticeable
            if far_out(p) or any(can_make(u, s, p) for u, s in places.items()) or not places
        ]
        # waveforms are measured in windows of the longest period, and have to be so again
        self.periods = sorted({p.period for p in self.patterns}) if levels.axes == 2 else periods
        self.without = {p: self._levels(without_pattern_of({p})) for p in places} if self.patterns else {}

    def falls(self, place: UpSampler) -> dict[str, float]:
        """Decibels by which each frequency that stands out falls without a place's pattern."""
        return {p.name: self._fall(place, p) for p in self.patterns}

    def _fall(self, place: UpSampler, p: PatternLevel) -> float:
        return worst_level(p) - worst_level(self.without[place][p.name], strongest_form(p))

    def sources(self) -> list[PatternSource]:
        left = list(self.patterns)
        sources: list[PatternSource] = []
        sources += self._inputs(left)
        sources += self._up_samplers(left)
        named = {name for source in sources if source.kind == "swapped phases" for name in source.names}
        for place, order in self.orders.items():
            if place.name not in named:
                sources.append(PatternSource("swapped phases", (place.name,), detail=order))
        sources += self._tiles(left)
        if left:
            sources.append(PatternSource("elsewhere", frequencies=tuple(p.name for p in left)))
        return sorted(sources, key=lambda s: -(s.share or 0.0))

    def _levels(self, change: Change | None, inputs: list[Any] | None = None) -> dict[str, PatternLevel]:
        with evaluation(self.model):
            pictures = pictures_of_model(self.model, self.inputs if inputs is None else inputs, change)
        return {p.name: p for p in measure_any(pictures, self.periods).patterns}

    def _inputs(self, left: list[PatternLevel]) -> list[PatternSource]:
        """What the inputs bring with them; it is taken from ``left``."""
        axes = self.levels.axes
        shown = [x for x in (picture_in(i, axes) for i in self.inputs) if x is not None]
        least = 64 if axes == 1 else 16
        if not left or len(shown) < len(self.inputs) or min(min(x.shape[2:]) for x in shown) < least:
            return []
        there = measure_any(shown).noticeable
        if not there:
            return []
        period = math.lcm(*(p.period for p in there))
        depth = {listed_frequency(p, period): 1.0 for p in there}
        clean = [
            cleaned(i, picture, lambda x: notch(x.float(), period, depth=depth).to(x))
            for i, picture in zip(self.inputs, shown, strict=True)
        ]
        after = self._levels(None, clean)
        gone = [p for p in left if share_gone(p, after[p.name]) >= MOST]
        return self._source("inputs", (), gone, after, left)

    def _up_samplers(self, left: list[PatternLevel]) -> list[PatternSource]:
        """Each frequency's maker, or makers; what is explained is taken from ``left``."""
        if not left or not self.places:
            return []
        every = self._levels(without_pattern_of(set(self.places)))
        made: dict[tuple[UpSampler, ...], list[PatternLevel]] = {}
        for p in left:
            shares = {place: share_gone(p, self.without[place][p.name]) for place in self.places}
            falls = {place: self._fall(place, p) for place in self.places}
            makers = [
                u for u, share in shares.items() if share >= MOST and falls[u] >= max(falls.values()) / 2
            ]
            makers = makers or [u for u in self.orders if can_make(u, self.places[u], p)]
            if not makers and share_gone(p, every[p.name]) >= MOST:
                makers = [place for place, share in shares.items() if share >= SOME] or list(self.places)
            if makers:
                made.setdefault(tuple(makers), []).append(p)
        sources = []
        for places, patterns in made.items():
            after = self.without[places[0]] if len(places) == 1 else every
            swapped = tuple(place for place in places if place in self.orders)
            kind = "swapped phases" if swapped else "up-sampler"
            names = tuple(place.name for place in swapped or places)
            detail = ", ".join(self.orders[place] for place in swapped)
            sources += self._source(kind, names, patterns, after, left, detail)
        return sources

    def _tiles(self, left: list[PatternLevel]) -> list[PatternSource]:
        sizes = {p.shape[2:] for p in self.pictures}
        if len(sizes) != 1 or self.levels.axes == 1:  # one line has too little to tell a seam by
            return []
        tile = tile_size(self.pictures, self.scale)
        if not any(tile):
            return []
        sides = zip(tile, next(iter(sizes)), strict=True)
        detail = f"{'x'.join(str(t or size) for t, size in sides)} {MADE[self.levels.axes][1]}"
        # seams, and the borders of tiles beside them, repeat with the tiles: what is left of multiples of
        # 1 / tile is put down to them
        repeats = [t or 1 for t in tile]
        gone = [
            p
            for p in left
            if all(abs(v * t - round(v * t)) < 1e-9 for v, t in zip(p.frequency, repeats, strict=True))
        ]
        return self._source("tiles", (), gone, None, left, detail)

    @staticmethod
    def _source(
        kind: Any,
        names: tuple[str, ...],
        patterns: list[PatternLevel],
        after: Mapping[str, PatternLevel] | None,
        left: list[PatternLevel],
        detail: str = "",
    ) -> list[PatternSource]:
        for p in patterns:
            left.remove(p)
        if not patterns and kind != "tiles":
            return []
        share = None
        if after is not None:
            over = sum(power_ratio(p) - 1 for p in patterns)
            share = sum(share_gone(p, after[p.name]) * (power_ratio(p) - 1) for p in patterns) / over
        return [PatternSource(kind, names, tuple(p.name for p in patterns), share, detail)]


def _periods(scales: Mapping[UpSampler, int], axes: int, size: int) -> list[int] | None:
    """Of the patterns that up-samplers can leave, from the scale of what follows each: that times its stride.
    Period 2 anyway, and where nothing up-samples all that are plausible. Of waveforms, ``size`` samples long
    at most, the largest multiples, whose windows are the longest."""
    if not scales:
        return None
    longest = max(PERIODS if axes == 2 else PERIODS_ALONG[axes])
    if axes == 1:
        longest = max(2, min(longest, size // 32))
    own = {2} | {scale * math.lcm(*place.stride) for place, scale in scales.items()}
    own = {p for p in own if 1 < p <= longest}
    return sorted({longest // p * p for p in own} if axes == 1 else own)
